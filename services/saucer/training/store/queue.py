"""Which run is next, and which waited or were held for too long."""

from datetime import datetime, timedelta

from saucer.lib.postgres import Connection
from saucer.training.domain import MAX_ATTEMPTS, Run
from saucer.training.fleet import Queue
from saucer.training.store.runs import read_run

# A wait of this length, since the account got a run here last, counts as one run fewer at work: no account waits for
# ever beside one of many short runs.
AGEING = timedelta(minutes=10)
# Well below postgres.COMMAND_TIMEOUT_S, after which those who wait for the turn give up.
TURN_LIMIT = timedelta(seconds=3)


async def wait_turn(connection: Connection) -> None:
    """Until this transaction alone chooses a run, over all replicas.

    PostgreSQL ends it if it then falls silent for TURN_LIMIT: a replica that is frozen in its turn stops no other.
    """
    await connection.execute(
        f"SET LOCAL idle_in_transaction_session_timeout = '{TURN_LIMIT.seconds}s'; SELECT FROM lease_turn FOR UPDATE"
    )


async def any_ready(connection: Connection, region_id: str, spec_id: str, now: datetime) -> bool:
    """Whether a run waits that may be leased. Cheap: workers that idle ask each second."""
    return bool(
        await connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM run WHERE state = 'QUEUED' AND region_id = $1 AND spec_id = $2
                           AND (ready_at IS NULL OR ready_at <= $3))
            """,
            region_id,
            spec_id,
            now,
        )
    )


async def next_queued(connection: Connection, region_id: str, spec_id: str, now: datetime) -> Run | None:
    """The run to lease next by the policy of service/leases.py, locked. The caller has the turn."""
    row = await connection.fetchrow(
        """
        WITH ready AS (
            SELECT * FROM run WHERE state = 'QUEUED' AND region_id = $1 AND spec_id = $2
            AND (ready_at IS NULL OR ready_at <= $3)
        ), waiting AS (
            SELECT account_id, min(queued_at) AS oldest_queued_at FROM ready GROUP BY account_id
        ), aged AS (
            SELECT waiting.account_id, greatest(oldest_queued_at, granted_at) AS since
            FROM waiting LEFT JOIN last_grant AS g
            ON g.account_id = waiting.account_id AND g.region_id = $1 AND g.spec_id = $2
        ), busy AS (
            SELECT account_id, count(*) AS runs FROM run WHERE state IN ('LEASED', 'RUNNING') GROUP BY account_id
        ), account AS (
            SELECT account_id,
                   coalesce(busy.runs, 0)::float8 / coalesce(weight, 1)
                   - extract(epoch FROM $3 - since)::float8 / $4 AS place,
                   since
            FROM aged LEFT JOIN busy USING (account_id) LEFT JOIN account_share USING (account_id)
            WHERE running_limit IS NULL OR coalesce(busy.runs, 0) < running_limit
        ), choice AS (
            SELECT run_id FROM ready JOIN account USING (account_id)
            ORDER BY place, since, account_id, priority DESC, (started_at IS NULL), queued_at, run_id LIMIT 1
        )
        SELECT * FROM run WHERE run_id IN (SELECT run_id FROM choice) AND state = 'QUEUED' FOR UPDATE
        """,
        region_id,
        spec_id,
        now,
        AGEING.total_seconds(),
    )
    return read_run(row) if row else None


async def note_grant(connection: Connection, run: Run, now: datetime) -> None:
    """The run's account got it; what else it has waiting in this queue waits from now on."""
    await connection.execute(
        """
        INSERT INTO last_grant (region_id, spec_id, account_id, granted_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (region_id, spec_id, account_id) DO UPDATE SET granted_at = excluded.granted_at
        """,
        run.request.region_id,
        run.request.spec_id,
        run.request.account_id,
        now,
    )


async def set_share(
    connection: Connection, account_id: str, weight: int, running_limit: int | None, revision: int
) -> None:
    """Unless what is there is as new."""
    await connection.execute(
        """
        INSERT INTO account_share AS s (account_id, weight, running_limit, revision) VALUES ($1, $2, $3, $4)
        ON CONFLICT (account_id) DO UPDATE
        SET weight = excluded.weight, running_limit = excluded.running_limit, revision = excluded.revision
        WHERE s.revision < excluded.revision
        """,
        account_id,
        weight,
        running_limit,
        revision,
    )


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
    """Queued runs that waited since before `time`, or, if they are only to be finished, the other; locked.

    As Run.finish_only says it, so that runs with hours left to wait take no place from those that waited too long.
    """
    rows = await connection.fetch(
        """
        SELECT * FROM run
        WHERE state = 'QUEUED'
          AND (queued_at < $1 OR (queued_at < $2 AND (
              lost_attempts >= $4
              OR (stop_reason IS NOT NULL AND charged_ms >= stop_at_charged_ms AND started_at IS NOT NULL)
          )))
        ORDER BY queued_at LIMIT $3 FOR UPDATE SKIP LOCKED
        """,
        time,
        finish_only_time,
        limit,
        MAX_ATTEMPTS,
    )
    return [read_run(row) for row in rows]


async def list_queues(connection: Connection, seen_since: datetime) -> list[Queue]:
    """By region and spec, those with runs or workers; workers count that were seen since then and are not drained."""
    rows = await connection.fetch(
        """
        WITH runs AS (
            SELECT region_id, spec_id, count(*) FILTER (WHERE state = 'QUEUED') AS queued,
                   count(*) FILTER (WHERE state <> 'QUEUED') AS at_work,
                   min(queued_at) FILTER (WHERE state = 'QUEUED') AS oldest_queued_at
            FROM run WHERE state <> 'ENDED' GROUP BY 1, 2
        ), workers AS (
            SELECT region_id, spec_id, count(*) AS workers FROM worker w
            WHERE NOT draining AND (seen_at >= $1 OR EXISTS (
                SELECT FROM run r WHERE r.worker_id = w.worker_id AND state IN ('LEASED', 'RUNNING')))
            GROUP BY 1, 2
        )
        SELECT region_id, spec_id, coalesce(queued, 0) AS queued, coalesce(at_work, 0) AS at_work, oldest_queued_at,
               coalesce(workers, 0) AS workers
        FROM runs FULL JOIN workers USING (region_id, spec_id) ORDER BY 1, 2
        """,
        seen_since,
    )
    return [Queue(**row) for row in rows]
