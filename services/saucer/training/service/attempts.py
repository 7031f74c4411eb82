"""What workers tell of their attempts: heartbeats, and how they end."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from saucer.lib.errors import FailedPreconditionError, NotFoundError, UnavailableError
from saucer.lib.ids import derived_id
from saucer.lib.objects import Objects
from saucer.lib.postgres import Connection, Database, Transaction
from saucer.training import artifacts, copies, domain, lease, log_limit
from saucer.training.bell import Bell
from saucer.training.domain import Beat, EndReason, LogSearch, MetricPoint, Model, ModelFile, Prediction, Run, RunState
from saucer.training.messages import log_text, run_message
from saucer.training.service.changes import WARNING, Logged, log_lines, lose, publish, queue_of, save
from saucer.training.store import log_search, models, runs, told
from saucer.training.store.copies import Copy, insert_copy
from saucer.training.v1 import events_pb2

# Points kept of a run; later ones are dropped.
METRIC_POINTS_PER_RUN = 500_000
# Lines read at once.
LOG_BATCH = 5_000

log = structlog.get_logger()


@dataclass(frozen=True)
class Measured:
    """A metric point as a worker reports it."""

    iteration: int
    epoch: float
    values: dict[str, float]
    time: datetime


class Attempts:
    """Heartbeats and how attempts end."""

    def __init__(self, database: Database, objects: Objects, bell: Bell) -> None:
        self._database = database
        self._objects = objects
        self._bell = bell

    async def heartbeat(
        self, run_id: str, token: str, heard: Beat, metrics: Sequence[Measured], lines: Sequence[Logged]
    ) -> Run:
        """The run after a heartbeat; a repeated one changes nothing.

        Raises:
            FailedPreconditionError: LEASE_LOST. InvalidArgumentError: the checkpoint lies outside the attempt.
        """
        async with self._database.transaction() as tx:
            before = await owned(tx.connection, run_id, token)
            assert before.lease is not None
            if heard.sequence <= before.lease.sequence:
                return before
            problem = domain.overdue(before, tx.now)
            if problem is not None:
                run = await lose(tx, before, problem)
            else:
                domain.check_checkpoint(before, heard.checkpoint)
                run = domain.beat(before, heard, tx.now)
                if before.state is RunState.LEASED and before.attempt > 1:
                    iteration = before.checkpoint.iteration if before.checkpoint is not None else 0
                    await told.delete_metrics_after(tx.connection, run_id, iteration)
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
        best_accuracy: float | None,
        files: Sequence[ModelFile],
    ) -> Run:
        """Ends the attempt, and the run with it unless another attempt may do better. See domain.lose().

        After an error of the user's none may, but one more makes a model of what was learnt before.

        Raises:
            FailedPreconditionError: LEASE_LOST, ARTIFACT_MISSING. DataLossError: a file is not what was reported.
            InvalidArgumentError: file names, or a reason that was not ordered. UnavailableError: the object store.
        """
        async with self._database.reading() as connection:
            run = await owned(connection, run_id, token, finished_by=request_id)
        if run.finish_request_id == request_id:
            return run
        reason = domain.reason_of(run, given)
        if user_error:
            files = ()
        if released or domain.goes_on(run, reason, user_error=user_error, finished=bool(files)):
            return await self._give_back(
                request_id, run_id, token, error_message, released=released, user_error=user_error
            )
        predicts = run.request.predicts_model_id
        model_id = (predicts or derived_id("model", run_id)) if files else None
        if model_id is not None:
            files = await self._take_files(run, files)
        copy = None
        async with self._database.transaction() as tx:
            run = await owned(tx.connection, run_id, token, finished_by=request_id)
            if run.finish_request_id == request_id:
                return run
            run = replace(
                run,
                finish_request_id=request_id,
                error_message=error_message or (run.error_message if reason is EndReason.FAILED else ""),
                progress=replace(
                    run.progress,
                    elapsed_ms=max(elapsed_ms, run.progress.elapsed_ms),
                    # Of the model that is left: a better validation may have been lost with its worker.
                    best_accuracy=run.progress.best_accuracy if best_accuracy is None else best_accuracy,
                ),
            )
            model = prediction = None
            if model_id is not None:
                copy = Copy(f"{run.request.output_prefix}/{run.request.task_id}/{model_id}", run_id, tuple(files))
                await insert_copy(tx.connection, copy, tx.now + copies.CLAIM)
            if model_id is not None and predicts is not None:
                prediction = Prediction(model_id, run.request, tuple(files))
            elif model_id is not None:
                model = _model(run, model_id, files, tx.now)
                await models.insert_model(tx.connection, model)
            run = await save(tx, domain.end(run, reason, tx.now, model_id=model_id), model, prediction)
        self._bell.ring(("run", run_id))
        if copy is not None:
            await self._copy_out(copy)
        return run

    async def _copy_out(self, copy: Copy) -> None:
        """The run has ended all the same if the object store fails now; its worker is not kept for that."""
        try:
            await copies.make(self._database, self._objects, copy)
        except UnavailableError as error:
            log.warning("copies_are_late", run_id=copy.run_id, error=str(error))

    async def _take_files(self, run: Run, files: Sequence[ModelFile]) -> Sequence[ModelFile]:
        """What is left of a run, once it is checked; again is harmless."""
        artifacts.check_names(files, run.artifact_prefix, prediction=run.request.predicts_model_id is not None)
        await artifacts.verify(self._objects, files)
        if run.attempt > 1:
            return await artifacts.lengthen_log(self._objects, files, self._earlier_log(run))
        return files

    async def _earlier_log(self, run: Run) -> AsyncIterator[bytes]:
        """What the attempts before the present one have logged, as text."""
        after: int | None = None
        while True:
            async with self._database.reading() as connection:
                lines = await log_search.list_log(connection, run.run_id, LogSearch(), after=after, limit=LOG_BATCH)
            earlier = [line for line in lines if line.attempt < run.attempt]
            yield "".join(map(log_text, earlier)).encode()
            if len(earlier) < LOG_BATCH:
                return
            after = earlier[-1].sequence

    async def _give_back(
        self, request_id: str, run_id: str, token: str, error_message: str, *, released: bool, user_error: bool
    ) -> Run:
        async with self._database.transaction() as tx:
            run = await owned(tx.connection, run_id, token, finished_by=request_id)
            if run.finish_request_id == request_id:
                return run
            run = replace(run, finish_request_id=request_id)
            message = error_message or "The worker gave the run back."
            run = await lose(tx, run, message, released=released, user_error=user_error)
        self._bell.ring(queue_of(run))
        self._bell.ring(("run", run_id))
        return run


async def owned(connection: Connection, run_id: str, token: str, *, finished_by: str | None = None) -> Run:
    """The run, locked, if the token's attempt owns it, or was ended by this very FinishRun."""
    run = await runs.get_run(connection, run_id, lock=True)
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
    admitted = log_limit.admit(run.log_limit, since, len(lines), run.log_count)
    logged = list(lines[: admitted.kept])
    if admitted.told:
        logged.append(Logged(WARNING, tx.now, f"{admitted.told} lines were dropped: the log is too fast, or too long."))
    kept, run = log_lines(replace(run, log_limit=admitted.limit), logged, tx.now)
    if points:
        await told.insert_metrics(tx.connection, run.run_id, points)
    if kept:
        await told.insert_log(tx.connection, run.run_id, kept)
    return replace(run, metric_count=run.metric_count + len(points))


async def _tell(tx: Transaction, before: Run, run: Run) -> Run:
    """Writes a run after a heartbeat, with the event that is due, if one is."""
    due = domain.tells(before, run, tx.now)
    run = await runs.update_run(tx.connection, domain.told(run, tx.now) if due else run)
    if before.started_at is None:
        await publish(tx, run, events_pb2.RunStarted(run=run_message(run)))
    elif due:
        await publish(tx, run, events_pb2.RunProgressed(run=run_message(run)))
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
        run.progress.best_accuracy,
        tuple(files),
        now,
    )
