"""Which run is next, and which waited or were held for too long."""

from datetime import datetime

from saucer.lib.postgres import Connection
from saucer.training.domain import Run
from saucer.training.store.runs import read_run


async def next_queued(connection: Connection, region_id: str, spec_id: str) -> Run | None:
    """The run to lease next, locked: of the account with the fewest at work, the one that waits longest."""
    row = await connection.fetchrow(
        """
        SELECT * FROM run r WHERE state = 'QUEUED' AND region_id = $1 AND spec_id = $2
        ORDER BY (SELECT count(*) FROM run o WHERE o.account_id = r.account_id AND o.state IN ('LEASED', 'RUNNING')),
                 queued_at, run_id
        LIMIT 1 FOR UPDATE SKIP LOCKED
        """,
        region_id,
        spec_id,
    )
    return read_run(row) if row else None


async def expired(connection: Connection, now: datetime, limit: int) -> list[Run]:
    """Leased runs whose lease is over, locked."""
    rows = await connection.fetch(
        """
        SELECT * FROM run WHERE state IN ('LEASED', 'RUNNING') AND lease_expires_at < $1
        ORDER BY lease_expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
        """,
        now,
        limit,
    )
    return [read_run(row) for row in rows]


async def queued_since(connection: Connection, time: datetime, finish_only_time: datetime, limit: int) -> list[Run]:
    """Queued runs that waited since before `time`, or, with a stop or a loss behind them, the other; locked."""
    rows = await connection.fetch(
        """
        SELECT * FROM run
        WHERE state = 'QUEUED'
          AND (queued_at < $1 OR (queued_at < $2 AND (stop_reason IS NOT NULL OR lost_attempts > 0)))
        ORDER BY queued_at LIMIT $3 FOR UPDATE SKIP LOCKED
        """,
        time,
        finish_only_time,
        limit,
    )
    return [read_run(row) for row in rows]


async def queue_depths(connection: Connection) -> dict[tuple[str, str], int]:
    """Queued runs by region and spec."""
    rows = await connection.fetch(
        "SELECT region_id, spec_id, count(*) AS runs FROM run WHERE state = 'QUEUED' GROUP BY 1, 2"
    )
    return {(row["region_id"], row["spec_id"]): row["runs"] for row in rows}
