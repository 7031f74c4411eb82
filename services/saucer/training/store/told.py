"""What workers tell of a run: metrics and log."""

import json
from collections.abc import Sequence

from saucer.lib.postgres import Connection
from saucer.training.domain import LogLine, MetricPoint

# $1: of runs that ended before; $2: lines at most.
DELETE_OLD_LOGS = """
    DELETE FROM log_line WHERE (run_id, sequence) IN (
        SELECT l.run_id, l.sequence FROM run r JOIN log_line l USING (run_id) WHERE r.ended_at < $1 LIMIT $2)
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
