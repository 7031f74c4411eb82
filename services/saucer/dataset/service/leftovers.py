"""Images that imports which failed have stored, and that no version names: removed, and counted no more.

1. An import that failed after it had stored images marks its account. It cannot remove them itself: another import may
   have found the same images there, and count on them without having written anything.
2. So the account's leftovers are removed while none of its imports is claimed, and none is claimed meanwhile. Both
   sides lock the account's row to see each other. A queued import counts on nothing: it finds its images anew, or
   stores them. If none is claimed, queued ones wait for the removal, so that they find the room that it makes.
3. All images of the account are listed, and those that no version has are removed: of lost attempts too, of which
   nobody knows what they wrote. Drafts have no images but their version's, and versions stay.
4. What is left is the account's new count.
5. A process removes only in the first HELD_FOR_S of a hold that lasts HOLD: one that was frozen, or whose request is
   late, removes nothing once another may have ended the removal and an import counts on what it found. For that a
   removal that breaks off is not given back either: its hold expires.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import structlog
from prometheus_client import Counter

from saucer.dataset.storage import images_prefix
from saucer.dataset.store import accounts as account_store
from saucer.dataset.store import images as image_store
from saucer.lib.claims import ClaimLostError
from saucer.lib.objects import Listed, Objects
from saucer.lib.postgres import Database

# Longer than an object store takes for a request, with all repetitions.
HOLD = timedelta(minutes=10)
HELD_FOR_S = 60.0
# Accounts taken in one round; more wait for the next.
ACCOUNTS_BATCH = 100
# Images looked up, and removed, together.
PAGE = 1_000
REMOVALS_AT_ONCE = 8

log = structlog.get_logger()
images_removed_total = Counter("saucer_dataset_images_removed_total", "Images of failed imports that no version named")


class Leftovers:
    """Of accounts whose imports failed."""

    def __init__(self, database: Database, objects: Objects) -> None:
        self._database = database
        self._objects = objects

    async def due(self) -> list[str]:
        """Accounts whose leftovers can be removed now; those beyond ACCOUNTS_BATCH come later."""
        async with self._database.reading() as connection:
            now = await self._database.clock.now(connection)
            return await account_store.accounts_with_leftovers(connection, now, limit=ACCOUNTS_BATCH)

    async def remove(self, account_id: str, token: str) -> bool:
        """Removes them under a hold of this token; False if there are none, or not now.

        Raises UnavailableError, ClaimLostError: another process has taken over.
        """
        hold = _Hold(self._database, account_id, token)
        if not await hold.begin():
            return False
        removed, kept_bytes = 0, 0
        async for images in _pages(self._objects, account_id):
            async with self._database.reading() as connection:
                named = await image_store.named(connection, account_id, list(images))
            await self._delete([image for name, image in images.items() if name not in named], hold)
            kept_bytes += sum(image.size_bytes for name, image in images.items() if name in named)
            removed += len(images) - len(named)
        await hold.end(kept_bytes)
        images_removed_total.inc(removed)
        log.info("leftovers_removed", account_id=account_id, images=removed, kept_bytes=kept_bytes)
        return True

    async def _delete(self, images: Sequence[Listed], hold: "_Hold") -> None:
        for start in range(0, len(images), REMOVALS_AT_ONCE):
            await hold.keep()
            await asyncio.gather(
                *(self._objects.delete(image.key) for image in images[start : start + REMOVALS_AT_ONCE])
            )


class _Hold:
    """Of one process, on the images of an account."""

    def __init__(self, database: Database, account_id: str, token: str) -> None:
        self._database = database
        self._account_id = account_id
        self._token = token
        self._since_s = 0.0

    async def begin(self) -> bool:
        """False if it is another's, if there is nothing to remove, or if that cannot be told yet."""
        self._since_s = time.monotonic()
        async with self._database.transaction() as tx:
            if not await account_store.lock_leftovers(tx.connection, self._account_id, tx.now):
                return False
            # Looked at only now: what was claimed before the lock is seen, and nothing is claimed after it.
            if await account_store.is_importing(tx.connection, self._account_id):
                return False
            if await account_store.has_unlisted_version(tx.connection, self._account_id):
                # Of which it is not known what images it has.
                log.warning("leftovers_kept", account_id=self._account_id)
                await account_store.forget_leftovers(tx.connection, self._account_id)
                return False
            await account_store.hold_leftovers(tx.connection, self._account_id, self._token, tx.now + HOLD)
        return True

    async def keep(self) -> None:
        """To be awaited before each removal. Raises ClaimLostError."""
        if time.monotonic() - self._since_s < HELD_FOR_S:
            return
        asked_s = time.monotonic()
        async with self._database.transaction() as tx:
            if not await account_store.prolong_removal(tx.connection, self._account_id, self._token, tx.now + HOLD):
                raise ClaimLostError
        self._since_s = asked_s

    async def end(self, kept_bytes: int) -> None:
        """Imports go on. Raises ClaimLostError."""
        async with self._database.transaction() as tx:
            if not await account_store.end_removal(tx.connection, self._account_id, self._token, kept_bytes, tx.now):
                raise ClaimLostError


async def _pages(objects: Objects, account_id: str) -> AsyncIterator[dict[str, Listed]]:
    """An account's images by hash, PAGE at a time."""
    page: dict[str, Listed] = {}
    async for image in objects.listed(images_prefix(account_id)):
        page[image.key.rpartition("/")[2]] = image
        if len(page) == PAGE:
            yield page
            page = {}
    if page:
        yield page
