"""One attempt of a run: data, the child's job, checkpoints, the end. Everything but the heartbeat itself.

How an attempt ends, and what is told:

1. The child has a result → its files go to the object store → FinishRun with the reason and the files.
2. The child failed by the user's data or settings → FinishRun, failed, user_error: no attempt can train further. What a
   checkpoint holds is finished by one more.
3. The child failed otherwise, or died → FinishRun, failed: the attempt counts as lost and the run is queued again,
   after the second loss with a pause.
4. This worker has to stop → the child saves a checkpoint and halts → FinishRun, released: another worker goes on.
5. The lease is lost → nothing is told; whoever runs the attempt kills the child.
"""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from saucer.lib.clock import from_duration, to_duration
from saucer.lib.errors import (
    DataLossError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from saucer.lib.grpc_client import TokenFile, call
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.training.v1 import training_pb2, worker_pb2, worker_pb2_grpc
from saucer.worker import catalogue, transfer
from saucer.worker import job as protocol
from saucer.worker.child_process import ChildGoneError, ChildProcess
from saucer.worker.errors import UserError
from saucer.worker.heart import Heart, LeaseLostError
from saucer.worker.job import (
    BadMessageError,
    EndReason,
    FailureKind,
    Job,
    PredictJob,
    StageName,
    StartingPoint,
    TrainJob,
)
from saucer.worker.spans import Stages
from saucer.worker.uploads import Checkpoints

# Before a transfer or a FinishRun that failed is tried again; how often is up to the lease.
RETRY_S = 1.0
# From the first try; a catalogue that is silent for longer costs the attempt, whose end says what else to choose. Below
# training's limit for stalls, which says nothing of it.
MIRROR_PATIENCE_S = 600.0
FINISH_CALL_S = 110.0
MAX_MESSAGE_CHARACTERS = 8_000
# Of preparing data: the rest is the child's.
DOWNLOAD_SHARE = 0.9

# A deleted model's files stay for some days; no later attempt would find them either.
MODEL_GONE = "The files of the model that this task needs are gone. Create a task with another model."

# Metrics of a validation by which a model is judged; a run has one of them.
ACCURACIES = ("map_50", "top_1")
STAGES: Mapping[StageName, training_pb2.RunStage.ValueType] = {
    StageName.PREPARING: training_pb2.RUN_STAGE_PREPARING_DATA,
    StageName.TRAINING: training_pb2.RUN_STAGE_TRAINING,
    StageName.EXPORTING: training_pb2.RUN_STAGE_EXPORTING,
    StageName.PREDICTING: training_pb2.RUN_STAGE_PREDICTING,
}
REASONS: Mapping[EndReason, training_pb2.EndReason.ValueType] = {
    EndReason.COMPLETED: training_pb2.END_REASON_COMPLETED,
    EndReason.ACCURACY_REACHED: training_pb2.END_REASON_ACCURACY_REACHED,
    EndReason.DURATION_REACHED: training_pb2.END_REASON_DURATION_REACHED,
}
LEVELS: Mapping[str, training_pb2.LogLevel.ValueType] = {
    "DEBUG": training_pb2.LOG_LEVEL_DEBUG,
    "INFO": training_pb2.LOG_LEVEL_INFO,
    "WARNING": training_pb2.LOG_LEVEL_WARNING,
    "ERROR": training_pb2.LOG_LEVEL_ERROR,
    "CRITICAL": training_pb2.LOG_LEVEL_ERROR,
}

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """What FinishRun is to say. `files` by the child's kinds."""

    reason: training_pb2.EndReason.ValueType
    error_message: str = ""
    user_error: bool = False
    released: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    # Top-1 of a classification.
    best_map_50: float | None = None
    elapsed_ms: int = 0


class Attempt:
    """From lease to FinishRun."""

    def __init__(
        self,
        lease: worker_pb2.Lease,
        *,
        stub: worker_pb2_grpc.WorkerServiceAsyncStub,
        token: TokenFile,
        objects: Objects,
        cache: transfer.ImageCache,
        workdir: Path,
        child: Callable[[int], Awaitable[ChildProcess]],
        threads: int,
        deterministic: bool = False,
        catalogue_url: str = catalogue.ZOO_URL,
    ) -> None:
        self._lease = lease
        self._stub = stub
        self._token = token
        self._objects = objects
        self._cache = cache
        self._workdir = workdir
        self._child = child
        self._threads = threads
        self._deterministic = deterministic
        self._catalogue_url = catalogue_url
        self._heart = Heart(stub, token, lease)
        self._released = asyncio.Event()
        self._checkpoints = Checkpoints(lease.artifact_prefix, objects, workdir / "outgoing", self._heart)
        self._progresses = False
        # FinishRun is on its way.
        self._finishing = False
        self._stages = Stages()

    def release(self) -> None:
        """This worker has to stop."""
        self._released.set()

    async def go(self) -> str:
        """How it ended, as a word for a metric. Raises LeaseLostError: the child is to be killed."""
        heart = asyncio.ensure_future(self._heart.beat())
        work = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait({heart, work}, return_when=asyncio.FIRST_COMPLETED)
            # FinishRun may answer long after the run has ended, when heartbeats are refused. Whether the lease was lost
            # before, FinishRun says itself.
            if not work.done() and not self._finishing:
                heart.result()
            return await work
        finally:
            await _cancel(work)
            await _cancel(heart)
            self._stages.end()

    async def _work(self) -> str:
        await self._heart.accepted.wait()
        lease = self._lease
        origin = f" from iteration {lease.run.iteration} or before" if lease.checkpoint_key else ""
        self._heart.line(f"Attempt {lease.run.attempt} begins{origin}.")
        uploads = asyncio.ensure_future(self._checkpoints.run())
        try:
            ending = await self._ending()
            if ending.released or ending.user_error:
                await self._checkpoints.drain()
        finally:
            await _cancel(uploads)
        return await self._finish(ending)

    async def _ending(self) -> Ending:
        try:
            job = await self._prepare()
            if isinstance(job, Ending):
                return job
            processes = job.processes if isinstance(job, TrainJob) else 1
            return await self._train(await self._child(processes), job)
        except (BadMessageError, UserError, transfer.BadManifestError, catalogue.CatalogueError) as error:
            return Ending(training_pb2.END_REASON_FAILED, str(error), user_error=True)
        except ChildGoneError as error:
            return Ending(training_pb2.END_REASON_FAILED, str(error))
        except DomainError as error:
            return Ending(training_pb2.END_REASON_FAILED, error.message)
        except OSError as error:
            return Ending(training_pb2.END_REASON_FAILED, f"The worker's disk: {error}")

    async def _persistently(
        self, what: str, transfer_them: Callable[[], Awaitable[T]], *, patience_s: float = math.inf
    ) -> T:
        """Again and again while the other side does not answer; the service's limits for stalls end it.

        Raises UnavailableError once it has not answered for `patience_s`.
        """
        give_up_s = time.monotonic() + patience_s
        while True:
            try:
                return await transfer_them()
            except UnavailableError as error:
                if time.monotonic() >= give_up_s:
                    raise
                self._heart.line(f"{what} cannot be moved yet: {error.message}", training_pb2.LOG_LEVEL_WARNING)
                await asyncio.sleep(RETRY_S)

    # Preparing

    async def _prepare(self) -> Job | Ending:
        """The job, with its files in place; or an end, if it was stopped or released before it began."""
        self._stages.enter("fetch data")
        fetching = asyncio.ensure_future(self._fetch())
        stopped = asyncio.ensure_future(self._heart.stopped.wait())
        released = asyncio.ensure_future(self._released.wait())
        # What a checkpoint holds can be finished; without one there is nothing to go on for.
        ends = {released} if self._lease.checkpoint_key else {released, stopped}
        try:
            await asyncio.wait({fetching, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if released.done():
                return Ending(training_pb2.END_REASON_FAILED, "The worker was stopped.", released=True)
            # Also where the data came in the same moment.
            if stopped in ends and self._heart.stopped.is_set():
                return Ending(self._heart.stop_reason, elapsed_ms=self._heart.vitals.elapsed_ms)
            return fetching.result()
        finally:
            for task in (fetching, stopped, released):
                await _cancel(task)

    async def _fetch(self) -> Job:
        config, lease = self._lease.run.config, self._lease
        fetch_data = partial(
            transfer.fetch_data,
            self._objects,
            self._cache,
            self._workdir,
            manifest_key=config.manifest_key,
            manifest_sha256=config.manifest_sha256,
            image_prefix=config.image_prefix,
            told=self._fetched,
        )
        data = await self._persistently("The data", fetch_data)
        if config.model_id:
            return await self._predict_job(data)
        if "train" not in data.splits:
            raise transfer.BadManifestError("The training split has no images. Import images, or change the split.")
        resume = None
        if lease.checkpoint_key:
            resume = self._workdir / "resume.pth"
            await self._download("The checkpoint", lease.checkpoint_key, resume, lease.checkpoint_sha256)
        weights = None if resume is not None else await self._fetch_weights(config)
        finish_only = lease.finish_only or (self._heart.stopped.is_set() and resume is not None)
        return TrainJob(
            workdir=str(self._workdir / "job"),
            images=str(data.images),
            train=str(data.splits["train"]),
            validation=_text(data.splits.get("validation")),
            test=_text(data.splits.get("test")),
            classes=tuple(config.classes),
            starting_point=_starting_point(config.starting_point),
            weights=_text(weights),
            input_size=config.input_size,
            epochs=config.epochs,
            lr=config.lr,
            batch_size=config.batch_size,
            warmup_iterations=config.warmup,
            seed=config.seed,
            expected_accuracy=config.expected_accuracy if config.HasField("expected_accuracy") else None,
            max_duration_ms=from_duration(config.max_duration),
            elapsed_ms=from_duration(lease.elapsed),
            resume=_text(resume),
            finish_only=finish_only,
            threads=self._threads,
            classifies=config.classification,
            label_names=dict(config.label_names),
            processes=1 if finish_only else max(1, lease.run.count),
            deterministic=self._deterministic,
            waits_for_kept=True,
        )

    async def _fetch_weights(self, config: training_pb2.TrainingConfig) -> Path | None:
        """What the training begins with: the account's own earlier model, or what the catalogue has."""
        point = _starting_point(config.starting_point)
        if config.weights_key:
            file = self._workdir / "earlier_model.pth"
            await self._download_model("The earlier model", config.weights_key, file, config.weights_sha256)
            return file
        if point in catalogue.PRETRAINED:
            file = self._workdir / catalogue.PRETRAINED[point].file_name
            fetch = partial(catalogue.fetch, self._objects, point, self._catalogue_url, file)
            await self._persistently("The weights", fetch, patience_s=MIRROR_PATIENCE_S)
            return file
        return None

    async def _predict_job(self, data: transfer.DataOnDisk) -> PredictJob:
        config, files = self._lease.run.config, self._lease.model_files
        if not files:
            raise UserError(MODEL_GONE)
        folder = self._workdir / "model"
        folder.mkdir(exist_ok=True)
        for file in files:
            await self._download_model("The model", file.key, folder / file.name, file.sha256)
        return PredictJob(
            workdir=str(self._workdir / "job"),
            images=str(data.images),
            model=str(folder),
            classes=tuple(config.classes),
            validation=_text(data.splits.get("validation")),
            test=_text(data.splits.get("test")),
            max_duration_ms=from_duration(config.max_duration),
            threads=self._threads,
            classifies=config.classification,
            label_names=dict(config.label_names),
        )

    async def _download(self, what: str, key: str, file: Path, sha256: str) -> None:
        await self._persistently(what, partial(self._objects.download, key, file, sha256=sha256))

    async def _download_model(self, what: str, key: str, file: Path, sha256: str) -> None:
        try:
            await self._download(what, key, file, sha256)
        except NotFoundError as error:
            raise UserError(MODEL_GONE) from error

    def _fetched(self, done: int, images: int) -> None:
        self._heart.vitals.stage_progress = DOWNLOAD_SHARE * done / max(1, images)

    # The child's job

    async def _train(self, child: ChildProcess, job: Job) -> Ending:
        await child.send(job)
        orders = asyncio.ensure_future(self._orders(child, finish_only=isinstance(job, TrainJob) and job.finish_only))
        kept = asyncio.ensure_future(self._tell_kept(child))
        try:
            while True:
                ending = self._take(await child.next())
                if ending is not None:
                    return ending
        except BadMessageError as error:
            await child.kill()
            return Ending(training_pb2.END_REASON_FAILED, f"The training process sent what it should not: {error}")
        finally:
            await _cancel(orders)
            await _cancel(kept)

    async def _tell_kept(self, child: ChildProcess) -> None:
        with contextlib.suppress(ChildGoneError):  # whoever reads the child's reports learns it
            while True:
                await child.send(protocol.Kept(await self._checkpoints.kept.get()))

    async def _orders(self, child: ChildProcess, *, finish_only: bool) -> None:
        stopped = asyncio.ensure_future(self._heart.stopped.wait())
        released = asyncio.ensure_future(self._released.wait())
        try:
            await asyncio.wait({stopped, released}, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(ChildGoneError):  # whoever reads the child's reports learns it
                if stopped.done() and not finish_only:
                    reason = training_pb2.EndReason.Name(self._heart.stop_reason)
                    self._heart.line(f"Stops: {reason.removeprefix('END_REASON_').lower().replace('_', ' ')}.")
                    await child.send(protocol.Stop(reason))
                await released
                await child.send(protocol.Stop("released", finish=False))
        finally:
            for task in (stopped, released):
                await _cancel(task)

    def _take(self, report: protocol.Message) -> Ending | None:
        vitals = self._heart.vitals
        match report:
            case protocol.Stage():
                self._entered(report)
            case protocol.Progress():
                self._progressed(report)
            case protocol.Metrics():
                self._heart.metric(report.iteration, report.epoch, report.values)
                for accuracy in (report.values[name] for name in ACCURACIES if name in report.values):
                    vitals.best_map_50 = max(accuracy, vitals.best_map_50 or 0.0)
            case protocol.Log():
                self._heart.line(report.text, LEVELS.get(report.level, training_pb2.LOG_LEVEL_INFO), report.time)
            case protocol.Checkpoint():
                self._checkpoints.offer(report)
            case protocol.Result():
                return self._result(report)
            case protocol.Halted():
                return Ending(training_pb2.END_REASON_FAILED, "The worker was stopped.", released=True)
            case protocol.Failure():
                log.warning("job_failed", run_id=self._lease.run.run_id, failure=report.message, detail=report.detail)
                self._heart.line(report.message, training_pb2.LOG_LEVEL_ERROR)
                user_error = report.kind is FailureKind.USER
                return Ending(training_pb2.END_REASON_FAILED, report.message, user_error=user_error)
            case _:
                raise BadMessageError(report.type)
        return None

    def _entered(self, report: protocol.Stage) -> None:
        vitals = self._heart.vitals
        if vitals.stage != STAGES[report.stage]:
            self._heart.hurry()
            self._stages.enter(report.stage.lower())
        vitals.stage = STAGES[report.stage]
        vitals.stage_progress = report.done / report.total if report.total else 0.0
        if self._lease.run.config.model_id and report.total:
            vitals.iteration, vitals.iterations = report.done, report.total
        if report.stage is not StageName.TRAINING:
            vitals.trained_by_s = None

    def _progressed(self, report: protocol.Progress) -> None:
        if not self._progresses:
            self._heart.hurry()
        self._progresses = True
        vitals = self._heart.vitals
        vitals.iteration, vitals.iterations, vitals.elapsed_ms = report.iteration, report.iterations, report.elapsed_ms
        vitals.validated = report.validated
        vitals.epoch = report.iteration * report.epochs / report.iterations
        vitals.stage_progress = report.iteration / report.iterations
        vitals.trained_by_s = None if report.left_ms is None else time.monotonic() + report.left_ms / 1000

    def _result(self, result: protocol.Result) -> Ending:
        reason = REASONS.get(result.reason)
        if result.reason is EndReason.STOPPED:
            reason = training_pb2.EndReason.Value(result.stop_reason)
        if reason is None:  # finished what a checkpoint held: by order, or because the attempts are used up
            reason = self._heart.stop_reason or training_pb2.END_REASON_FAILED
        message = "" if result.files else "The max duration ended the prediction before its last image; allow more."
        self._heart.vitals.elapsed_ms = result.elapsed_ms
        self._heart.vitals.stage_progress = 1.0
        return Ending(reason, message, files=result.files, best_map_50=result.best_map_50, elapsed_ms=result.elapsed_ms)

    # The end

    async def _finish(self, ending: Ending) -> str:
        self._stages.enter("upload")
        try:
            upload = partial(transfer.upload_files, self._objects, ending.files, self._lease.artifact_prefix)
            await self._finish_run(ending, await self._persistently("The results", upload))
        except (DataLossError, InvalidArgumentError, OSError) as error:
            # What was sent is not what was meant; a new attempt may do better.
            log.warning("results_refused", run_id=self._lease.run.run_id, error=repr(error))
            ending = Ending(training_pb2.END_REASON_FAILED, f"The results could not be kept: {error}")
            await self._finish_run(ending, [])
        if ending.released:
            return "released"
        return training_pb2.EndReason.Name(ending.reason).removeprefix("END_REASON_").lower()

    async def _finish_run(self, ending: Ending, uploaded: list[transfer.Uploaded]) -> None:
        request = worker_pb2.FinishRunRequest(
            request_id=new_id(),
            run_id=self._lease.run.run_id,
            token=self._lease.token,
            reason=ending.reason,
            error_message=ending.error_message[:MAX_MESSAGE_CHARACTERS],
            user_error=ending.user_error,
            released=ending.released,
            best_map_50=ending.best_map_50,
            elapsed=to_duration(ending.elapsed_ms),
            files=[
                training_pb2.ModelFile(name=file.name, key=file.key, size_bytes=file.size_bytes, sha256=file.sha256)
                for file in uploaded
            ],
        )
        # Of a run that has ended no heartbeat is accepted.
        await self._heart.flush()
        self._finishing = True
        while True:
            try:
                await call(self._stub.FinishRun, request, self._token, timeout_s=FINISH_CALL_S)
            except (DataLossError, InvalidArgumentError):
                raise
            except (FailedPreconditionError, NotFoundError) as error:
                raise LeaseLostError(error.message) from error
            except (DomainError, OSError) as error:
                log.warning("finish_failed", run_id=request.run_id, error=repr(error))
                await asyncio.sleep(RETRY_S)
            else:
                return


def _starting_point(name: str) -> StartingPoint:
    try:
        return StartingPoint(name or StartingPoint.IMAGENET_LITE0)
    except ValueError as error:
        raise BadMessageError(
            f"There is no starting point {name}; choose one of {', '.join(StartingPoint)}."
        ) from error


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
