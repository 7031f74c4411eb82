"""What workers tell of a run: metrics and log."""

import json
from collections.abc import Sequence

from saucer.lib.postgres import Connection
from saucer.training.domain import LogLine, LogSearch, MetricPoint

# More than any line's sequence.
_BEYOND_ALL = 2**62

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


async def list_log(
    connection: Connection,
    run_id: str,
    wanted: LogSearch,
    *,
    newest_first: bool = False,
    after: int | None,
    limit: int,
) -> list[LogLine]:
    """In order of the sequence."""
    given: list[object] = [run_id]

    def parameter(value: object) -> str:
        given.append(value)
        return f"${len(given)}"

    # Conditions stand one by one and levels as numbers: only so does PostgreSQL see that an index serves them.
    conditions = ["run_id = $1"]
    if wanted.min_level > 1:
        conditions.append(f"level >= {int(wanted.min_level)}")
    conditions += [f"line ILIKE {parameter(_containing(keyword))}" for keyword in wanted.keywords]
    first = f"run_id = $1 AND logged_at >= {parameter(wanted.start)}" if wanted.start else ""
    beyond_last = f"run_id = $1 AND logged_at >= {parameter(wanted.end)}" if wanted.end else ""
    for sign, bound in ((">=", first), ("<", beyond_last)):
        if bound:
            found = f"SELECT sequence FROM log_line WHERE {bound} ORDER BY logged_at, sequence LIMIT 1"  # noqa: S608 - as below
            # No line is so late: none is in a window that begins then, all are before one that ends then.
            conditions.append(f"sequence {sign} coalesce(({found}), {_BEYOND_ALL})")
    order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
    if after is not None:
        conditions.append(f"sequence {beyond} {parameter(after)}")
    query = f"""
        SELECT sequence, attempt, level, logged_at, line FROM log_line
        WHERE {" AND ".join(conditions)} ORDER BY sequence {order} LIMIT {parameter(limit)}
    """  # noqa: S608 - conditions are made above, their values are parameters
    if not wanted.keywords:
        rows = await connection.fetch(query, *given)
    else:
        async with connection.transaction(readonly=True):
            # A plan for any word would read the whole log for a rare one, or sort the whole log for a frequent one.
            await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            rows = await connection.fetch(query, *given)
    return [LogLine(row["sequence"], row["attempt"], row["level"], row["logged_at"], row["line"]) for row in rows]


def _containing(keyword: str) -> str:
    for special in ("\\", "%", "_"):
        keyword = keyword.replace(special, f"\\{special}")
    return f"%{keyword}%"
