"""An import's child process as the service holds it. See import_child.py for what it says."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from saucer.dataset.domain import Imported, ImportFailedError, LabelKind, SourceFormat
from saucer.dataset.import_job import ImportJob
from saucer.lib.confined import ChildDiedError, ChildTimedOutError, confined_child
from saucer.lib.confinement import ChildLimits

# Of the child's address space ; what needs more fails, OUT_OF_MEMORY. What coco.py admits stays below.
MEMORY_BYTES = 4 * 1024**3
# Of one file that the child writes : failed, FILE_TOO_LARGE. A label file may have half of it.
FILE_BYTES = 4 * 1024**3
# Then the child is killed: failed, IMPORT_TIMED_OUT.
TIME_LIMIT_S = 2 * 3600.0
# What a large array leaves goes back to the system at once: glibc would raise the size from which it does.
_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}


class AcceptedImage(NamedTuple):
    """As the child says: to be believed only once its bytes have that hash. `path` is below the source folder."""

    sha256: str
    path: str


async def run_child(
    job: ImportJob,
    limits: ChildLimits,
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
    try:
        async with confined_child(
            "saucer.dataset.import_child", asdict(job), limits, environment=_GIVEN_BACK
        ) as stdout:
            imported = await _hear(stdout, images, progress)
    except ChildTimedOutError as error:
        raise ImportFailedError(
            "IMPORT_TIMED_OUT", f"The import took longer than {limits.time_limit_s:.0f} s; import less at once."
        ) from error
    if imported is None:
        raise ChildDiedError("the import ended without a last word")
    return imported


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
    except ValueError as error:  # longer than confined.MAX_LINE_BYTES
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
