"""Images of an account that are read because a caller asked: its store's owner pays for each, so they are counted.

The table image_read lies in the database of each service that reads so; its own schema makes it.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date
from typing import NamedTuple, Protocol

import structlog
from prometheus_client import Counter

from saucer.lib.errors import NotFoundError, ResourceExhaustedError
from saucer.lib.objects import Objects
from saucer.lib.postgres import Database

# Images of one answer, so that it fits what a gRPC client takes by default (4 MiB): the page ends before the image that
# would exceed it, and goes on with its token.
PAGE_IMAGES_BYTES = 3 * 1024**2
# A page has one image at least, up to this size: a client that is to see one of over 4 MiB must say so to its channel.
# A larger one comes empty, since no message of ours holds it (MAX_MESSAGE_BYTES).
MAX_SHOWN_BYTES = 16 * 1024**2

log = structlog.get_logger()
reads_total = Counter("saucer_image_reads_total", "Images read because a caller asked", ["service", "account_id"])
bytes_total = Counter("saucer_image_read_bytes_total", "Bytes of these images", ["service", "account_id"])


class StoredImage(NamedTuple):
    """Where an image lies; with its hash, if that is to be checked."""

    key: str
    sha256: str | None = None


class Read(Protocol):
    """Reads an image; raises as Objects.get() does, but NotFoundError."""

    async def __call__(self, image: StoredImage, max_bytes: int | None = None) -> bytes: ...


class ImageReads:
    """Reads them, counts the reads, and lists the counts."""

    def __init__(self, service: str, database: Database, objects: Objects) -> None:
        self._service = service
        self._database = database
        self._objects = objects

    async def page(
        self, account_id: str, images: Sequence[StoredImage], most_bytes: int = PAGE_IMAGES_BYTES
    ) -> list[bytes]:
        """Of the first so many as fit into an answer, of one at least; of one that is gone or too large, nothing.

        It ends where another as large as its largest would not fit: to ask the store for its size is a request, too.
        """
        shown: list[bytes] = []
        left, largest = most_bytes, 0
        async with self.counted(account_id) as read:
            for image in images:
                if left < largest:
                    break
                try:
                    data = await read(image, min(left, MAX_SHOWN_BYTES) if shown else MAX_SHOWN_BYTES)
                except ResourceExhaustedError:
                    if shown:
                        break
                    log.warning("image_too_large_to_show", key=image.key)
                    data = b""
                shown.append(data)
                left, largest = left - len(data), max(largest, len(data))
        return shown

    @asynccontextmanager
    async def counted(self, account_id: str) -> AsyncIterator[Read]:
        """What is read within is counted when it is over, also where a later read failed: it was paid for.

        An image that is gone is empty. It is a read of no bytes, and so is one that is refused for its size, though the
        store may have begun to send it.
        """
        reads = size_bytes = 0

        async def read(image: StoredImage, max_bytes: int | None = None) -> bytes:
            nonlocal reads, size_bytes
            reads += 1
            try:
                data = await self._objects.get(image.key, sha256=image.sha256, max_bytes=max_bytes)
            except NotFoundError:
                log.warning("image_gone", account_id=account_id, key=image.key)
                return b""
            size_bytes += len(data)
            return data

        try:
            yield read
        finally:
            await self._count(account_id, reads, size_bytes)

    async def _count(self, account_id: str, reads: int, size_bytes: int) -> None:
        if not reads:
            return
        reads_total.labels(self._service, account_id).inc(reads)
        bytes_total.labels(self._service, account_id).inc(size_bytes)
        async with self._database.transaction() as tx:
            await tx.connection.execute(
                """
                INSERT INTO image_read (account_id, day, reads, bytes) VALUES ($1, $2, $3, $4)
                ON CONFLICT (account_id, day) DO UPDATE
                SET reads = image_read.reads + excluded.reads, bytes = image_read.bytes + excluded.bytes
                """,
                account_id,
                tx.now.date(),
                reads,
                size_bytes,
            )

    async def list_days(self, account_id: str, *, before: date | None, limit: int) -> list[tuple[date, int, int]]:
        """Days (UTC) with the reads and bytes of each, newest first."""
        async with self._database.reading() as connection:
            rows = await connection.fetch(
                """
                SELECT day, reads, bytes FROM image_read WHERE account_id = $1 AND ($2::date IS NULL OR day < $2)
                ORDER BY day DESC LIMIT $3
                """,
                account_id,
                before,
                limit,
            )
        return [(row["day"], row["reads"], row["bytes"]) for row in rows]
