"""Starts, hears and ends the child process of an import. See import_child.py for what is said between them."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from saucer.dataset.domain import Imported, ImportFailedError, LabelKind, SourceFormat
from saucer.dataset.import_job import ImportJob

# Of the child's address space (RLIMIT_AS); what needs more fails, OUT_OF_MEMORY. What coco.py admits stays below.
MEMORY_BYTES = 4 * 1024**3
# Of one file that the child writes (RLIMIT_FSIZE): failed, FILE_TOO_LARGE. A label file may have half of it.
FILE_BYTES = 4 * 1024**3
# Then the child is killed: failed, IMPORT_TIMED_OUT.
TIME_LIMIT_S = 2 * 3600.0
# The longest line, with a report of 1,000 items and statistics of 1,000 classes, has about 2 MB.
MAX_LINE_BYTES = 8 * 1024**2
# Of what the child wrote to standard error, kept for the log.
MAX_STDERR_BYTES = 4096
# What a child gets of the environment: how to find Python and its libraries, and no secret.
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
# One core for one import; and each thread's stack counts against the memory.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}
# What a large array leaves goes back to the system at once: glibc would raise the size from which it does.
_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}

log = structlog.get_logger()


class AcceptedImage(NamedTuple):
    """As the child says: to be believed only once its bytes have that hash. `path` is below the source folder."""

    sha256: str
    path: str


class ChildDiedError(Exception):
    """The child ended without a word, or said what makes no sense."""


@dataclass(frozen=True)
class ChildLimits:
    """Of a child process."""

    memory_bytes: int = MEMORY_BYTES
    file_bytes: int = FILE_BYTES
    time_limit_s: float = TIME_LIMIT_S


async def run_child(
    job: ImportJob,
    time_limit_s: float,
    *,
    images: Callable[[Sequence[AcceptedImage]], Awaitable[None]],
    progress: Callable[[int, int], None],
) -> Imported:
    """Runs an import to its end; the child never outlives this call.

    Args:
        images: awaited for some accepted images at a time; while it waits, so does the child, soon.
        progress: called with images done and images in all.

    Raises:
        ImportFailedError: the child refused, or took too long. ChildDiedError.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # or the folder it is started in would be searched for modules
        "-m",
        "saucer.dataset.import_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        cwd="/",
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _ONE_THREAD | _GIVEN_BACK,
        start_new_session=True,  # a Ctrl-C is for the service, which ends its children itself
    )
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = asyncio.create_task(_tail(process.stderr))
    try:
        async with asyncio.timeout(time_limit_s) as limit:
            await _tell(process, job)
            imported = await _hear(process.stdout, images, progress)
            await process.wait()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ImportFailedError(
            "IMPORT_TIMED_OUT", f"The import took longer than {time_limit_s:.0f} s; import less at once."
        ) from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        said = await stderr
    if imported is None or process.returncode != 0:
        log.error("import_child_died", status=process.returncode, stderr=said.decode(errors="replace"))
        raise ChildDiedError
    return imported


async def _tell(process: asyncio.subprocess.Process, job: ImportJob) -> None:
    assert process.stdin is not None
    # A child that is dead already is noticed when it is heard.
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(job.line())
        await process.stdin.drain()
        process.stdin.close()


async def _hear(
    stdout: asyncio.StreamReader,
    images: Callable[[Sequence[AcceptedImage]], Awaitable[None]],
    progress: Callable[[int, int], None],
) -> Imported | None:
    """None if the child ended without a last word."""
    imported = None
    while line := await _line(stdout):
        try:
            ((kind, value),) = json.loads(line).items()
            if kind == "progress":
                progress(int(value[0]), int(value[1]))
                continue
            if kind == "refused":
                raise ImportFailedError(value["reason"], value["sentence"], value["report"])
            if kind == "imported":
                imported = _imported(value)
                continue
            accepted = [AcceptedImage(str(sha256), str(path)) for sha256, path in value]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ChildDiedError from error
        await images(accepted)
    return imported


async def _line(stdout: asyncio.StreamReader) -> bytes:
    try:
        return await stdout.readline()
    except ValueError as error:  # longer than MAX_LINE_BYTES
        raise ChildDiedError from error


def _imported(value: Any) -> Imported:
    return Imported(
        value["manifest_sha256"],
        value["content_hash"],
        LabelKind(value["label_kind"]),
        tuple(value["classes"]),
        value["statistics"],
        value["report"] | {"source_format": SourceFormat(value["source_format"])},
    )


async def _tail(stderr: asyncio.StreamReader) -> bytes:
    kept = b""
    while data := await stderr.read(65536):
        kept = (kept + data)[-MAX_STDERR_BYTES:]
    return kept
