"""The SQL of traffic, counters, events and log lines, and what of them is forgotten when."""

from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime, timedelta

from saucer.lib.postgres import Connection
from saucer.lib.retention import Forget
from saucer.publishing.batching import Counters, CountersAt
from saucer.publishing.domain import DeploymentEvent, KeptLine, LogLine
from saucer.publishing.traffic import Piece


def retention_rules(keep: timedelta) -> Sequence[Forget]:
    """All of them after the same time."""
    return (
        Forget(
            "traffic",
            keep,
            "DELETE FROM traffic WHERE ctid IN (SELECT ctid FROM traffic WHERE began_at < $1 LIMIT $2)",
        ),
        Forget(
            "deployment_event",
            keep,
            "DELETE FROM deployment_event WHERE ctid IN "
            "(SELECT ctid FROM deployment_event WHERE last_at < $1 LIMIT $2)",
        ),
        Forget(
            "triton_count",
            keep,
            "DELETE FROM triton_count WHERE ctid IN (SELECT ctid FROM triton_count WHERE began_at < $1 LIMIT $2)",
        ),
        Forget(
            "deployment_log",
            keep,
            "DELETE FROM deployment_log WHERE ctid IN (SELECT ctid FROM deployment_log WHERE logged_at < $1 LIMIT $2)",
        ),
    )


async def insert_pieces(connection: Connection, replica: str, pieces: Sequence[Piece]) -> None:
    """One that is stored already stays: it was stored before an answer was lost."""
    await connection.executemany(
        """
        INSERT INTO traffic (deployment_id, version_number, began_at, replica, requests, errors, busy_ms, histogram)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
        """,
        [
            (
                piece.deployment_id,
                piece.version_number,
                piece.began_at,
                replica,
                piece.requests,
                piece.errors,
                piece.busy_ms,
                piece.histogram,
            )
            for piece in pieces
        ],
    )


async def list_pieces(
    connection: Connection, deployment_id: str, start: datetime, end: datetime, limit: int
) -> list[Piece]:
    """Those that began from `start` on and before `end`, every replica's, oldest first."""
    rows = await connection.fetch(
        """
        SELECT version_number, began_at, requests, errors, busy_ms, histogram FROM traffic
        WHERE deployment_id = $1 AND began_at >= $2 AND began_at < $3 ORDER BY began_at LIMIT $4
        """,
        deployment_id,
        start,
        end,
        limit,
    )
    return [Piece(deployment_id, *row) for row in rows]


async def insert_readings(connection: Connection, readings: Sequence[tuple[str, CountersAt]]) -> None:
    """With their deployments' ids. What another replica has stored of a piece stays."""
    await connection.executemany(
        """
        INSERT INTO triton_count (deployment_id, version_number, began_at, triton_id, images, batches, requests,
                                  waited_us)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
        """,
        [
            (deployment_id, reading.version_number, reading.began_at, reading.triton_id, *astuple(reading.counters))
            for deployment_id, reading in readings
        ],
    )


async def list_readings(
    connection: Connection, deployment_id: str, start: datetime, end: datetime, limit: int
) -> list[CountersAt]:
    """Of pieces that began from `start` on and before `end`, in order of time."""
    rows = await connection.fetch(
        """
        SELECT version_number, began_at, triton_id, images, batches, requests, waited_us FROM triton_count
        WHERE deployment_id = $1 AND began_at >= $2 AND began_at < $3 ORDER BY began_at LIMIT $4
        """,
        deployment_id,
        start,
        end,
        limit,
    )
    return [CountersAt(row[0], row[1], row[2], Counters(*row[3:])) for row in rows]


async def insert_lines(
    connection: Connection,
    deployment_id: str,
    version_number: int,
    triton_id: str,
    process: str,
    lines: Sequence[LogLine],
) -> None:
    """Those of a process that are not there yet."""
    await connection.executemany(
        """
        INSERT INTO deployment_log (deployment_id, version_number, triton_id, process, number, level, message,
                                    logged_at)
        SELECT $1, $2, $3, $4, $5, $6, $7, $8
        WHERE NOT EXISTS (SELECT FROM deployment_log WHERE deployment_id = $1 AND process = $4 AND number = $5)
        ON CONFLICT DO NOTHING
        """,
        [(deployment_id, version_number, triton_id, process, *astuple(line)) for line in lines],
    )


async def list_lines(connection: Connection, deployment_id: str, *, before: int | None, limit: int) -> list[KeptLine]:
    """Those that came last first."""
    rows = await connection.fetch(
        """
        SELECT position, version_number, triton_id, number, level, message, logged_at FROM deployment_log
        WHERE deployment_id = $1 AND ($2::bigint IS NULL OR position < $2) ORDER BY position DESC LIMIT $3
        """,
        deployment_id,
        before,
        limit,
    )
    return [KeptLine(row[0], row[1], row[2], LogLine(*row[3:])) for row in rows]


async def fold_event(
    connection: Connection, deployment_id: str, start_number: int, kind: str, message: str, now: datetime
) -> None:
    """The same again is counted."""
    await connection.execute(
        """
        INSERT INTO deployment_event (deployment_id, start_number, kind, message, count, first_at, last_at)
        VALUES ($1, $2, $3, $4, 1, $5, $5)
        ON CONFLICT (deployment_id, start_number, kind, message)
        DO UPDATE SET count = deployment_event.count + 1, last_at = excluded.last_at
        """,
        deployment_id,
        start_number,
        kind,
        message,
        now,
    )


async def list_events(connection: Connection, deployment_id: str, limit: int) -> list[DeploymentEvent]:
    """Those that happened last first."""
    rows = await connection.fetch(
        """
        SELECT start_number, kind, message, count, first_at, last_at FROM deployment_event
        WHERE deployment_id = $1 ORDER BY last_at DESC, kind LIMIT $2
        """,
        deployment_id,
        limit,
    )
    return [DeploymentEvent(*row) for row in rows]
