"""The use cases of uploads, imports and versions; those of images and drafts are in labelling.py. The two are the only
places that open dataset's transactions. What a claimed import does is in work.py.

Locks are taken in one order, import before account store before upload or draft, so that no two transactions wait for
each other. Object-store calls are made between transactions, never inside one.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import structlog
from google.protobuf.message import Message
from prometheus_client import Counter

from saucer.dataset import image_store, store
from saucer.dataset.domain import (
    MAX_CHUNKS,
    MAX_OPEN_IMPORTS,
    MAX_OPEN_UPLOADS,
    UPLOAD_KEPT,
    UPLOAD_KEPT_AFTER_IMPORT,
    AccountStore,
    Chunk,
    DatasetVersion,
    Import,
    ImportFailedError,
    ImportRequest,
    ImportState,
    Json,
    SourceFormat,
    Upload,
    claimed,
    crashed,
    failed,
    given_back,
    queued,
    succeeded,
)
from saucer.dataset.messages import import_event_message, version_message
from saucer.dataset.storage import images_prefix
from saucer.dataset.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from saucer.lib.ids import derived_id
from saucer.lib.objects import Objects, check_key, sha256_of, system_prefix, user_prefix
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Connection, Database, Transaction

# Taken in one round; more wait for the next.
SWEEP_BATCH = 100
PROOF_BATCH = 100
COUNT_BATCH = 100
_PROBE = b"Saucer may write here."

log = structlog.get_logger()
imports_total = Counter("saucer_dataset_imports_total", "Imports that came to an end", ["state", "reason"])
upload_bytes_total = Counter("saucer_dataset_upload_bytes_total", "Bytes of uploads that were committed")
stores_proven_total = Counter("saucer_dataset_stores_proven_total", "Accounts' prefixes that were proven writable")


class ClaimLostError(Exception):
    """Another process holds the import by now; what this one did of it does not count."""


class Datasets:
    """Account stores, uploads, imports and versions."""

    def __init__(
        self, database: Database, objects: Objects, *, claim: timedelta, uploads_keep: timedelta = UPLOAD_KEPT
    ) -> None:
        """`claim` is how long an import stays with a process that does not prolong it, `uploads_keep` how long an
        upload stays to which no chunk comes."""
        self._database = database
        self._objects = objects
        self._claim = claim
        self._uploads_keep = uploads_keep
        # Set after a commit that queued an import: the workers wait on it, with a poll as the net.
        self.import_queued = asyncio.Event()

    # Account stores

    async def meet_account(self, account_id: str) -> None:
        """Remembers an account, whose store is to be proven."""
        async with self._database.transaction() as tx:
            await store.insert_account_store(tx.connection, account_id, user_prefix(account_id), tx.now)

    async def set_quota(self, account_id: str, storage_bytes: int | None, revision: int) -> None:
        """What an account may store, as billing tells it; an older word than what is known changes nothing."""
        async with self._database.transaction() as tx:
            await store.insert_account_store(tx.connection, account_id, user_prefix(account_id), tx.now)
            await store.set_storage_limit(tx.connection, account_id, storage_bytes, revision)

    async def storage_left(self, account_id: str) -> int | None:
        """Bytes for which there is room among the images; None: no limit."""
        async with self._database.reading() as connection:
            return await store.storage_left(connection, account_id, with_uploads=False)

    async def add_stored(self, account_id: str, size_bytes: int) -> None:
        """What an import has stored, whether it succeeds or not."""
        async with self._database.transaction() as tx:
            await store.add_stored(tx.connection, account_id, size_bytes)

    async def uncounted_accounts(self) -> list[str]:
        """Whose images may lack in the count; those beyond COUNT_BATCH come later."""
        async with self._database.reading() as connection:
            return await store.uncounted_accounts(connection, limit=COUNT_BATCH)

    async def count_stored(self, account_id: str) -> bool:
        """Counts what an account's images take in the object store, which imports from before the count did not.

        False: an import stored some meanwhile; it is to be done again. Raises UnavailableError.
        """
        async with self._database.reading() as connection:
            before_bytes = await store.stored_bytes(connection, account_id)
        images = self._objects.listed(images_prefix(account_id))
        counted_bytes = sum([image.size_bytes async for image in images])
        async with self._database.transaction() as tx:
            return await store.set_counted(
                tx.connection, account_id, counted_bytes, before_bytes=before_bytes, now=tx.now
            )

    async def prove_store(self, account_id: str, probe_id: str) -> None:
        """Writes, reads and removes an object below both prefixes of an account; then imports are taken for it.

        Raises UnavailableError where one of the three does not work: it may later.
        """
        async with self._database.reading() as connection:
            known = await store.get_account_store(connection, account_id)
        if known is None or known.proven_at is not None:
            return
        for prefix in (user_prefix(account_id), system_prefix(account_id)):
            await self._probe(f"{prefix}/probe-{probe_id}")
        async with self._database.transaction() as tx:
            proven = await store.prove_account_store(tx.connection, account_id, tx.now)
            if proven is None:
                return
            await _publish(
                tx,
                events_pb2.AccountStoreProven(account_id=account_id, prefix=proven.prefix, revision=proven.revision),
                account_id=account_id,
                resource_id=account_id,
                revision=proven.revision,
            )
        stores_proven_total.inc()

    async def _probe(self, key: str) -> None:
        try:
            await self._objects.put(key, _PROBE)
            found = await self._objects.get(key)
            await self._objects.delete(key)
        except NotFoundError as error:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store lost {key}.") from error
        if found != _PROBE:
            raise UnavailableError("STORE_UNAVAILABLE", f"The object store gave back something else for {key}.")

    async def unproven_accounts(self) -> list[str]:
        """Oldest first; those beyond PROOF_BATCH come later."""
        async with self._database.reading() as connection:
            return await store.unproven_accounts(connection, limit=PROOF_BATCH)

    # Uploads

    async def create_upload(self, upload_id: str, account_id: str, size_bytes: int) -> Upload:
        """Once for each upload id.

        Raises:
            FailedPreconditionError: STORE_NOT_PROVEN. ResourceExhaustedError: TOO_MANY_UPLOADS, QUOTA_STORAGE.
            AlreadyExistsError: the id was used for another size.
        """
        async with self._database.transaction() as tx:
            await _proven_store(tx.connection, account_id)
            former = await store.get_upload(tx.connection, upload_id)
            if former is not None:
                if former.size_bytes != size_bytes:
                    raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another upload.")
                return former
            if await store.count_unfinished_uploads(tx.connection, account_id) >= MAX_OPEN_UPLOADS:
                raise ResourceExhaustedError(
                    "TOO_MANY_UPLOADS", f"At most {MAX_OPEN_UPLOADS} uploads may be unfinished; finish one first."
                )
            left = await store.storage_left(tx.connection, account_id, with_uploads=True)
            if left is not None and size_bytes > left:
                raise ResourceExhaustedError(
                    "QUOTA_STORAGE",
                    f"The account has room for {max(0, left):,} bytes more, images and uploads together.",
                    left_bytes=max(0, left),
                )
            upload = Upload(upload_id, account_id, size_bytes, 0, "OPEN", tx.now, tx.now + self._uploads_keep)
            await store.insert_upload(tx.connection, upload)
        return upload

    async def get_upload(self, upload_id: str) -> Upload:
        """Raises NotFoundError, FailedPreconditionError UPLOAD_EXPIRED."""
        async with self._database.transaction() as tx:
            return await _living_upload(tx, upload_id)

    async def write_upload(self, upload_id: str, offset_bytes: int, data: bytes) -> Upload:
        """Adds a chunk. Bytes below the committed size are there already, and only the rest of the chunk is taken.

        The chunk's object is named for its offset and its hash, so of two calls at one offset each writes its own, and
        the one that commits first counts.

        Raises:
            NotFoundError: no such upload. InvalidArgumentError: UPLOAD_TOO_LONG. ResourceExhaustedError:
            TOO_MANY_CHUNKS. FailedPreconditionError: UPLOAD_EXPIRED, or UPLOAD_GAP with committed_bytes.
        """
        async with self._database.transaction() as tx:
            upload = await _living_upload(tx, upload_id)
            chunks = await store.count_chunks(tx.connection, upload_id)
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
                upload = await store.add_chunk(tx.connection, upload, chunk, tx.now + self._uploads_keep)
        except FailedPreconditionError:
            # Expired meanwhile: the sweeper may have listed the objects before this one came.
            await self._objects.delete(key)
            raise
        upload_bytes_total.inc(chunk.size_bytes)
        return upload

    async def chunks_of(self, upload_id: str) -> tuple[Upload, list[Chunk]]:
        """For the import of a whole upload."""
        async with self._database.reading() as connection:
            upload = await store.get_upload(connection, upload_id)
            assert upload is not None, "imports refer to it"
            return upload, await store.chunks_of(connection, upload_id)

    async def sweep_uploads(self) -> int:
        """Removes uploads that have expired; how many. Raises UnavailableError: the rest is removed the next time."""
        async with self._database.transaction() as tx:
            expired = await store.expire_uploads(tx.connection, tx.now, limit=SWEEP_BATCH)
        for upload in expired:
            for key in await self._objects.keys(upload_prefix(upload)):
                await self._objects.delete(key)
            async with self._database.transaction() as tx:
                await store.remove_upload(tx.connection, upload.upload_id)
        return len(expired)

    # Imports

    async def import_dataset(self, import_id: str, request: ImportRequest) -> Import:
        """Queues an import, once for each import id.

        Raises:
            InvalidArgumentError: KEY_INVALID, NAME_INVALID, FORMAT_INVALID. NotFoundError: the upload or draft.
            FailedPreconditionError: STORE_NOT_PROVEN, UPLOAD_EXPIRED, UPLOAD_NOT_WHOLE with committed_bytes.
            ResourceExhaustedError: TOO_MANY_IMPORTS. AlreadyExistsError: the id was used for something else.
        """
        if not request.display_name.isprintable():
            raise InvalidArgumentError("NAME_INVALID", "display_name: control characters are not allowed.")
        if request.store_path is not None:
            path = request.store_path.removesuffix("/")
            check_key(path if request.mapped_root else f"{user_prefix(request.account_id)}/{path}")
            request = replace(request, store_path=path)
        elif request.mapped_root is not None:
            raise InvalidArgumentError("ROOT_WITHOUT_PATH", "mapped_root: only a store_path lies below one.")
        if (request.draft_id is not None) is not (request.source_format is SourceFormat.DRAFT):
            raise InvalidArgumentError(
                "FORMAT_INVALID", "source_format: DRAFT is the format of drafts, and only theirs."
            )
        async with self._database.transaction() as tx:
            await _proven_store(tx.connection, request.account_id)
            former = await store.get_import(tx.connection, import_id)
            if former is not None:
                if not former.answers(request):
                    raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another import.")
                return former
            if await store.count_open_imports(tx.connection, request.account_id) >= MAX_OPEN_IMPORTS:
                raise ResourceExhaustedError(
                    "TOO_MANY_IMPORTS", f"At most {MAX_OPEN_IMPORTS} imports may wait; try again when one has ended."
                )
            if request.upload_id is not None:
                await _take_upload(tx, request.upload_id, request.account_id)
            if request.draft_id is not None:
                # Locked, so that it is not deleted meanwhile.
                draft = await image_store.get_draft(tx.connection, request.draft_id, lock=True)
                if draft is None or draft.account_id != request.account_id or draft.state != "OPEN":
                    raise NotFoundError("draft", request.draft_id)
            work = queued(import_id, request, tx.now)
            await store.insert_import(tx.connection, work)
        self.import_queued.set()
        return work

    async def get_import(self, import_id: str) -> Import:
        """Raises NotFoundError."""
        async with self._database.reading() as connection:
            work = await store.get_import(connection, import_id)
        if work is None:
            raise NotFoundError("import", import_id)
        current().own("import", import_id, work.account_id)
        return work

    async def unlisted_versions(self) -> list[DatasetVersion]:
        """Imported before there were rows of images."""
        async with self._database.reading() as connection:
            return await store.unlisted_versions(connection, limit=SWEEP_BATCH)

    async def list_images_of(self, version: DatasetVersion, listing: Path) -> None:
        """Adds the rows of a version's images, unless another process has."""
        async with self._database.transaction() as tx:
            with suppress(asyncpg.UniqueViolationError):
                async with tx.connection.transaction():
                    await image_store.copy_images(tx.connection, version.dataset_version_id, listing)

    async def claim_import(self, token: str) -> Import | None:
        """The next one to work on, held under the token until the claim ends; None if there is none."""
        while True:
            async with self._database.transaction() as tx:
                work = await store.next_import(tx.connection, tx.now)
                if work is None:
                    return None
                work = await _save(tx, claimed(work, token, tx.now, tx.now + self._claim))
            if work.state is ImportState.IMPORTING:
                return work
            _count(work)

    async def prolong(self, token: str, *, images_done: int, images_total: int) -> None:
        """Keeps a claim, and shows progress. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            held = await store.prolong_claim(
                tx.connection, token, tx.now + self._claim, images_done=images_done, images_total=images_total
            )
        if not held:
            raise ClaimLostError

    async def give_back(self, work: Import, delay: timedelta) -> None:
        """Lets another process, or this one later, try it. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            await _save(tx, given_back(await _held(tx, work), tx.now + delay))
        self.import_queued.set()

    async def crash(self, work: Import) -> None:
        """After the death of its child process: queues it again, or fails it. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            work = await _save(tx, crashed(await _held(tx, work), tx.now))
        _count(work)
        self.import_queued.set()

    async def fail(self, work: Import, error: ImportFailedError) -> None:
        """Ends it. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            work = await _save(tx, failed(await _held(tx, work), error, tx.now))
        _count(work)

    async def succeed(
        self, work: Import, version: DatasetVersion, listing: Path, report: Json, *, images: int
    ) -> DatasetVersion:
        """Ends it with its version; with the former one where the account has the same content already: a version is
        its content, so the second is the first. `listing` is a file of its images, as listing.py writes it.
        Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            held = await _held(tx, work)
            version = replace(version, created_at=tx.now)
            if await store.insert_version(tx.connection, version):
                await image_store.copy_images(tx.connection, version.dataset_version_id, listing)
                await _publish(
                    tx,
                    events_pb2.DatasetVersionCreated(dataset_version=version_message(version)),
                    account_id=version.account_id,
                    resource_id=version.dataset_version_id,
                    revision=version.revision,
                )
            else:
                former = await store.version_of_content(tx.connection, version.account_id, version.content_hash)
                assert former is not None, "the insert met it"
                version = former
            work = await _save(tx, succeeded(held, version.dataset_version_id, report, images, tx.now))
        _count(work)
        return version

    async def live_claims(self, tokens: list[str]) -> set[str]:
        """Which of the tokens hold an import."""
        async with self._database.reading() as connection:
            return await store.live_claims(connection, tokens)

    # Versions

    async def version_of_content(self, account_id: str, content_hash: str) -> DatasetVersion | None:
        """The account's version of this content, if there is one."""
        async with self._database.reading() as connection:
            return await store.version_of_content(connection, account_id, content_hash)

    async def get_version(self, dataset_version_id: str) -> DatasetVersion:
        """Raises NotFoundError."""
        async with self._database.reading() as connection:
            version = await store.get_version(connection, dataset_version_id)
        if version is None:
            raise NotFoundError("dataset_version", dataset_version_id)
        current().own("dataset_version", dataset_version_id, version.account_id)
        return version

    async def list_versions(
        self, account_id: str, *, after: tuple[datetime, str] | None, limit: int
    ) -> list[DatasetVersion]:
        """Newest first."""
        async with self._database.reading() as connection:
            return await store.list_versions(connection, account_id, after=after, limit=limit)


def upload_prefix(upload: Upload) -> str:
    """Of the objects of an upload."""
    return f"{system_prefix(upload.account_id)}/uploads/{upload.upload_id}"


def chunk_key(upload: Upload, chunk: Chunk) -> str:
    """Of a chunk: sorted by offset, and another one for other bytes."""
    return f"{upload_prefix(upload)}/{chunk.offset_bytes:015d}-{chunk.sha256}"


async def _proven_store(connection: Connection, account_id: str) -> AccountStore:
    # Locked, so that the limits of an account are counted by one call at a time.
    found = await store.get_account_store(connection, account_id, lock=True)
    if found is None or found.proven_at is None:
        raise FailedPreconditionError(
            "STORE_NOT_PROVEN", "The account's place in the object store is not proven writable yet; try again later."
        )
    return found


async def _living_upload(tx: Transaction, upload_id: str, *, lock: bool = False) -> Upload:
    upload = await store.get_upload(tx.connection, upload_id, lock=lock)
    if upload is None:
        raise NotFoundError("upload", upload_id)
    current().own("upload", upload_id, upload.account_id)
    if not upload.lives(tx.now):
        raise FailedPreconditionError("UPLOAD_EXPIRED", "The upload was not used in time and is gone; start anew.")
    return upload


async def _take_upload(tx: Transaction, upload_id: str, account_id: str) -> None:
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
    await store.set_upload_expiry(tx.connection, upload_id, tx.now + UPLOAD_KEPT)


async def _held(tx: Transaction, work: Import) -> Import:
    held = await store.get_import(tx.connection, work.import_id, lock=True)
    if held is None or held.claim_token != work.claim_token:
        raise ClaimLostError
    return held


async def _save(tx: Transaction, work: Import) -> Import:
    work = await store.update_import(tx.connection, work)
    if work.ended_at is not None:
        if work.upload_id is not None:
            await store.set_upload_expiry(tx.connection, work.upload_id, tx.now + UPLOAD_KEPT_AFTER_IMPORT)
        await _publish(
            tx,
            events_pb2.ImportEnded(**{"import": import_event_message(work)}),
            account_id=work.account_id,
            resource_id=work.import_id,
            revision=work.revision,
        )
    return work


def _count(work: Import) -> None:
    if work.ended_at is not None:
        log.info("import_ended", import_id=work.import_id, state=work.state, reason=work.error_reason)
        imports_total.labels(work.state, work.error_reason).inc()


async def _publish(tx: Transaction, message: Message, *, account_id: str, resource_id: str, revision: int) -> None:
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, resource_id, revision),
        message,
        account_id=account_id,
        work_id=None,
        resource_id=resource_id,
    )
