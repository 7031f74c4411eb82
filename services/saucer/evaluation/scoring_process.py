"""Starts, hears and ends the child process of a scoring. See scoring_child.py for what is said between them.

Files pass between the two as descriptors of temporary files without a name, so that no process that is killed leaves
one behind, and the service's memory does not grow with the size of a split.
"""

import asyncio
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import IO

import structlog

from saucer.evaluation.domain import CannotScoreError, Summary
from saucer.evaluation.scoring_child import ScoringJob

# Of the child's address space (RLIMIT_AS), of which Python and its libraries take a tenth: what needs more is FAILED.
# 50,000 images with 2.5 million detections have 1.8 GB resident at most, 5,000 images with 151,000 have 0.2.
MEMORY_BYTES = 4 * 1024**3
# Then the child is killed: FAILED. 5,000 images with 151,000 detections take two seconds.
TIME_LIMIT_S = 15 * 60.0
# Of what the child says; figures of 1,000 classes have about half a MB.
MAX_ANSWER_BYTES = 16 * 1024**2
# Of what the child wrote to standard error, kept for the log.
MAX_STDERR_BYTES = 4096
# What a child gets of the environment: how to find Python and its libraries, and no secret.
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
# A scoring has the two threads of scoring.py and no more; each thread's stack counts against the memory.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}

log = structlog.get_logger()


class ChildDiedError(Exception):
    """The child ended without a word, or said what makes no sense."""


@dataclass(frozen=True)
class ChildLimits:
    """Of a child process."""

    memory_bytes: int = MEMORY_BYTES
    time_limit_s: float = TIME_LIMIT_S


@dataclass(frozen=True)
class ScoringFiles:
    """Open files: three with what is scored, three for what comes of it."""

    manifest: IO[bytes]
    test: IO[bytes]
    validation: IO[bytes]
    scored: IO[bytes]
    scored_validation: IO[bytes]
    truth: IO[bytes]

    def descriptors(self) -> dict[str, int]:
        """By the name of the field."""
        return {field.name: getattr(self, field.name).fileno() for field in fields(self)}


async def run_child(files: ScoringFiles, classes: tuple[str, ...], limits: ChildLimits) -> Summary:
    """Scores; the child never outlives this call.

    Raises:
        CannotScoreError: the child refused, or took too long. ChildDiedError.
    """
    descriptors = files.descriptors()
    job = ScoringJob(**descriptors, classes=classes, memory_bytes=limits.memory_bytes, parent=os.getpid())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # or the folder it is started in would be searched for modules
        "-m",
        "saucer.evaluation.scoring_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=tuple(descriptors.values()),
        cwd="/",
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ONE_THREAD,
        start_new_session=True,  # a Ctrl-C is for the service, which ends its children itself
    )
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = asyncio.create_task(_tail(process.stderr, MAX_STDERR_BYTES))
    try:
        async with asyncio.timeout(limits.time_limit_s) as limit:
            await _tell(process, job)
            answer = await _tail(process.stdout, MAX_ANSWER_BYTES)
            await process.wait()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise CannotScoreError(f"The scoring took longer than {limits.time_limit_s:.0f} s.") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        said = await stderr
    if process.returncode != 0:
        log.error("scoring_child_died", status=process.returncode, stderr=said.decode(errors="replace"))
        raise ChildDiedError(f"the scoring process ended with {process.returncode}")
    return _summary(answer)


async def _tell(process: asyncio.subprocess.Process, job: ScoringJob) -> None:
    assert process.stdin is not None
    # A child that is dead already is noticed when it is heard.
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(job.line())
        await process.stdin.drain()
        process.stdin.close()


def _summary(answer: bytes) -> Summary:
    try:
        ((kind, value),) = json.loads(answer).items()
        if kind == "scored":
            return Summary.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChildDiedError("the scoring process said what makes no sense") from error
    raise CannotScoreError(str(value))


async def _tail(stream: asyncio.StreamReader, size: int) -> bytes:
    kept = b""
    while data := await stream.read(65536):
        kept = (kept + data)[-size:]
    return kept
