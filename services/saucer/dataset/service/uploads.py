"""Uploads: begun, written chunk by chunk, taken by an import, removed when they have expired."""

import asyncio
from datetime import timedelta

from prometheus_client import Counter

from saucer.dataset.domain import MAX_CHUNKS, MAX_OPEN_UPLOADS, UPLOAD_KEPT, Chunk, Upload
from saucer.dataset.service.stores import proven_store
from saucer.dataset.store import accounts as account_store
from saucer.dataset.store import uploads as upload_store
from saucer.lib.auth import current
from saucer.lib.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from saucer.lib.objects import Objects, sha256_of, system_prefix
from saucer.lib.postgres import Database, Transaction

# Removed in one round; more wait for the next.
SWEEP_BATCH = 100
# Told in one answer.
CHUNKS_AT_ONCE = 1_000

upload_bytes_total = Counter("saucer_dataset_upload_bytes_total", "Bytes of uploads that were committed")


class Uploads:
    """Archives on their way in."""

    def __init__(self, database: Database, objects: Objects, *, keep: timedelta) -> None:
        """`keep` is how long an upload stays to which no chunk comes."""
        self._database = database
        self._objects = objects
        self._keep = keep

    async def create(self, upload_id: str, account_id: str, size_bytes: int) -> Upload:
        """Once for each upload id.

        Raises:
            FailedPreconditionError: STORE_NOT_PROVEN. ResourceExhaustedError: TOO_MANY_UPLOADS, QUOTA_STORAGE.
            AlreadyExistsError: the id was used for another size.
        """
        async with self._database.transaction() as tx:
            await proven_store(tx.connection, account_id)
            former = await upload_store.get_upload(tx.connection, upload_id)
            if former is not None:
                if former.size_bytes != size_bytes:
                    raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another upload.")
                return former
            if await upload_store.count_unfinished_uploads(tx.connection, account_id) >= MAX_OPEN_UPLOADS:
                raise ResourceExhaustedError(
                    "TOO_MANY_UPLOADS", f"At most {MAX_OPEN_UPLOADS} uploads may be unfinished; finish one first."
                )
            left = await account_store.storage_left(tx.connection, account_id, with_uploads=True)
            if left is not None and size_bytes > left:
                raise ResourceExhaustedError(
                    "QUOTA_STORAGE",
                    f"The account has room for {max(0, left):,} bytes more, images and uploads together.",
                    left_bytes=max(0, left),
                )
            upload = Upload(upload_id, account_id, size_bytes, 0, "OPEN", tx.now, tx.now + self._keep)
            await upload_store.insert_upload(tx.connection, upload)
        return upload

    async def get(self, upload_id: str) -> Upload:
        """Raises NotFoundError, FailedPreconditionError UPLOAD_EXPIRED."""
        async with self._database.transaction() as tx:
            return await _living_upload(tx, upload_id)

    async def get_with_chunks(self, upload_id: str, from_bytes: int) -> tuple[Upload, list[Chunk]]:
        """With the chunks from an offset on, CHUNKS_AT_ONCE at most. Raises as get() does."""
        async with self._database.transaction() as tx:
            upload = await _living_upload(tx, upload_id)
            return upload, await upload_store.chunks_from(tx.connection, upload_id, from_bytes, CHUNKS_AT_ONCE)

    async def write(self, upload_id: str, offset_bytes: int, data: bytes) -> Upload:
        """Adds a chunk. Bytes below the committed size are there already, and only the rest of the chunk is taken.

        The chunk's object is named for its offset and its hash, so of two calls at one offset each writes its own, and
        the one that commits first counts.

        Raises:
            NotFoundError: no such upload. InvalidArgumentError: UPLOAD_TOO_LONG. ResourceExhaustedError:
            TOO_MANY_CHUNKS. FailedPreconditionError: UPLOAD_EXPIRED, or UPLOAD_GAP with committed_bytes.
        """
        async with self._database.transaction() as tx:
            upload = await _living_upload(tx, upload_id)
            chunks = await upload_store.count_chunks(tx.connection, upload_id)
        if offset_bytes + len(data) > upload.size_bytes:
            raise InvalidArgumentError(
                "UPLOAD_TOO_LONG", f"offset_bytes: the upload has {upload.size_bytes} bytes, and this goes beyond."
            )
        if offset_bytes > upload.committed_bytes:
            raise FailedPreconditionError(
                "UPLOAD_GAP",
                f"The upload has {upload.committed_bytes} bytes so far; go on from there.",
                committed_bytes=upload.committed_bytes,
            )
        added = data[upload.committed_bytes - offset_bytes :]
        if not added:
            return upload
        if chunks >= MAX_CHUNKS:
            raise ResourceExhaustedError(
                "TOO_MANY_CHUNKS", f"An upload has at most {MAX_CHUNKS} chunks; start anew with larger ones."
            )
        chunk = Chunk(upload.committed_bytes, len(added), await asyncio.to_thread(sha256_of, added))
        key = chunk_key(upload, chunk)
        await self._objects.put(key, added)
        return await self._commit_chunk(upload_id, chunk, key)

    async def _commit_chunk(self, upload_id: str, chunk: Chunk, key: str) -> Upload:
        try:
            async with self._database.transaction() as tx:
                upload = await _living_upload(tx, upload_id, lock=True)
                if upload.committed_bytes != chunk.offset_bytes:
                    return upload  # another call was faster; if its chunk was this one, the object is in use
                upload = await upload_store.add_chunk(tx.connection, upload, chunk, tx.now + self._keep)
        except FailedPreconditionError:
            # Expired meanwhile: the sweeper may have listed the objects before this one came.
            await self._objects.delete(key)
            raise
        upload_bytes_total.inc(chunk.size_bytes)
        return upload

    async def chunks_of(self, upload_id: str) -> tuple[Upload, list[Chunk]]:
        """For the import of a whole upload."""
        async with self._database.reading() as connection:
            upload = await upload_store.get_upload(connection, upload_id)
            assert upload is not None, "imports refer to it"
            return upload, await upload_store.chunks_of(connection, upload_id)

    async def sweep(self) -> int:
        """Removes uploads that have expired; how many. Raises UnavailableError: the rest is removed the next time."""
        async with self._database.transaction() as tx:
            expired = await upload_store.expire_uploads(tx.connection, tx.now, limit=SWEEP_BATCH)
        for upload in expired:
            for key in await self._objects.keys(upload_prefix(upload)):
                await self._objects.delete(key)
            async with self._database.transaction() as tx:
                await upload_store.remove_upload(tx.connection, upload.upload_id)
        return len(expired)


def upload_prefix(upload: Upload) -> str:
    """Of the objects of an upload."""
    return f"{system_prefix(upload.account_id)}/uploads/{upload.upload_id}"


def chunk_key(upload: Upload, chunk: Chunk) -> str:
    """Of a chunk: sorted by offset, and another one for other bytes."""
    return f"{upload_prefix(upload)}/{chunk.offset_bytes:015d}-{chunk.sha256}"


async def _living_upload(tx: Transaction, upload_id: str, *, lock: bool = False) -> Upload:
    upload = await upload_store.get_upload(tx.connection, upload_id, lock=lock)
    if upload is None:
        raise NotFoundError("upload", upload_id)
    current().own("upload", upload_id, upload.account_id)
    if not upload.lives(tx.now):
        raise FailedPreconditionError("UPLOAD_EXPIRED", "The upload was not used in time and is gone; start anew.")
    return upload


async def take_upload(tx: Transaction, upload_id: str, account_id: str) -> None:
    """Keeps it for an import. Raises NotFoundError; FailedPreconditionError: UPLOAD_NOT_WHOLE, UPLOAD_EXPIRED."""
    upload = await _living_upload(tx, upload_id, lock=True)
    if upload.account_id != account_id:
        raise NotFoundError("upload", upload_id)
    if not upload.whole:
        raise FailedPreconditionError(
            "UPLOAD_NOT_WHOLE",
            f"The upload has {upload.committed_bytes} of {upload.size_bytes} bytes.",
            committed_bytes=upload.committed_bytes,
        )
    # Also makes a sweeper that has just found it expired look again.
    await upload_store.set_upload_expiry(tx.connection, upload_id, tx.now + UPLOAD_KEPT)
