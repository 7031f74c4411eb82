"""How a run changes, whichever use case changes it: written at its next revision, told by the event that is due."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog
from google.protobuf.message import Message
from prometheus_client import Counter

from saucer.lib import tracing
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Transaction
from saucer.training import domain
from saucer.training.domain import LogLine, Model, Prediction, Run, RunState
from saucer.training.messages import model_message, prediction_message, run_message
from saucer.training.store import runs, told
from saucer.training.v1 import events_pb2

WARNING = 3

log = structlog.get_logger()
runs_ended_total = Counter("saucer_training_runs_ended_total", "Runs at rest, by reason", ["reason"])
attempts_lost_total = Counter("saucer_training_attempts_lost_total", "Attempts whose worker was lost")


@dataclass(frozen=True)
class Logged:
    """A log line as a worker reports it."""

    level: int
    time: datetime
    text: str


def log_lines(run: Run, lines: Sequence[Logged], now: datetime) -> tuple[list[LogLine], Run]:
    """The next lines of a run's log, and the run that has them. A time before the last line's, or to come, is moved."""
    kept = []
    for number, line in enumerate(lines, start=run.log_count + 1):
        logged_at = min(line.time, now) if run.logged_at is None else max(run.logged_at, min(line.time, now))
        run = replace(run, log_count=number, logged_at=logged_at)
        # PostgreSQL's text has no NUL.
        kept.append(LogLine(number, run.attempt, line.level, logged_at, line.text.replace("\x00", "\ufffd")))
    return kept, run


async def save(tx: Transaction, run: Run, model: Model | None = None, prediction: Prediction | None = None) -> Run:
    """Writes a run; if it is at rest, tells so."""
    run = await runs.update_run(tx.connection, run)
    if run.state is RunState.ENDED:
        message = events_pb2.RunEnded(
            run=run_message(run),
            model=model_message(model) if model is not None else None,
            prediction=prediction_message(prediction) if prediction is not None else None,
        )
        await publish(tx, run, message)
        assert run.end_reason is not None
        runs_ended_total.labels(run.end_reason).inc()
        log.info("run_ended", run_id=run.run_id, reason=run.end_reason, charged_ms=run.meter.charged_ms)
    return run


async def lose(tx: Transaction, run: Run, message: str, *, released: bool = False, user_error: bool = False) -> Run:
    """Ends the present attempt without a result, and the run with it if nothing more can be made of it."""
    lost = domain.lose(run, tx.now, message, released=released, user_error=user_error)
    begun = run.state is RunState.RUNNING
    if begun:
        text = f"Attempt {run.attempt} ended without a result: {message}"
        lines, lost = log_lines(lost, [Logged(WARNING, tx.now, text)], tx.now)
        await told.insert_log(tx.connection, run.run_id, lines)
    if begun and not released and not user_error:
        attempts_lost_total.inc()
    log.warning(
        "attempt_lost",
        run_id=run.run_id,
        attempt=run.attempt,
        released=released,
        user_error=user_error,
        message=message,
    )
    lost = await save(tx, lost)
    if begun and lost.state is RunState.QUEUED:
        await publish(tx, lost, events_pb2.RunInterrupted(run=run_message(lost)))
    return lost


def queue_of(run: Run) -> Hashable:
    """What a bell rings when a run waits for a worker."""
    return ("queue", run.request.region_id, run.request.spec_id)


async def publish(tx: Transaction, run: Run, message: Message) -> None:
    """Tells of a run, once for each revision and kind of event."""
    traceparent = run.request.traceparent
    if traceparent is not None and run.state is RunState.ENDED:
        traceparent = _record(run, traceparent)
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, run.run_id, run.revision),
        message,
        account_id=run.request.account_id,
        work_id=run.request.task_id,
        resource_id=run.run_id,
        traceparent=traceparent,
    )


def _record(run: Run, traceparent: str) -> str:
    """The spans of a run at rest; the traceparent of what follows from it."""
    assert run.ended_at is not None
    attributes = {"run_id": run.run_id, "reason": str(run.end_reason), "attempts": str(run.attempt)}
    started_at = run.started_at or run.ended_at
    tracing.record("waits for a worker", traceparent, run.created_at, started_at, attributes)
    if run.started_at is None:
        return traceparent
    return tracing.record("run", traceparent, started_at, run.ended_at, attributes)
