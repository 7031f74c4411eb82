"""Brings the source of an import into a private folder: an archive as one file, or a folder of the account's store."""

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from saucer.dataset.archive import MAX_FILES, MAX_UNPACKED_BYTES, safe_parts
from saucer.dataset.domain import Chunk, Import, ImportFailedError, Upload
from saucer.dataset.report import printable
from saucer.dataset.service import Datasets
from saucer.dataset.service.uploads import chunk_key
from saucer.lib.bounded import Bounded
from saucer.lib.errors import DataLossError, NotFoundError
from saucer.lib.objects import Listed, Objects, user_prefix

# Of an archive, as CreateUpload has it, or of all files of a folder. Above it: failed, SOURCE_TOO_LARGE.
MAX_ARCHIVE_BYTES = 100 * 1024**3
MAX_FOLDER_BYTES = MAX_UNPACKED_BYTES
# Of the free disk, for the source and again for what it unpacks to. Above it: failed, NO_ROOM.
ROOM_SHARE = 0.4
DOWNLOADS_AT_ONCE = 8
# What a file system says of a name that it cannot have, for instance a folder where a file is.
_BAD_NAMES = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ})


def room(folder: Path) -> int:
    """Bytes that an import may put there."""
    return int(shutil.disk_usage(folder).free * ROOM_SHARE)


async def fetch(work: Import, datasets: Datasets, objects: Objects, target: Path) -> Path:
    """The archive (a file) or the folder that is to be imported: `target`, or where it lies if that is on this machine.

    Raises:
        ImportFailedError: SOURCE_NOT_FOUND, ROOT_UNKNOWN, SOURCE_TOO_LARGE, TOO_MANY_FILES, BAD_NAME, NO_ROOM,
            UPLOAD_DAMAGED.
        UnavailableError: the object store does not answer now.
    """
    budget = _Budget(await asyncio.to_thread(room, target.parent))
    try:
        if work.upload_id is not None:
            upload, chunks = await datasets.uploads.chunks_of(work.upload_id)
            await _write(_upload_bytes(objects, upload, chunks), target, budget)
            return target
        key = f"{user_prefix(work.account_id)}/{work.store_path}"
        if work.mapped_root is not None:
            assert work.store_path is not None
            objects, key = await datasets.roots.open(work.account_id, work.mapped_root), work.store_path
        local = objects.local(key)
        if local is not None and await asyncio.to_thread(local.exists):
            return local
        if await objects.exists(key):
            budget.limit(MAX_ARCHIVE_BYTES)
            await _write(objects.stream(key), target, budget)
        else:
            budget.limit(MAX_FOLDER_BYTES)
            await _fetch_folder(objects, key, target, budget)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room() from error
        raise
    return target


class _Budget:
    """Bytes that may still be written."""

    def __init__(self, room_bytes: int) -> None:
        self._room = room_bytes
        self._most = MAX_ARCHIVE_BYTES
        self._used = 0

    def limit(self, most: int) -> None:
        self._most = most

    def spend(self, count: int) -> None:
        self._used += count
        if self._used > self._most:
            raise ImportFailedError("SOURCE_TOO_LARGE", f"The source has more than {self._most:,} bytes.")
        if self._used > self._room:
            raise _no_room()


async def _upload_bytes(objects: Objects, upload: Upload, chunks: Sequence[Chunk]) -> AsyncIterator[bytes]:
    try:
        for chunk in chunks:
            async for data in objects.stream(chunk_key(upload, chunk), sha256=chunk.sha256):
                yield data
    except (NotFoundError, DataLossError) as error:
        raise ImportFailedError(
            "UPLOAD_DAMAGED", "The upload is not what was written any more; upload the archive again."
        ) from error


async def _fetch_folder(objects: Objects, prefix: str, target: Path, budget: _Budget) -> None:
    await asyncio.to_thread(target.mkdir)
    files = 0
    async with Bounded(DOWNLOADS_AT_ONCE) as downloads:
        async for found in objects.listed(prefix):
            name = found.key.removeprefix(f"{prefix}/")
            parts = safe_parts(name)
            if not parts:
                raise _bad_name(name)
            files += 1
            if files > MAX_FILES:
                raise ImportFailedError("TOO_MANY_FILES", f"The folder holds more than {MAX_FILES:,} files.")
            await downloads.start(_fetch_file(objects, found, target.joinpath(*parts), name, budget))
    if not files:
        raise ImportFailedError("SOURCE_NOT_FOUND", "There is nothing at store_path in the account's store.")


async def _fetch_file(objects: Objects, found: Listed, target: Path, name: str, budget: _Budget) -> None:
    try:
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        await _write(objects.stream(found), target, budget)
    except NotFoundError:
        return  # removed since it was listed; the labels decide whether it is missed
    except OSError as error:
        if error.errno in _BAD_NAMES:
            raise _bad_name(name) from error
        raise


async def _write(source: AsyncIterator[bytes], target: Path, budget: _Budget) -> None:
    file = None
    try:
        async for data in source:
            budget.spend(len(data))
            if file is None:
                file = await asyncio.to_thread(target.open, "xb")
            await asyncio.to_thread(file.write, data)
        if file is None:
            await asyncio.to_thread(target.touch)
    finally:
        if file is not None:
            await asyncio.to_thread(file.close)


def _bad_name(name: str) -> ImportFailedError:
    return ImportFailedError("BAD_NAME", f"The file name '{printable(name)}' cannot be imported.")


def _no_room() -> ImportFailedError:
    return ImportFailedError(
        "NO_ROOM", "The service has too little disk for this source; ask an administrator, or import less at once."
    )
