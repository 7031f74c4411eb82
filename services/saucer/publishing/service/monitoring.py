"""What a deployment's details show: requests by version over time, what happened, and what its models said."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from saucer.lib.postgres import Connection, Database
from saucer.publishing.batching import Counters, CountersAt, by_piece
from saucer.publishing.domain import DeploymentEvent, KeptLine, LogLine
from saucer.publishing.service.changes import shown
from saucer.publishing.store import deployments as store
from saucer.publishing.store import monitoring as monitoring_store
from saucer.publishing.traffic import PIECE, Piece, merge

# Pieces of time that one answer has at most; a longer time is cut at its end.
MAX_PIECES = 1000
LONGEST_SPAN = MAX_PIECES * PIECE
# Rows that are read for them: several versions and replicas have one each.
MAX_ROWS = 8 * MAX_PIECES
MAX_EVENTS = 1000
DEFAULT_SPAN = timedelta(hours=1)
# Nothing is older; there is no time to reckon with a while before the first that a request may name.
FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)


class Monitoring:
    """Kept for as long as the settings say."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store_pieces(self, replica: str, pieces: Sequence[Piece]) -> None:
        """Of one replica."""
        if pieces:
            async with self._database.transaction() as tx:
                await monitoring_store.insert_pieces(tx.connection, replica, pieces)

    async def store_readings(self, readings: Sequence[tuple[str, CountersAt]]) -> None:
        """Of several deployments, with their ids."""
        if readings:
            async with self._database.transaction() as tx:
                await monitoring_store.insert_readings(tx.connection, readings)

    async def store_lines(
        self, deployment_id: str, version_number: int, triton_id: str, process: str, lines: Sequence[LogLine]
    ) -> None:
        """What one process has said; lines that are kept already stay."""
        if lines:
            async with self._database.transaction() as tx:
                await monitoring_store.insert_lines(
                    tx.connection, deployment_id, version_number, triton_id, process, lines
                )

    async def list_pieces(
        self, deployment_id: str, start: datetime | None, end: datetime | None
    ) -> list[tuple[Piece, Counters]]:
        """With what Triton counted, as far as that is known; oldest first.

        `start` None: an hour before `end`, `end` None: now. Raises NotFoundError.
        """
        async with self._database.transaction() as tx:
            await self._check(tx.connection, deployment_id)
            end = max(end or tx.now + PIECE, FIRST_TIME)
            start = max(start or end - DEFAULT_SPAN, FIRST_TIME)
            if end - start > LONGEST_SPAN:
                end = start + LONGEST_SPAN
            pieces = merge(await monitoring_store.list_pieces(tx.connection, deployment_id, start, end, MAX_ROWS))
            # One more before them, to compare the first with.
            readings = await monitoring_store.list_readings(tx.connection, deployment_id, start - PIECE, end, MAX_ROWS)
        counted = by_piece(readings)
        return [(piece, counted.get((piece.version_number, piece.began_at), Counters())) for piece in pieces]

    async def list_events(self, deployment_id: str) -> list[DeploymentEvent]:
        """Those that happened last first. Raises NotFoundError."""
        async with self._database.reading() as connection:
            await self._check(connection, deployment_id)
            return await monitoring_store.list_events(connection, deployment_id, MAX_EVENTS)

    async def list_lines(self, deployment_id: str, *, before: int | None, limit: int) -> list[KeptLine]:
        """Those that came last first; `before`: a position. Raises NotFoundError."""
        async with self._database.reading() as connection:
            await self._check(connection, deployment_id)
            return await monitoring_store.list_lines(connection, deployment_id, before=before, limit=limit)

    @staticmethod
    async def _check(connection: Connection, deployment_id: str) -> None:
        shown(await store.get(connection, deployment_id), deployment_id)
