"""A scoring, in a process of its own: `python -P -m saucer.evaluation.scoring_child`, started by scoring_process.py.

The files that its job names are file descriptors that it was given. It writes one JSON object to standard output:
`{"scored": summary}` once all results are written, or `{"refused": sentence}`. Whatever else it ends with counts as a
crash.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saucer.evaluation.domain import CannotScoreError
from saucer.evaluation.scoring import score
from saucer.lib import confinement

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
# What the heap grows by.
_HEAP_STEP_BYTES = 64 * 1024**2


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


def main() -> None:
    """Does the job on standard input."""
    limits, told = confinement.begin()
    job = ScoringJob(**told)
    keep_pages()
    try:
        made = score(_read(job.manifest), _read(job.test), _read(job.validation), job.classes, job.label_names)
    except CannotScoreError as error:
        confinement.say({"refused": str(error)})
    except MemoryError:
        confinement.say({"refused": f"The scoring needs more than {limits.memory_bytes:,} bytes of memory."})
    else:
        _write(job.scored, made.scored)
        _write(job.scored_validation, made.validation)
        _write(job.truth, made.truth)
        confinement.say({"scored": made.summary.as_json()})


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


if __name__ == "__main__":
    main()
