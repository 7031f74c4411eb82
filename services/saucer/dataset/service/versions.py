"""Versions: read, and the rows of their images."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path

import asyncpg

from saucer.dataset.domain import DatasetVersion
from saucer.dataset.store import images as image_store
from saucer.dataset.store import versions as version_store
from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.postgres import Database

# Of versions without rows, taken in one round; more wait for the next.
UNLISTED_BATCH = 100


class Versions:
    """Immutable sets of images and labels."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_content(self, account_id: str, content_hash: str) -> DatasetVersion | None:
        """The account's version of this content, if there is one."""
        async with self._database.reading() as connection:
            return await version_store.version_of_content(connection, account_id, content_hash)

    async def get(self, dataset_version_id: str) -> DatasetVersion:
        """Raises NotFoundError."""
        async with self._database.reading() as connection:
            version = await version_store.get_version(connection, dataset_version_id)
        if version is None:
            raise NotFoundError("dataset_version", dataset_version_id)
        current().own("dataset_version", dataset_version_id, version.account_id)
        return version

    async def list_versions(
        self, account_id: str, *, after: tuple[datetime, str] | None, limit: int
    ) -> list[DatasetVersion]:
        """Newest first."""
        async with self._database.reading() as connection:
            return await version_store.list_versions(connection, account_id, after=after, limit=limit)

    async def unlisted(self) -> list[DatasetVersion]:
        """Imported before there were rows of images."""
        async with self._database.reading() as connection:
            return await version_store.unlisted_versions(connection, limit=UNLISTED_BATCH)

    async def list_images_of(self, version: DatasetVersion, listing: Path) -> None:
        """Adds the rows of a version's images, unless another process has."""
        async with self._database.transaction() as tx:
            with suppress(asyncpg.UniqueViolationError):
                async with tx.connection.transaction():
                    await image_store.copy_images(tx.connection, version.dataset_version_id, listing)
