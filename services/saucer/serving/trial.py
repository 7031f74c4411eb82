"""A first load in a child process, so that a model that hangs or kills its process harms nobody.

Run as `python3 -m serving.trial FOLDER THREADS RUNTIME…` beside this package: each runtime loads the model folder and
computes its smallest and its largest batch, and is measured against those before it (choosing.py). Where none of them
can be used on this machine, the runtime of evaluations is. The child writes a finding a line, as JSON, so that what it
found before it died is known.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .choosing import Choice, choose, measure
from .detector import MAX_BATCH, Detector
from .errors import ModelFolderError, RuntimeUnusable
from .runtime import EVALUATED_WITH

MAX_REASON_BYTES = 2000
"""Of a sentence that a child says; the rest is cut."""
OOM_SCORE = "1000"
"""Of the child: where memory runs out, the kernel ends it before anything that serves."""


class TrialFailed(Exception):  # noqa: N818 - a finding about the model
    """The model does not load, or does not compute; the message is one sentence."""


def attempt(
    folder: Path, threads: int, timeout_s: float, runtimes: Sequence[str] = (EVALUATED_WITH,), python: str | None = None
) -> Choice:
    """Tries a model folder, beside which this package lies as `serving`, with these runtimes: the one that is to serve.

    A runtime that raises, ends its process or is not done within `timeout_s` does not serve, if one was tried before it
    and did. `python`: the program; without, what this PATH calls python3.

    Raises TrialFailed if none is left.
    """
    # Not sys.executable, which inside Triton is no Python.
    program = python or shutil.which("python3") or sys.executable
    command = [program, "-B", "-m", "serving.trial", str(folder), str(threads), *runtimes]
    try:
        child = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        said, problem = error.stdout or b"", f"the model did not load and compute within {timeout_s:g} s"
    else:
        said, problem = child.stdout, _end(child.returncode)
    usable: list[str] = []
    unusable: dict[str, str] = {}
    lacking: list[str] = []
    measured_ms: dict[str, float] = {}
    for finding in _findings(said):
        match finding:
            case {"usable": str(runtime)}:
                usable.append(runtime)
            case {"unusable": str(runtime), "reason": str(reason)}:
                unusable[runtime] = reason
            case {"lacking": str(runtime), "reason": str(reason)}:
                unusable[runtime] = reason
                lacking.append(runtime)
            case {"failed": str(reason)}:
                problem = reason
            case {"measured_ms": dict(found)}:
                measured_ms = found
    if not usable:
        raise TrialFailed(problem)
    unfinished = [runtime for runtime in runtimes if runtime not in (*usable, *unusable)]
    chosen = choose(measured_ms) if measured_ms else usable[0]
    unusable |= dict.fromkeys(unfinished, problem)
    return Choice(chosen, measured_ms, unusable, [runtime for runtime in unusable if runtime not in lacking])


def _end(status: int) -> str:
    if status < 0:
        return f"the model ended its process: signal {-status}"
    return f"the model ended its process before it had computed: exit status {status}"


def _findings(said: bytes) -> Iterator[Any]:
    for line in said.splitlines():
        # A runtime may print, too.
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def main(folder: Path, threads: int, runtimes: Sequence[str]) -> int:
    """The child's exit status."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    loaded: dict[str, Detector] = {}
    for runtime in (*runtimes, EVALUATED_WITH):
        if runtime in loaded or (runtime == EVALUATED_WITH and loaded):
            continue
        try:
            loaded[runtime] = Detector.load(folder, threads, runtime)
            loaded[runtime].warm((1, MAX_BATCH))
        except RuntimeUnusable as error:
            _say(lacking=runtime, reason=str(error))
        except Exception as error:  # a runtime's errors have no common base
            reason = _sentence(error)
            if runtime == EVALUATED_WITH:
                _say(failed=reason)
                return 1
            loaded.pop(runtime, None)
            _say(unusable=runtime, reason=reason)
        else:
            if len(loaded) > 1:
                _say(measured_ms=measure(loaded))
            _say(usable=runtime)
    return 0


def _sentence(error: Exception) -> str:
    if isinstance(error, ModelFolderError):
        return str(error)[:MAX_REASON_BYTES]
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:MAX_REASON_BYTES]


def _say(**finding: object) -> None:
    print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
