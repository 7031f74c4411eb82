"""The SQL of training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

import asyncpg

from saucer.lib.postgres import Connection
from saucer.training.charging import Meter, Place
from saucer.training.domain import (
    Checkpoint,
    EndReason,
    LogLine,
    MetricPoint,
    Model,
    ModelFile,
    Progress,
    Run,
    RunRequest,
    RunStage,
    RunState,
)
from saucer.training.lease import Lease

_REQUEST = tuple(RunRequest.__dataclass_fields__)
_FIXED = (*_REQUEST, "created_at")
_MODEL = (
    "model_id, run_id, account_id, task_id, task_name, dataset_version_id, config, best_map_50, files, created_at, "
    "revision"
)
_UUIDS = ("run_id", "account_id", "task_id", "dataset_version_id", "model_id", "finish_request_id", "predicts_model_id")

# $1: of runs that ended before; $2: lines at most.
DELETE_OLD_LOGS = """
    DELETE FROM log_line WHERE (run_id, sequence) IN (
        SELECT run_id, sequence FROM log_line JOIN run USING (run_id) WHERE ended_at < $1 LIMIT $2
    )
"""


def _moving(run: Run) -> dict[str, object]:
    """The columns that a run's life changes, but for its revision."""
    lease, checkpoint, meter, progress = run.lease, run.checkpoint, run.meter, run.progress
    return {
        "state": run.state,
        "queued_at": run.queued_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "attempt": run.attempt,
        "lost_attempts": run.lost_attempts,
        "stop_reason": run.stop_reason,
        "stop_at_charged_ms": run.stop_at_charged_ms,
        "end_reason": run.end_reason,
        "error_message": run.error_message,
        "model_id": run.model_id,
        "finish_request_id": run.finish_request_id,
        "metric_count": run.metric_count,
        "log_count": run.log_count,
        "told_at": run.told_at,
        "told_epoch": run.told_epoch,
        "worker_id": lease.worker_id if lease else None,
        "token_sha256": lease.token_sha256 if lease else None,
        "request_sha256": lease.request_sha256 if lease else None,
        "salt": lease.salt if lease else None,
        "lease_expires_at": lease.expires_at if lease else None,
        "sequence": lease.sequence if lease else 0,
        "finish_by": lease.finish_by if lease else None,
        "stage": progress.stage,
        "iteration": progress.iteration,
        "iterations": progress.iterations,
        "epoch": progress.epoch,
        "elapsed_ms": progress.elapsed_ms,
        "time_left_ms": progress.time_left_ms,
        "best_map_50": progress.best_map_50,
        "stage_progress": progress.stage_progress,
        "charged_ms": meter.charged_ms,
        "finishing_ms": meter.finishing_ms,
        "beat_at": meter.beat_at,
        "progressed_at": meter.progressed_at,
        "reached_stage": meter.reached.stage,
        "reached_done": meter.reached.done,
        "counted_stage": meter.counted.stage,
        "counted_done": meter.counted.done,
        "caught_up": meter.caught_up,
        "checkpoint_key": checkpoint.key if checkpoint else None,
        "checkpoint_sha256": checkpoint.sha256 if checkpoint else None,
        "checkpoint_iteration": checkpoint.iteration if checkpoint else None,
        "checkpoint_elapsed_ms": checkpoint.elapsed_ms if checkpoint else None,
    }


def _texts(row: asyncpg.Record) -> dict[str, object]:
    return {name: str(value) if name in _UUIDS and value is not None else value for name, value in row.items()}


def _run(row: asyncpg.Record) -> Run:
    texts = _texts(row)
    lease = checkpoint = None
    if row["token_sha256"] is not None:
        lease = Lease(
            row["worker_id"],
            row["token_sha256"],
            row["request_sha256"],
            row["salt"],
            row["lease_expires_at"],
            row["sequence"],
            row["finish_by"],
        )
    if row["checkpoint_key"] is not None:
        checkpoint = Checkpoint(
            row["checkpoint_key"],
            row["checkpoint_sha256"],
            row["checkpoint_iteration"],
            row["checkpoint_elapsed_ms"],
        )
    return Run(
        request=RunRequest(**{name: texts[name] for name in _REQUEST}),  # type: ignore[arg-type]  # columns as typed
        state=RunState(row["state"]),
        created_at=row["created_at"],
        queued_at=row["queued_at"],
        progress=Progress(
            RunStage(row["stage"]),
            row["iteration"],
            row["iterations"],
            row["epoch"],
            row["elapsed_ms"],
            row["time_left_ms"],
            row["best_map_50"],
            row["stage_progress"],
        ),
        meter=Meter(
            row["charged_ms"],
            row["finishing_ms"],
            row["beat_at"],
            row["progressed_at"],
            Place(row["reached_stage"], row["reached_done"]),
            Place(row["counted_stage"], row["counted_done"]),
            row["caught_up"],
        ),
        lease=lease,
        checkpoint=checkpoint,
        attempt=row["attempt"],
        lost_attempts=row["lost_attempts"],
        stop_reason=EndReason(row["stop_reason"]) if row["stop_reason"] else None,
        stop_at_charged_ms=row["stop_at_charged_ms"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        end_reason=EndReason(row["end_reason"]) if row["end_reason"] else None,
        error_message=row["error_message"],
        model_id=str(row["model_id"]) if row["model_id"] else None,
        finish_request_id=str(row["finish_request_id"]) if row["finish_request_id"] else None,
        metric_count=row["metric_count"],
        log_count=row["log_count"],
        told_at=row["told_at"],
        told_epoch=row["told_epoch"],
        revision=row["revision"],
    )


async def stop_order(
    connection: Connection, hold_id: str, reason: EndReason | None, at_charged_ms: int
) -> tuple[EndReason | None, int]:
    """Notes an order to stop, or (None) that there is a run; what is ordered then. The first order stays.

    Whoever comes second waits here until the first has committed.
    """
    row = await connection.fetchrow(
        """
        INSERT INTO stop_order AS o (hold_id, reason, stop_at_charged_ms) VALUES ($1, $2, $3)
        ON CONFLICT (hold_id) DO UPDATE
        SET reason = coalesce(o.reason, excluded.reason),
            stop_at_charged_ms = CASE WHEN o.reason IS NULL THEN excluded.stop_at_charged_ms
                                 ELSE o.stop_at_charged_ms END
        RETURNING reason, stop_at_charged_ms
        """,
        hold_id,
        reason,
        at_charged_ms,
    )
    assert row is not None
    return (EndReason(row["reason"]) if row["reason"] else None), row["stop_at_charged_ms"]


async def insert_run(connection: Connection, run: Run) -> bool:
    """False if it exists."""
    fixed = {**asdict(run.request), "created_at": run.created_at}
    columns = {**fixed, **_moving(run), "revision": run.revision}
    return bool(
        await connection.fetchval(
            f"INSERT INTO run ({', '.join(columns)}) VALUES ({_parameters(len(columns))}) "  # noqa: S608 - names of ours
            "ON CONFLICT (run_id) DO NOTHING RETURNING true",
            *columns.values(),
        )
    )


def _parameters(number: int) -> str:
    return ", ".join(f"${index}" for index in range(1, number + 1))


async def update_run(connection: Connection, run: Run) -> Run:
    """Writes all that moves, at the next revision. The caller has locked the row."""
    columns = _moving(run)
    sets = ", ".join(f"{name} = ${index}" for index, name in enumerate(columns, start=3))
    row = await connection.fetchrow(
        f"UPDATE run SET {sets}, revision = revision + 1 WHERE run_id = $1 AND revision = $2 RETURNING *",  # noqa: S608 - column names
        run.run_id,
        run.revision,
        *columns.values(),
    )
    assert row is not None, "the row is locked"
    return _run(row)


async def get_run(connection: Connection, run_id: str, *, lock: bool = False) -> Run | None:
    """A run; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT * FROM run WHERE run_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        run_id,
    )
    return _run(row) if row else None


async def run_of_hold(connection: Connection, hold_id: str) -> Run | None:
    """The run of a start, locked."""
    row = await connection.fetchrow("SELECT * FROM run WHERE hold_id = $1 FOR UPDATE", hold_id)
    return _run(row) if row else None


async def former_run(connection: Connection, task_id: str, start_number: int) -> Run | None:
    """The task's run of its last start before this one."""
    row = await connection.fetchrow(
        "SELECT * FROM run WHERE task_id = $1 AND start_number < $2 ORDER BY start_number DESC LIMIT 1",
        task_id,
        start_number,
    )
    return _run(row) if row else None


async def run_of_lease_request(connection: Connection, request_sha256: str, now: datetime) -> Run | None:
    """What this request id has leased, while it lasts."""
    row = await connection.fetchrow(
        """
        SELECT * FROM run WHERE request_sha256 = $1 AND state IN ('LEASED', 'RUNNING') AND lease_expires_at > $2
        """,
        request_sha256,
        now,
    )
    return _run(row) if row else None


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
    return _run(row) if row else None


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
    return [_run(row) for row in rows]


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
    return [_run(row) for row in rows]


async def queue_depths(connection: Connection) -> dict[tuple[str, str], int]:
    """Queued runs by region and spec."""
    rows = await connection.fetch(
        "SELECT region_id, spec_id, count(*) AS runs FROM run WHERE state = 'QUEUED' GROUP BY 1, 2"
    )
    return {(row["region_id"], row["spec_id"]): row["runs"] for row in rows}


async def list_runs(
    connection: Connection,
    account_id: str,
    *,
    task_id: str | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Run]:
    """Newest first."""
    rows = await connection.fetch(
        """
        SELECT * FROM run
        WHERE account_id = $1 AND ($2::uuid IS NULL OR task_id = $2)
          AND ($3::timestamptz IS NULL OR (created_at, run_id) < ($3, $4::uuid))
        ORDER BY created_at DESC, run_id DESC LIMIT $5
        """,
        account_id,
        task_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_run(row) for row in rows]


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


async def insert_model(connection: Connection, model: Model) -> None:
    """Once; the run's row is locked by the caller."""
    await connection.execute(
        """
        INSERT INTO model (model_id, run_id, account_id, task_id, task_name, dataset_version_id, config, best_map_50,
                           files, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        model.model_id,
        model.run_id,
        model.account_id,
        model.task_id,
        model.task_name,
        model.dataset_version_id,
        model.config,
        model.best_map_50,
        json.dumps([asdict(file) for file in model.files]),
        model.created_at,
    )


async def get_model(connection: Connection, model_id: str) -> Model | None:
    """A model."""
    row = await connection.fetchrow(f"SELECT {_MODEL} FROM model WHERE model_id = $1", model_id)  # noqa: S608 - column names
    return _model(row) if row else None


async def list_models(
    connection: Connection,
    account_id: str,
    *,
    task_id: str | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Model]:
    """Newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_MODEL} FROM model
        WHERE account_id = $1 AND ($2::uuid IS NULL OR task_id = $2)
          AND ($3::timestamptz IS NULL OR (created_at, model_id) < ($3, $4::uuid))
        ORDER BY created_at DESC, model_id DESC LIMIT $5
        """,  # noqa: S608 - column names
        account_id,
        task_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_model(row) for row in rows]


def _model(row: asyncpg.Record) -> Model:
    fields: Mapping[str, object] = _texts(row)
    files = tuple(ModelFile(**file) for file in json.loads(row["files"]))
    return Model(**{**fields, "files": files})  # type: ignore[arg-type]  # columns as typed
