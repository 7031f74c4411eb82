"""Mapped roots: further places that an administrator lets an account import from. Only imports read there."""

import asyncio
from pathlib import Path

from obstore.exceptions import BaseError as StoreError

from saucer.dataset.domain import ImportFailedError, MappedRoot
from saucer.dataset.store import accounts as account_store
from saucer.dataset.store import roots as root_store
from saucer.lib.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from saucer.lib.objects import Objects
from saucer.lib.postgres import Database

# Of an account; one more is refused.
MAX_ROOTS = 100
SCHEMES = ("file:///", "s3://")


class Roots:
    """Of every account."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def map(self, account_id: str, name: str, url: str) -> MappedRoot:
        """Raises NotFoundError: no such account. InvalidArgumentError: URL_INVALID. ResourceExhaustedError."""
        await _open(url)
        async with self._database.transaction() as tx:
            if await account_store.get_account_store(tx.connection, account_id, lock=True) is None:
                raise NotFoundError("account", account_id)
            former = await root_store.list_roots(tx.connection, account_id)
            if len(former) >= MAX_ROOTS and name not in {root.name for root in former}:
                raise ResourceExhaustedError("TOO_MANY_ROOTS", f"An account has at most {MAX_ROOTS} mapped roots.")
            root = MappedRoot(account_id, name, url, tx.now)
            await root_store.put_root(tx.connection, root)
        return root

    async def unmap(self, account_id: str, name: str) -> MappedRoot:
        """Raises NotFoundError."""
        async with self._database.transaction() as tx:
            root = await root_store.delete_root(tx.connection, account_id, name)
        if root is None:
            raise NotFoundError("mapped_root", name)
        return root

    async def list(self, account_id: str) -> "list[MappedRoot]":
        """By name."""
        async with self._database.reading() as connection:
            return await root_store.list_roots(connection, account_id)

    async def open(self, account_id: str, name: str) -> Objects:
        """What lies there. Raises ImportFailedError ROOT_UNKNOWN."""
        for root in await self.list(account_id):
            if root.name == name:
                try:
                    return await _open(root.url)
                except InvalidArgumentError as error:
                    raise ImportFailedError("ROOT_UNKNOWN", f"The root {name} is not there any more.") from error
        raise ImportFailedError("ROOT_UNKNOWN", f"No root {name} is mapped for the account; ask an administrator.")


async def _open(url: str) -> Objects:
    problem = f"url: {url} is neither an existing folder (file:///…) nor a bucket (s3://…)."
    if not url.startswith(SCHEMES):
        raise InvalidArgumentError("URL_INVALID", problem)
    if url.startswith("file://") and not await asyncio.to_thread(Path(url.removeprefix("file://")).is_dir):
        raise InvalidArgumentError("URL_INVALID", problem)
    try:
        return Objects(url)
    except (StoreError, ValueError) as error:
        raise InvalidArgumentError("URL_INVALID", problem) from error
