"""A first load in a child process, so that a model that hangs or kills its process harms nobody.

Run as `python3 -m serving.trial FOLDER THREADS` beside this package: loads the model folder and computes its smallest
and its largest batch. What goes wrong is the last line of its standard output.
"""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

from .detector import MAX_BATCH, Detector
from .errors import ModelFolderError

MAX_REASON_BYTES = 2000
"""Of what a child says; the rest is cut."""
OOM_SCORE = "1000"
"""Of the child: where memory runs out, the kernel ends it before anything that serves."""


class TrialFailed(Exception):  # noqa: N818 - a finding about the model
    """The model does not load, or does not compute; the message is one sentence."""


def attempt(folder: Path, threads: int, timeout_s: float) -> None:
    """Tries a model folder, beside which this package lies as `serving`.

    Raises TrialFailed if it raises, ends its process, or is not done within `timeout_s`.
    """
    # Not sys.executable, which inside Triton is no Python.
    python = shutil.which("python3") or sys.executable
    command = [python, "-B", "-m", "serving.trial", str(folder), str(threads)]
    try:
        child = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TrialFailed(f"the model did not load and compute within {timeout_s:g} s") from error
    if child.returncode < 0:
        raise TrialFailed(f"the model ended its process: signal {-child.returncode}")
    said = child.stdout[-MAX_REASON_BYTES:].decode(errors="replace").strip().rpartition("\n")[2]
    if child.returncode > 0:
        raise TrialFailed(said or f"the model ended its process: exit status {child.returncode}")
    if said != "ok":
        raise TrialFailed("the model ended its process before it had computed: exit status 0")


def main(folder: Path, threads: int) -> int:
    """The child's exit status."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    try:
        Detector.load(folder, threads).warm((1, MAX_BATCH))
    except ModelFolderError as error:
        print(error)
        return 1
    except Exception as error:  # a runtime's errors have no common base
        print(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return 1
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
