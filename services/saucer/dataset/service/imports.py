"""Imports: queued, claimed by a process, ended with a version. What a claimed one does is in work.py."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import structlog
from prometheus_client import Counter

from saucer.dataset.domain import (
    MAX_OPEN_IMPORTS,
    MAX_WAIT,
    UPLOAD_KEPT_AFTER_IMPORT,
    DatasetVersion,
    Import,
    ImportFailedError,
    ImportRequest,
    ImportState,
    Json,
    SourceFormat,
    claimed,
    crashed,
    failed,
    given_back,
    overdue,
    queued,
    succeeded,
)
from saucer.dataset.messages import import_event_message, version_message
from saucer.dataset.service.changes import publish
from saucer.dataset.service.stores import proven_store
from saucer.dataset.service.uploads import take_upload
from saucer.dataset.storage import ROOM_BYTES
from saucer.dataset.store import accounts as account_store
from saucer.dataset.store import images as image_store
from saucer.dataset.store import imports as import_store
from saucer.dataset.store import uploads as upload_store
from saucer.dataset.store import versions as version_store
from saucer.dataset.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.claims import ClaimLostError
from saucer.lib.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from saucer.lib.objects import check_key, user_prefix
from saucer.lib.postgres import Database, Transaction

log = structlog.get_logger()
imports_total = Counter("saucer_dataset_imports_total", "Imports that came to an end", ["state", "reason"])


class Imports:
    """From a source to a version."""

    def __init__(self, database: Database, *, claim: timedelta) -> None:
        """`claim` is how long an import stays with a process that does not prolong it."""
        self._database = database
        self._claim_length = claim
        # Set after a commit that queued an import: the workers wait on it, with a poll as the net.
        self.queued = asyncio.Event()

    async def create(self, import_id: str, request: ImportRequest) -> Import:
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
            await proven_store(tx.connection, request.account_id)
            former = await import_store.get_import(tx.connection, import_id)
            if former is not None:
                if not former.answers(request):
                    raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another import.")
                return former
            if await import_store.count_open_imports(tx.connection, request.account_id) >= MAX_OPEN_IMPORTS:
                raise ResourceExhaustedError(
                    "TOO_MANY_IMPORTS", f"At most {MAX_OPEN_IMPORTS} imports may wait; try again when one has ended."
                )
            if request.upload_id is not None:
                await take_upload(tx, request.upload_id, request.account_id)
            if request.draft_id is not None:
                # Locked, so that it is not deleted meanwhile.
                draft = await image_store.get_draft(tx.connection, request.draft_id, lock=True)
                if draft is None or draft.account_id != request.account_id or draft.state != "OPEN":
                    raise NotFoundError("draft", request.draft_id)
            work = queued(import_id, request, tx.now)
            await import_store.insert_import(tx.connection, work)
        self.queued.set()
        return work

    async def get(self, import_id: str) -> Import:
        """Raises NotFoundError."""
        async with self._database.reading() as connection:
            work = await import_store.get_import(connection, import_id)
        if work is None:
            raise NotFoundError("import", import_id)
        current().own("import", import_id, work.account_id)
        return work

    async def claim(self, token: str) -> Import | None:
        """The next one to work on, held under the token until the claim ends; None if there is none."""
        while True:
            async with self._database.transaction() as tx:
                work = await import_store.next_import(tx.connection, tx.now)
                if work is None:
                    return None
                if not await account_store.lock_against_removal(tx.connection, work.account_id):
                    continue
                work = await _save(tx, claimed(work, token, tx.now, tx.now + self._claim_length))
            if work.state is ImportState.IMPORTING:
                return work
            _count(work)

    async def end_overdue(self) -> bool:
        """Ends one that has waited too long, whatever keeps it from being claimed; False: there is none."""
        async with self._database.transaction() as tx:
            work = await import_store.overdue_import(tx.connection, tx.now - MAX_WAIT)
            if work is None:
                return False
            work = await _save(tx, overdue(work, tx.now))
        _count(work)
        return True

    async def prolong(self, token: str, *, images_done: int, images_total: int) -> None:
        """Keeps a claim, and shows progress. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            held = await import_store.prolong_claim(
                tx.connection, token, tx.now + self._claim_length, images_done=images_done, images_total=images_total
            )
        if not held:
            raise ClaimLostError

    async def reserve(self, work: Import, size_bytes: int) -> int | None:
        """Room for images that a claimed import is about to store, of `size_bytes` and for some more. None: no limit.

        Raises ImportFailedError QUOTA_STORAGE, ClaimLostError.
        """
        async with self._database.transaction() as tx:
            held = await _held(tx, work)
            # Locked, so that what is left of an account is shared out by one call at a time.
            await account_store.get_account_store(tx.connection, held.account_id, lock=True)
            left = await account_store.storage_left(tx.connection, held.account_id, with_uploads=False)
            if left is not None and size_bytes > left:
                had = left + await account_store.reserved_bytes(tx.connection, held.import_id)
                raise ImportFailedError(
                    "QUOTA_STORAGE", f"The account has room for {max(0, had):,} bytes of new images; these are more."
                )
            reserved = None if left is None else min(max(size_bytes, ROOM_BYTES), left)
            await account_store.reserve(tx.connection, held.import_id, reserved or 0)
        return reserved

    async def stored(self, work: Import, size_bytes: int) -> None:
        """Counts what an import has stored instead of what it reserved, whether it succeeds or not."""
        assert work.claim_token is not None
        async with self._database.transaction() as tx:
            await account_store.end_reservation(tx.connection, work.claim_token)
            await account_store.add_stored(tx.connection, work.account_id, size_bytes)

    async def give_back(self, work: Import, delay: timedelta) -> None:
        """Lets another process, or this one later, try it. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            await _save(tx, given_back(await _held(tx, work), tx.now + delay))
        self.queued.set()

    async def crash(self, work: Import) -> None:
        """After the death of its child process: queues it again, or fails it. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            work = await _save(tx, crashed(await _held(tx, work), tx.now))
        _count(work)
        self.queued.set()

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
            if await version_store.insert_version(tx.connection, version):
                await image_store.copy_images(tx.connection, version.dataset_version_id, listing)
                await publish(
                    tx,
                    events_pb2.DatasetVersionCreated(dataset_version=version_message(version)),
                    account_id=version.account_id,
                    resource_id=version.dataset_version_id,
                    revision=version.revision,
                )
            else:
                former = await version_store.version_of_content(tx.connection, version.account_id, version.content_hash)
                assert former is not None, "the insert met it"
                version = former
            work = await _save(tx, succeeded(held, version.dataset_version_id, report, images, tx.now))
        _count(work)
        return version

    async def live_claims(self, tokens: list[str]) -> set[str]:
        """Which of the tokens hold an import."""
        async with self._database.reading() as connection:
            return await import_store.live_claims(connection, tokens)


async def _held(tx: Transaction, work: Import) -> Import:
    held = await import_store.get_import(tx.connection, work.import_id, lock=True)
    if held is None or held.claim_token != work.claim_token:
        raise ClaimLostError
    return held


async def _save(tx: Transaction, work: Import) -> Import:
    work = await import_store.update_import(tx.connection, work)
    if work.state is ImportState.FAILED:
        await account_store.mark_leftovers(tx.connection, work)
    if work.ended_at is not None:
        if work.upload_id is not None:
            await upload_store.set_upload_expiry(tx.connection, work.upload_id, tx.now + UPLOAD_KEPT_AFTER_IMPORT)
        await publish(
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
