"""What workers tell of a run: metrics and log."""

import json
from collections.abc import Sequence
from datetime import datetime

from saucer.lib.postgres import Connection
from saucer.training.domain import LogLine, MetricPoint

# $1: of runs that ended before; $2: lines at most.
DELETE_OLD_LOGS = """
    DELETE FROM log_line WHERE (run_id, sequence) IN (
        SELECT run_id, sequence FROM log_line JOIN run USING (run_id) WHERE ended_at < $1 LIMIT $2
    )
"""


async def insert_metrics(connection: Connection, run_id: str, points: Sequence[MetricPoint]) -> None:
    """In one statement."""
    await connection.execute(
        """
        INSERT INTO metric_point (run_id, sequence, iteration, epoch, metrics, measured_at)
        SELECT $1, * FROM unnest($2::bigint[], $3::integer[], $4::float8[], $5::text[], $6::timestamptz[])
        """,
        run_id,
        [point.sequence for point in points],
        [point.iteration for point in points],
        [point.epoch for point in points],
        [json.dumps(dict(point.values)) for point in points],
        [point.time for point in points],
    )


async def delete_metrics_after(connection: Connection, run_id: str, iteration: int) -> None:
    """What a lost attempt measured beyond the checkpoint; the next one measures it anew."""
    await connection.execute("DELETE FROM metric_point WHERE run_id = $1 AND iteration > $2", run_id, iteration)


async def list_metrics(connection: Connection, run_id: str, after: int, limit: int) -> list[MetricPoint]:
    """By sequence."""
    rows = await connection.fetch(
        """
        SELECT sequence, iteration, epoch, metrics, measured_at FROM metric_point
        WHERE run_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3
        """,
        run_id,
        after,
        limit,
    )
    return [
        MetricPoint(row["sequence"], row["iteration"], row["epoch"], json.loads(row["metrics"]), row["measured_at"])
        for row in rows
    ]


async def insert_log(connection: Connection, run_id: str, lines: Sequence[LogLine]) -> None:
    """In one statement."""
    await connection.execute(
        """
        INSERT INTO log_line (run_id, sequence, attempt, level, logged_at, line)
        SELECT $1, * FROM unnest($2::bigint[], $3::integer[], $4::integer[], $5::timestamptz[], $6::text[])
        """,
        run_id,
        [line.sequence for line in lines],
        [line.attempt for line in lines],
        [line.level for line in lines],
        [line.time for line in lines],
        [line.text for line in lines],
    )


async def list_log(
    connection: Connection,
    run_id: str,
    *,
    keywords: Sequence[str] = (),
    min_level: int = 0,
    start: datetime | None = None,
    end: datetime | None = None,
    newest_first: bool = False,
    after: int | None,
    limit: int,
) -> list[LogLine]:
    """Lines in which every keyword occurs, whatever its case; `start` included, `end` not."""
    order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
    rows = await connection.fetch(
        f"""
        SELECT sequence, attempt, level, logged_at, line FROM log_line
        WHERE run_id = $1 AND level >= $2 AND line ILIKE ALL ($3::text[])
          AND ($4::timestamptz IS NULL OR logged_at >= $4) AND ($5::timestamptz IS NULL OR logged_at < $5)
          AND ($6::bigint IS NULL OR sequence {beyond} $6)
        ORDER BY sequence {order} LIMIT $7
        """,  # noqa: S608 - words chosen above
        run_id,
        min_level,
        [_containing(keyword) for keyword in keywords],
        start,
        end,
        after,
        limit,
    )
    return [LogLine(row["sequence"], row["attempt"], row["level"], row["logged_at"], row["line"]) for row in rows]


def _containing(keyword: str) -> str:
    for special in ("\\", "%", "_"):
        keyword = keyword.replace(special, f"\\{special}")
    return f"%{keyword}%"
