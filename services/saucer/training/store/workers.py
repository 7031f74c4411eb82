"""Workers."""

from datetime import datetime

import asyncpg

from saucer.lib.postgres import Connection
from saucer.training.fleet import Worker

_WORKER = "w.worker_id, w.region_id, w.spec_id, w.first_seen_at, w.seen_at, w.draining"
_AT_WORK = "LEFT JOIN run r ON r.worker_id = w.worker_id AND r.state IN ('LEASED', 'RUNNING')"

# $1: not seen since then; $2: workers at most.
DELETE_OLD_WORKERS = """
    DELETE FROM worker WHERE worker_id IN (
        SELECT worker_id FROM worker w WHERE seen_at < $1 AND NOT EXISTS (
            SELECT FROM run r WHERE r.worker_id = w.worker_id AND state IN ('LEASED', 'RUNNING'))
        LIMIT $2)
"""


async def see_worker(connection: Connection, worker_id: str, region_id: str, spec_id: str, now: datetime) -> None:
    """It asks for a run."""
    await connection.execute(
        """
        INSERT INTO worker (worker_id, region_id, spec_id, first_seen_at, seen_at) VALUES ($1, $2, $3, $4, $4)
        ON CONFLICT (worker_id) DO UPDATE
        SET region_id = excluded.region_id, spec_id = excluded.spec_id, seen_at = excluded.seen_at
        """,
        worker_id,
        region_id,
        spec_id,
        now,
    )


async def drains(connection: Connection, worker_id: str) -> bool:
    """Whether it is to get no run."""
    return bool(await connection.fetchval("SELECT draining FROM worker WHERE worker_id = $1", worker_id))


async def set_draining(connection: Connection, worker_id: str, *, draining: bool) -> bool:
    """False if there is no such worker."""
    return bool(
        await connection.fetchval(
            "UPDATE worker SET draining = $2 WHERE worker_id = $1 RETURNING true", worker_id, draining
        )
    )


async def get_worker(connection: Connection, worker_id: str) -> Worker | None:
    """A worker with the run that it has."""
    row = await connection.fetchrow(
        f"SELECT {_WORKER}, r.run_id, r.beat_at FROM worker w {_AT_WORK} WHERE w.worker_id = $1 LIMIT 1",  # noqa: S608 - column names
        worker_id,
    )
    return _worker(row) if row else None


async def list_workers(connection: Connection, *, after: str | None, limit: int) -> list[Worker]:
    """By id."""
    rows = await connection.fetch(
        f"""
        SELECT DISTINCT ON (w.worker_id) {_WORKER}, r.run_id, r.beat_at FROM worker w {_AT_WORK}
        WHERE $1::text IS NULL OR w.worker_id > $1 ORDER BY w.worker_id LIMIT $2
        """,  # noqa: S608 - column names
        after,
        limit,
    )
    return [_worker(row) for row in rows]


def _worker(row: asyncpg.Record) -> Worker:
    return Worker(
        row["worker_id"],
        row["region_id"],
        row["spec_id"],
        row["first_seen_at"],
        max(row["seen_at"], row["beat_at"] or row["seen_at"]),
        row["draining"],
        str(row["run_id"]) if row["run_id"] else None,
    )
