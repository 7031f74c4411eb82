"""What a deployment's details show: requests by version over time, and what happened."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.postgres import Connection, Database
from saucer.publishing import monitoring_store, store
from saucer.publishing.domain import DeploymentEvent
from saucer.publishing.traffic import PIECE, Piece, merge

# Pieces of time that one answer has at most; a longer time is cut at its end.
MAX_PIECES = 1000
# Rows that are read for them: several versions and replicas have one each.
MAX_ROWS = 8 * MAX_PIECES
MAX_EVENTS = 1000
DEFAULT_SPAN = timedelta(hours=1)


class Monitoring:
    """Kept for as long as the settings say."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store_pieces(self, replica: str, pieces: Sequence[Piece]) -> None:
        """Of one replica."""
        if pieces:
            async with self._database.transaction() as tx:
                await monitoring_store.insert_pieces(tx.connection, replica, pieces)

    async def list_pieces(self, deployment_id: str, start: datetime | None, end: datetime | None) -> list[Piece]:
        """Oldest first; `start` None: an hour before `end`, `end` None: now. Raises NotFoundError."""
        async with self._database.transaction() as tx:
            await self._check(tx.connection, deployment_id)
            end = end or tx.now + PIECE
            start = start or end - DEFAULT_SPAN
            end = min(end, start + MAX_PIECES * PIECE)
            return merge(await monitoring_store.list_pieces(tx.connection, deployment_id, start, end, MAX_ROWS))

    async def list_events(self, deployment_id: str) -> list[DeploymentEvent]:
        """Those that happened last first. Raises NotFoundError."""
        async with self._database.reading() as connection:
            await self._check(connection, deployment_id)
            return await monitoring_store.list_events(connection, deployment_id, MAX_EVENTS)

    @staticmethod
    async def _check(connection: Connection, deployment_id: str) -> None:
        deployment = await store.get(connection, deployment_id)
        if deployment is None:
            raise NotFoundError("deployment", deployment_id)
        current().own("deployment", deployment_id, deployment.account_id)
