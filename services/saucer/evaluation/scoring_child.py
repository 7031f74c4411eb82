"""A scoring, in a process of its own: `python -P -m saucer.evaluation.scoring_child`, started by scoring_process.py.

It reads one JSON object, its job, from standard input; the files it names are file descriptors that it was given. It
writes one JSON object to standard output: `{"scored": summary}` once all results are written, or
`{"refused": sentence}`. Whatever else it ends with counts as a crash. It holds no token and no address of another part.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from saucer.evaluation.domain import CannotScoreError
from saucer.evaluation.scoring import score

_PR_SET_PDEATHSIG = 1
# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
# What the heap grows by.
_HEAP_STEP_BYTES = 64 * 1024**2
# The service and what it answers come first on a busy machine.
_NICENESS = 5


@dataclass(frozen=True)
class ScoringJob:
    """What to score. `manifest` … `truth` are file descriptors: three to read, three to write."""

    manifest: int
    test: int
    validation: int
    scored: int
    scored_validation: int
    truth: int
    classes: Sequence[str]
    label_names: Mapping[str, str]
    # Of the child's address space.
    memory_bytes: int
    # Process id of who asks; if that has died, nobody wants the result.
    parent: int

    def line(self) -> bytes:
        """On the wire."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> "ScoringJob":
        """From the wire."""
        return cls(**json.loads(line))


def main() -> None:
    """Does the job on standard input."""
    job = ScoringJob.read(sys.stdin.buffer.readline())
    _confine(job)
    keep_pages()
    try:
        made = score(_read(job.manifest), _read(job.test), _read(job.validation), job.classes, job.label_names)
    except CannotScoreError as error:
        _say({"refused": str(error)})
    except MemoryError:
        _say({"refused": f"The scoring needs more than {job.memory_bytes:,} bytes of memory."})
    else:
        _write(job.scored, made.scored)
        _write(job.scored_validation, made.validation)
        _write(job.truth, made.truth)
        _say({"scored": made.summary.as_json()})


def _confine(job: ScoringJob) -> None:
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (job.memory_bytes, job.memory_bytes))
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != job.parent:  # it died before the request above
            sys.exit("the service that asked for this scoring has ended")


def keep_pages() -> None:
    """Lets glibc's malloc keep what is freed until the process ends; another libc stays as it is.

    Else each large array goes back to the kernel, and the next one comes from it page by page: with 50,000 images that
    is a tenth of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, _HEAP_STEP_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _write(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(data)


def _say(value: dict[str, object]) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
