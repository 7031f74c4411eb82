"""Accounts' places in the object store: met, proven writable, and how much lies there."""

import structlog
from prometheus_client import Counter

from saucer.dataset.domain import AccountStore
from saucer.dataset.service.changes import publish
from saucer.dataset.storage import images_prefix
from saucer.dataset.store import accounts as account_store
from saucer.dataset.v1 import events_pb2
from saucer.lib.errors import FailedPreconditionError, NotFoundError, UnavailableError
from saucer.lib.objects import Objects, system_prefix, user_prefix
from saucer.lib.postgres import Connection, Database

# Taken in one round; more wait for the next.
PROOF_BATCH = 100
COUNT_BATCH = 100
_PROBE = b"Saucer may write here."

log = structlog.get_logger()
stores_proven_total = Counter("saucer_dataset_stores_proven_total", "Accounts' prefixes that were proven writable")


class Stores:
    """Until an account's is proven, it can neither upload nor import."""

    def __init__(self, database: Database, objects: Objects) -> None:
        self._database = database
        self._objects = objects

    async def meet(self, account_id: str) -> None:
        """Remembers an account, whose store is to be proven."""
        async with self._database.transaction() as tx:
            await account_store.insert_account_store(tx.connection, account_id, user_prefix(account_id), tx.now)

    async def set_quota(self, account_id: str, storage_bytes: int | None, revision: int) -> None:
        """What an account may store, as billing tells it; an older word than what is known changes nothing."""
        async with self._database.transaction() as tx:
            await account_store.insert_account_store(tx.connection, account_id, user_prefix(account_id), tx.now)
            await account_store.set_storage_limit(tx.connection, account_id, storage_bytes, revision)

    async def uncounted(self) -> list[str]:
        """Whose images may lack in the count; those beyond COUNT_BATCH come later."""
        async with self._database.reading() as connection:
            return await account_store.uncounted_accounts(connection, limit=COUNT_BATCH)

    async def count(self, account_id: str) -> bool:
        """Counts what an account's images take in the object store, which imports from before the count did not.

        False: an import stored some meanwhile; it is to be done again. Raises UnavailableError.
        """
        async with self._database.reading() as connection:
            before_bytes = await account_store.stored_bytes(connection, account_id)
        images = self._objects.listed(images_prefix(account_id))
        counted_bytes = sum([image.size_bytes async for image in images])
        async with self._database.transaction() as tx:
            return await account_store.set_counted(
                tx.connection, account_id, counted_bytes, before_bytes=before_bytes, now=tx.now
            )

    async def prove(self, account_id: str, probe_id: str) -> None:
        """Writes, reads and removes an object below both prefixes of an account; then imports are taken for it.

        Raises UnavailableError where one of the three does not work: it may later.
        """
        async with self._database.reading() as connection:
            known = await account_store.get_account_store(connection, account_id)
        if known is None or known.proven_at is not None:
            return
        for prefix in (user_prefix(account_id), system_prefix(account_id)):
            await self._probe(f"{prefix}/probe-{probe_id}")
        async with self._database.transaction() as tx:
            proven = await account_store.prove_account_store(tx.connection, account_id, tx.now)
            if proven is None:
                return
            await publish(
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

    async def unproven(self) -> list[str]:
        """Oldest first; those beyond PROOF_BATCH come later."""
        async with self._database.reading() as connection:
            return await account_store.unproven_accounts(connection, limit=PROOF_BATCH)


async def proven_store(connection: Connection, account_id: str) -> AccountStore:
    """Raises FailedPreconditionError: STORE_NOT_PROVEN."""
    # Locked, so that the limits of an account are counted by one call at a time.
    found = await account_store.get_account_store(connection, account_id, lock=True)
    if found is None or found.proven_at is None:
        raise FailedPreconditionError(
            "STORE_NOT_PROVEN", "The account's place in the object store is not proven writable yet; try again later."
        )
    return found
