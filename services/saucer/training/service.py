"""The use cases of training, and the only place that opens its transactions.

1. A lease is a row lock away: SKIP LOCKED finds the run, the token's hash on the row decides who owns it from then on.
2. Each heartbeat is one transaction: lease, counter, metrics, log, checkpoint and, when due, an event.
3. FinishRun reads and copies files outside any transaction, then asks once more whether the run is still the caller's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import asyncpg
import structlog
from google.protobuf.message import Message
from prometheus_client import Counter, Gauge

from saucer.lib import tracing
from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.objects import Objects, check_key, user_prefix
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Connection, Database, Transaction
from saucer.training import artifacts, domain, lease, store
from saucer.training.bell import Bell
from saucer.training.domain import (
    Beat,
    EndReason,
    LogLine,
    MetricPoint,
    Model,
    ModelFile,
    Prediction,
    Run,
    RunRequest,
    RunState,
)
from saucer.training.messages import model_message, prediction_message, run_message
from saucer.training.v1 import events_pb2

# The net under the wake-ups of waiting workers.
POLL_S = 1.0
# Lines of a run's log kept a second; more are dropped, and a line says how many.
LOG_LINES_PER_S = 100
# Lines and points kept of a run; later ones are dropped.
LOG_LINES_PER_RUN = 500_000
METRIC_POINTS_PER_RUN = 500_000
# Runs that one round of the sweeper takes of each kind.
SWEEP_BATCH = 50
WARNING = 3

log = structlog.get_logger()
runs_ended_total = Counter("saucer_training_runs_ended_total", "Runs at rest, by reason", ["reason"])
attempts_lost_total = Counter("saucer_training_attempts_lost_total", "Attempts whose worker was lost")
queued_runs = Gauge("saucer_training_queued_runs", "Runs that wait for a worker", ["region", "spec"])


@dataclass(frozen=True)
class Measured:
    """A metric point as a worker reports it."""

    iteration: int
    epoch: float
    values: dict[str, float]
    time: datetime


@dataclass(frozen=True)
class Logged:
    """A log line as a worker reports it."""

    level: int
    time: datetime
    text: str


class Training:
    """Runs, leases and what workers do with them; reading.py answers the users."""

    def __init__(self, database: Database, objects: Objects, bell: Bell) -> None:
        self._database = database
        self._objects = objects
        self._bell = bell
        self._closing = False

    def close(self) -> None:
        """Ends the waiting of workers, so that the server can stop at once."""
        self._closing = True
        self._bell.ring_all()

    # Starts

    async def queue_run(self, request: RunRequest, *, resume: bool) -> None:
        """A run for a start; ended at once if its stop came first. The second time changes nothing.

        Raises InvalidArgumentError for an output prefix that is not the account's own.
        """
        if not check_key(request.output_prefix).startswith(f"{user_prefix(request.account_id)}/"):
            raise InvalidArgumentError(
                "OUTPUT_PREFIX", f"output_prefix: {request.output_prefix} is not below the account's own prefix."
            )
        async with self._database.transaction() as tx:
            reason, at_charged_ms = await store.stop_order(tx.connection, request.hold_id, None, 0)
            former = await store.former_run(tx.connection, request.task_id, request.start_number) if resume else None
            run = domain.queue(request, former, tx.now)
            if not await store.insert_run(tx.connection, run):
                return
            await _publish(tx, run, events_pb2.RunQueued(run=run_message(run)))
            if reason is not None:
                await self._stop(tx, run, reason, at_charged_ms)
        self._ring_queue(run)

    async def order_stop(self, hold_id: str, reason: EndReason, at_charged_ms: int) -> None:
        """Of the run of a start, also of one that is not here yet. The first order stays."""
        async with self._database.transaction() as tx:
            reason_that_stays, at_charged_ms = await store.stop_order(tx.connection, hold_id, reason, at_charged_ms)
            run = await store.run_of_hold(tx.connection, hold_id)
            if run is None or reason_that_stays is None:
                return
            await self._stop(tx, run, reason_that_stays, at_charged_ms)
        self._bell.ring(("run", run.run_id))

    async def _stop(self, tx: Transaction, run: Run, reason: EndReason, at_charged_ms: int) -> None:
        stopped = domain.order_stop(run, reason, at_charged_ms, tx.now)
        if stopped != run:
            await self._save(tx, stopped)

    # Workers

    async def lease_run(
        self, request_id: str, worker_id: str, region_id: str, spec_id: str, *, wait_s: float
    ) -> tuple[Run, str] | None:
        """The next run for a worker with the token of its attempt; None if none came within `wait_s`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        with self._bell.listen(("queue", region_id, spec_id)) as rung:
            while not self._closing:
                try:
                    leased = await self._lease_now(request_id, worker_id, region_id, spec_id)
                except asyncpg.UniqueViolationError:
                    continue  # the same request is being answered beside this one
                remaining_s = deadline_s - loop.time()
                if leased is not None or remaining_s <= 0:
                    return leased
                await rung.wait(min(POLL_S, remaining_s))
        return None

    async def _lease_now(self, request_id: str, worker_id: str, region_id: str, spec_id: str) -> tuple[Run, str] | None:
        async with self._database.transaction() as tx:
            request_sha256 = lease.hash_of(request_id)
            run = await store.run_of_lease_request(tx.connection, request_sha256, tx.now)
            if run is None:
                run = await store.next_queued(tx.connection, region_id, spec_id)
                if run is None:
                    return None
                salt = lease.new_salt()
                token_sha256 = lease.hash_of(lease.token_of(request_id, salt))
                granted = lease.Lease(worker_id, token_sha256, request_sha256, salt, None)
                run = await store.update_run(tx.connection, domain.lease(run, granted, tx.now))
                log.info("run_leased", run_id=run.run_id, attempt=run.attempt, worker_id=worker_id)
            assert run.lease is not None
            return run, lease.token_of(request_id, run.lease.salt)

    async def served_files(self, run: Run) -> tuple[ModelFile, ...]:
        """Of the model that the run predicts with; none if it trains, or if the account has no such model."""
        if run.request.predicts_model_id is None:
            return ()
        async with self._database.reading() as connection:
            model = await store.get_model(connection, run.request.predicts_model_id)
        if model is None or model.account_id != run.request.account_id:
            return ()
        return tuple(file for file in model.files if file.name in artifacts.SERVED_NAMES)

    async def heartbeat(
        self, run_id: str, token: str, heard: Beat, metrics: Sequence[Measured], lines: Sequence[Logged]
    ) -> Run:
        """The run after a heartbeat; a repeated one changes nothing.

        Raises:
            FailedPreconditionError: LEASE_LOST. InvalidArgumentError: the checkpoint lies outside the attempt.
        """
        async with self._database.transaction() as tx:
            before = await _owned(tx.connection, run_id, token)
            assert before.lease is not None
            if heard.sequence <= before.lease.sequence:
                return before
            problem = domain.overdue(before, tx.now)
            if problem is not None:
                run = await self._lose(tx, before, problem)
            else:
                domain.check_checkpoint(before, heard.checkpoint)
                run = domain.beat(before, heard, tx.now)
                if before.state is RunState.LEASED and before.attempt > 1:
                    iteration = before.checkpoint.iteration if before.checkpoint is not None else 0
                    await store.delete_metrics_after(tx.connection, run_id, iteration)
                run = await _keep(tx, run, before, metrics, lines)
                run = await _tell(tx, before, run)
        self._bell.ring(("run", run_id))
        if problem is not None:
            raise _lease_lost()
        return run

    async def finish_run(
        self,
        request_id: str,
        run_id: str,
        token: str,
        given: EndReason,
        *,
        error_message: str,
        user_error: bool,
        released: bool,
        elapsed_ms: int,
        best_map_50: float | None,
        files: Sequence[ModelFile],
    ) -> Run:
        """Ends the attempt, and the run with it unless another attempt may do better. See domain.lose().

        Raises:
            FailedPreconditionError: LEASE_LOST, ARTIFACT_MISSING. DataLossError: a file is not what was reported.
            InvalidArgumentError: file names, or a reason that was not ordered. UnavailableError: the object store.
        """
        async with self._database.reading() as connection:
            run = await _owned(connection, run_id, token, finished_by=request_id)
        if run.finish_request_id == request_id:
            return run
        reason = domain.reason_of(run, given)
        if released or (reason is EndReason.FAILED and not user_error and not (run.exhausted and files)):
            return await self._give_back(request_id, run_id, token, error_message, released=released)
        if user_error:
            files = ()
        predicts = run.request.predicts_model_id
        model_id = (predicts or derived_id("model", run_id)) if files else None
        if model_id is not None:
            artifacts.check_names(files, run.artifact_prefix, prediction=predicts is not None)
            await artifacts.verify(self._objects, files)
            target = f"{run.request.output_prefix}/{run.request.task_id}/{model_id}"
            await artifacts.copy_out(self._objects, files, target)
        async with self._database.transaction() as tx:
            run = await _owned(tx.connection, run_id, token, finished_by=request_id)
            if run.finish_request_id == request_id:
                return run
            run = replace(
                run,
                finish_request_id=request_id,
                error_message=error_message or run.error_message,
                progress=replace(
                    run.progress,
                    elapsed_ms=max(elapsed_ms, run.progress.elapsed_ms),
                    # Of the model that is left: a better validation may have been lost with its worker.
                    best_map_50=run.progress.best_map_50 if best_map_50 is None else best_map_50,
                ),
            )
            model = prediction = None
            if model_id is not None and predicts is not None:
                prediction = Prediction(model_id, run.request, tuple(files))
            elif model_id is not None:
                model = _model(run, model_id, files, tx.now)
                await store.insert_model(tx.connection, model)
            run = await self._save(tx, domain.end(run, reason, tx.now, model_id=model_id), model, prediction)
        self._bell.ring(("run", run_id))
        return run

    async def _give_back(self, request_id: str, run_id: str, token: str, error_message: str, *, released: bool) -> Run:
        async with self._database.transaction() as tx:
            run = await _owned(tx.connection, run_id, token, finished_by=request_id)
            if run.finish_request_id == request_id:
                return run
            run = replace(run, finish_request_id=request_id)
            run = await self._lose(tx, run, error_message or "The worker gave the run back.", released=released)
        self._ring_queue(run)
        self._bell.ring(("run", run_id))
        return run

    # Leases that ran out, and runs that nobody takes

    async def sweep(self, *, expire: bool) -> None:
        """Takes up what lost its worker (if `expire`) or waited too long, and measures the queue."""
        async with self._database.transaction() as tx:
            lost = await store.expired(tx.connection, tx.now, SWEEP_BATCH) if expire else []
            lost = [await self._lose(tx, run, "The worker was not heard of for a lease length.") for run in lost]
            waiting = await store.queued_since(
                tx.connection, tx.now - domain.QUEUE_LIMIT, tx.now - domain.FINISH_QUEUE_LIMIT, SWEEP_BATCH
            )
            for run in waiting:
                if domain.waited_too_long(run, tx.now):
                    await self._save(tx, domain.give_up_waiting(run, tx.now))
            depths = await store.queue_depths(tx.connection)
        queued_runs.clear()
        for (region_id, spec_id), number in depths.items():
            queued_runs.labels(region_id, spec_id).set(number)
        for run in lost:
            self._ring_queue(run)
        for run in (*lost, *waiting):
            self._bell.ring(("run", run.run_id))

    async def _lose(self, tx: Transaction, run: Run, message: str, *, released: bool = False) -> Run:
        lost = domain.lose(run, tx.now, message, released=released)
        begun = run.state is RunState.RUNNING
        if begun:
            text = f"Attempt {run.attempt} ended without a result: {message}"
            line = LogLine(lost.log_count + 1, run.attempt, WARNING, tx.now, _storable(text))
            await store.insert_log(tx.connection, run.run_id, [line])
            lost = replace(lost, log_count=lost.log_count + 1)
        if begun and not released:
            attempts_lost_total.inc()
        log.warning("attempt_lost", run_id=run.run_id, attempt=run.attempt, released=released, message=message)
        lost = await self._save(tx, lost)
        if begun and lost.state is RunState.QUEUED:
            await _publish(tx, lost, events_pb2.RunInterrupted(run=run_message(lost)))
        return lost

    async def _save(
        self, tx: Transaction, run: Run, model: Model | None = None, prediction: Prediction | None = None
    ) -> Run:
        """Writes a run; if it is at rest, tells so."""
        run = await store.update_run(tx.connection, run)
        if run.state is RunState.ENDED:
            message = events_pb2.RunEnded(
                run=run_message(run),
                model=model_message(model) if model is not None else None,
                prediction=prediction_message(prediction) if prediction is not None else None,
            )
            await _publish(tx, run, message)
            assert run.end_reason is not None
            runs_ended_total.labels(run.end_reason).inc()
            log.info("run_ended", run_id=run.run_id, reason=run.end_reason, charged_ms=run.meter.charged_ms)
        return run

    def _ring_queue(self, run: Run) -> None:
        self._bell.ring(("queue", run.request.region_id, run.request.spec_id))


async def _owned(connection: Connection, run_id: str, token: str, *, finished_by: str | None = None) -> Run:
    """The run, locked, if the token's attempt owns it, or was ended by this very FinishRun."""
    run = await store.get_run(connection, run_id, lock=True)
    if run is None:
        raise NotFoundError("run", run_id)
    if not lease.holds(run.lease, token):
        raise _lease_lost()
    at_work = run.state in (RunState.LEASED, RunState.RUNNING)
    if not at_work and (finished_by is None or run.finish_request_id != finished_by):
        raise _lease_lost()
    return run


def _lease_lost() -> FailedPreconditionError:
    return FailedPreconditionError("LEASE_LOST", "The run is another attempt's, or nobody's; halt and keep nothing.")


async def _keep(tx: Transaction, run: Run, before: Run, metrics: Sequence[Measured], lines: Sequence[Logged]) -> Run:
    """Stores what a heartbeat brought along, as far as the limits allow."""
    measured = metrics[: max(0, METRIC_POINTS_PER_RUN - run.metric_count)]
    points = [
        MetricPoint(run.metric_count + number, point.iteration, point.epoch, point.values, point.time)
        for number, point in enumerate(measured, start=1)
    ]
    since = tx.now - before.meter.beat_at if before.meter.beat_at is not None else timedelta(0)
    allowed = int(LOG_LINES_PER_S * min(10.0, max(1.0, since.total_seconds())))
    allowed = max(0, min(allowed, LOG_LINES_PER_RUN - run.log_count))
    logged = list(lines[:allowed])
    if len(logged) < len(lines) and run.log_count < LOG_LINES_PER_RUN:
        logged.append(Logged(WARNING, tx.now, f"{len(lines) - len(logged)} lines were dropped: the log is too fast."))
    kept = [
        LogLine(run.log_count + number, run.attempt, line.level, line.time, _storable(line.text))
        for number, line in enumerate(logged, start=1)
    ]
    if points:
        await store.insert_metrics(tx.connection, run.run_id, points)
    if kept:
        await store.insert_log(tx.connection, run.run_id, kept)
    return replace(run, metric_count=run.metric_count + len(points), log_count=run.log_count + len(kept))


def _storable(text: str) -> str:
    return text.replace("\x00", "�")  # PostgreSQL's text has no NUL


async def _tell(tx: Transaction, before: Run, run: Run) -> Run:
    """Writes a run after a heartbeat, with the event that is due, if one is."""
    due = domain.tells(before, run, tx.now)
    run = await store.update_run(tx.connection, domain.told(run, tx.now) if due else run)
    if before.started_at is None:
        await _publish(tx, run, events_pb2.RunStarted(run=run_message(run)))
    elif due:
        await _publish(tx, run, events_pb2.RunProgressed(run=run_message(run)))
    return run


def _model(run: Run, model_id: str, files: Sequence[ModelFile], now: datetime) -> Model:
    request = run.request
    return Model(
        model_id,
        run.run_id,
        request.account_id,
        request.task_id,
        request.task_name,
        request.dataset_version_id,
        request.config,
        run.progress.best_map_50,
        tuple(files),
        now,
    )


async def _publish(tx: Transaction, run: Run, message: Message) -> None:
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
