"""Runs and orders to stop them."""

from dataclasses import asdict
from datetime import datetime

import asyncpg

from saucer.lib.postgres import Connection
from saucer.training.charging import Meter, Place
from saucer.training.domain import (
    Checkpoint,
    EndReason,
    Progress,
    Run,
    RunRequest,
    RunStage,
    RunState,
)
from saucer.training.lease import Lease
from saucer.training.log_limit import LogLimit

_REQUEST = tuple(RunRequest.__dataclass_fields__)
_UUIDS = ("run_id", "account_id", "task_id", "dataset_version_id", "model_id", "finish_request_id", "predicts_model_id")


def _moving(run: Run) -> dict[str, object]:
    """The columns that a run's life changes, but for its revision."""
    lease, checkpoint, meter, progress = run.lease, run.checkpoint, run.meter, run.progress
    return {
        "state": run.state,
        "queued_at": run.queued_at,
        "ready_at": run.ready_at,
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
        "log_room": run.log_limit.room,
        "log_dropped": run.log_limit.dropped,
        "logged_at": run.logged_at,
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
        "best_map_50": progress.best_accuracy,
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


def texts_of(row: asyncpg.Record) -> dict[str, object]:
    """A row with its ids as texts."""
    return {name: str(value) if name in _UUIDS and value is not None else value for name, value in row.items()}


def read_run(row: asyncpg.Record) -> Run:
    """A row of the table."""
    texts = texts_of(row)
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
        ready_at=row["ready_at"],
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
        log_limit=LogLimit(row["log_room"], row["log_dropped"]),
        logged_at=row["logged_at"],
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
    return read_run(row)


async def get_run(connection: Connection, run_id: str, *, lock: bool = False) -> Run | None:
    """A run; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT * FROM run WHERE run_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        run_id,
    )
    return read_run(row) if row else None


async def run_of_hold(connection: Connection, hold_id: str) -> Run | None:
    """The run of a start, locked."""
    row = await connection.fetchrow("SELECT * FROM run WHERE hold_id = $1 FOR UPDATE", hold_id)
    return read_run(row) if row else None


async def former_run(connection: Connection, task_id: str, start_number: int) -> Run | None:
    """The task's run of its last start before this one that a worker began: another has learnt nothing of its own."""
    row = await connection.fetchrow(
        """
        SELECT * FROM run WHERE task_id = $1 AND start_number < $2 AND started_at IS NOT NULL
        ORDER BY start_number DESC LIMIT 1
        """,
        task_id,
        start_number,
    )
    return read_run(row) if row else None


async def run_of_lease_request(connection: Connection, request_sha256: str) -> Run | None:
    """What this request id has leased, until somebody takes it up, which may be after its lease is over."""
    row = await connection.fetchrow(
        "SELECT * FROM run WHERE request_sha256 = $1 AND state IN ('LEASED', 'RUNNING')", request_sha256
    )
    return read_run(row) if row else None


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
    return [read_run(row) for row in rows]
