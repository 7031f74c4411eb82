"""Runs: what they are and how they move. What of their time is charged is decided in charging.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError
from saucer.training.charging import LEASE_MS, NOWHERE, Meter, Place, begin_attempt, count
from saucer.training.lease import Lease
from saucer.training.log_limit import LogLimit

# Attempts that may be lost. After the last, or an error of the user's, one more finishes what the checkpoint holds,
# uncharged.
MAX_ATTEMPTS = 3
# A run that no worker takes within this ends: WAITED_TOO_LONG, or with the reason of its order to stop.
QUEUE_LIMIT = timedelta(hours=24)
# A run that is only to be finished waits this long for a worker; then it ends without a model.
FINISH_QUEUE_LIMIT = timedelta(hours=1)
# From the end of training, or the order to stop, to FinishRun; an attempt that takes longer is lost.
FINISH_LIMIT = timedelta(seconds=1200)
# After the first, second, … lost attempt: how long the run waits before it may be leased again. One loss is most often
# the worker's; a run that loses several may be what takes them down, and leaves the others alone for a while.
BACK_OFF = (timedelta(0), timedelta(seconds=10), timedelta(seconds=30))
# An attempt that makes no progress for so long is lost: its worker is alive, its work is not.
STALL_LOST = timedelta(seconds=900)
# Workers stop at the max duration by themselves; the service orders it when they exceed it by this.
DURATION_GRACE_MS = 60_000
# RunProgressed comes at least this often.
TELL_EVERY = timedelta(seconds=60)
# Share of a run's progress that each stage begins and ends with; of one that only predicts, below.
STAGE_SHARES: Mapping[str, tuple[float, float]] = {
    "PREPARING_DATA": (0.0, 0.02),
    "TRAINING": (0.02, 0.94),
    "EXPORTING": (0.94, 0.97),
    "PREDICTING": (0.97, 1.0),
}
PREDICT_SHARES: Mapping[str, tuple[float, float]] = {"PREPARING_DATA": (0.0, 0.1), "PREDICTING": (0.1, 1.0)}


class RunState(StrEnum):
    """Of a run."""

    QUEUED = "QUEUED"
    LEASED = "LEASED"
    RUNNING = "RUNNING"
    ENDED = "ENDED"


class RunStage(StrEnum):
    """What is being done."""

    QUEUED = "QUEUED"
    PREPARING_DATA = "PREPARING_DATA"
    TRAINING = "TRAINING"
    EXPORTING = "EXPORTING"
    PREDICTING = "PREDICTING"
    ENDED = "ENDED"


class EndReason(StrEnum):
    """Why a run ended."""

    COMPLETED = "COMPLETED"
    ACCURACY_REACHED = "ACCURACY_REACHED"
    DURATION_REACHED = "DURATION_REACHED"
    STOPPED_BY_USER = "STOPPED_BY_USER"
    ARREARS = "ARREARS"
    BUDGET_REACHED = "BUDGET_REACHED"
    GROUP_ENDED = "GROUP_ENDED"
    WAITED_TOO_LONG = "WAITED_TOO_LONG"
    ACCOUNT_SUSPENDED = "ACCOUNT_SUSPENDED"
    FAILED = "FAILED"


# A worker may give these by itself; any other only if it was ordered.
WORKERS_REASONS = frozenset(
    {EndReason.COMPLETED, EndReason.ACCURACY_REACHED, EndReason.DURATION_REACHED, EndReason.FAILED}
)

# A run that does not exist yet is None.
TRANSITIONS: Mapping[RunState | None, frozenset[RunState]] = {
    None: frozenset({RunState.QUEUED}),
    RunState.QUEUED: frozenset({RunState.LEASED, RunState.ENDED}),
    RunState.LEASED: frozenset({RunState.RUNNING, RunState.QUEUED, RunState.ENDED}),
    RunState.RUNNING: frozenset({RunState.QUEUED, RunState.ENDED}),
    RunState.ENDED: frozenset(),
}

_WORKING_STAGES = (RunStage.PREPARING_DATA, RunStage.TRAINING, RunStage.EXPORTING, RunStage.PREDICTING)
_FINISHING_STAGES = (RunStage.EXPORTING, RunStage.PREDICTING)
_TRAINING_RANK = 1 + _WORKING_STAGES.index(RunStage.TRAINING)


def may_move(source: RunState | None, target: RunState) -> bool:
    """Whether the table allows it."""
    return target in TRANSITIONS[source]


@dataclass(frozen=True)
class Checkpoint:
    """What another attempt goes on from."""

    key: str
    sha256: str
    iteration: int
    elapsed_ms: int


@dataclass(frozen=True)
class Progress:
    """What the last heartbeat said. `stage_progress` is of the stage, 0 to 1; `elapsed_ms` over all attempts;
    `validated` the part that is done of the validation that runs after `iteration`, below 1, which is not stored."""

    stage: RunStage = RunStage.QUEUED
    iteration: int = 0
    iterations: int = 0
    epoch: float = 0.0
    elapsed_ms: int = 0
    time_left_ms: int | None = None
    # Of a validation: map_50, or top-1 of a classification.
    best_accuracy: float | None = None
    stage_progress: float = 0.0
    validated: float = 0.0

    @property
    def place(self) -> Place:
        """For the meter."""
        if self.stage not in _WORKING_STAGES:
            return NOWHERE
        done = self.iteration + self.validated if self.stage is RunStage.TRAINING else self.stage_progress
        return Place(1 + _WORKING_STAGES.index(self.stage), done)


@dataclass(frozen=True)
class RunRequest:
    """What a run is queued for. `config` is the worker's business, and kept as it came."""

    run_id: str
    account_id: str
    task_id: str
    task_name: str
    start_number: int
    hold_id: str
    region_id: str
    spec_id: str
    count: int
    dataset_version_id: str
    config: str
    max_duration_ms: int
    output_prefix: str
    # Of the account's own runs the higher goes first.
    priority: int = 0
    # Not None: nothing is trained, this model only predicts.
    predicts_model_id: str | None = None
    # The trace of what asked for it.
    traceparent: str | None = None


@dataclass(frozen=True)
class Run:
    """The training of one start."""

    request: RunRequest
    state: RunState
    created_at: datetime
    # Since when it waits; a lease that no heartbeat followed does not count as a break.
    queued_at: datetime
    # Not leased before; None: at once.
    ready_at: datetime | None = None
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)
    lease: Lease | None = None
    checkpoint: Checkpoint | None = None
    # Leases given so far; names the attempt and its files.
    attempt: int = 0
    # Begun, and lost by their worker; an error of the user's uses up those that are left.
    lost_attempts: int = 0
    stop_reason: EndReason | None = None
    stop_at_charged_ms: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    error_message: str = ""
    model_id: str | None = None
    finish_request_id: str | None = None
    metric_count: int = 0
    log_count: int = 0
    log_limit: LogLimit = field(default_factory=LogLimit)
    # Of the log's last line; times never go back in it.
    logged_at: datetime | None = None
    # Of the last RunProgressed.
    told_at: datetime | None = None
    told_epoch: int = 0
    revision: int = 1

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.request.run_id

    @property
    def exhausted(self) -> bool:
        """The attempts are used up: what was learnt may be finished, uncharged."""
        return self.lost_attempts >= MAX_ATTEMPTS

    @property
    def must_stop(self) -> bool:
        """Whether an order to stop holds by now."""
        return self.stop_reason is not None and self.meter.charged_ms >= self.stop_at_charged_ms

    @property
    def finish_only(self) -> bool:
        """The next attempt trains no more."""
        return self.exhausted or (self.must_stop and self.started_at is not None)

    @property
    def artifact_prefix(self) -> str:
        """Where the present attempt puts its files."""
        return f"system/{self.request.account_id}/runs/{self.run_id}/attempt-{self.attempt}"

    @property
    def done(self) -> float:
        """Of the whole run, 0 to 1; training counts by iterations or by its max duration, whichever is further."""
        if self.state is RunState.ENDED:
            return 1.0
        progress = self.progress
        shares = STAGE_SHARES if self.request.predicts_model_id is None else PREDICT_SHARES
        if progress.stage not in shares:
            return 0.0
        share = progress.stage_progress
        if progress.stage is RunStage.TRAINING:
            iterations = progress.iteration / progress.iterations if progress.iterations else 0.0
            share = max(iterations, progress.elapsed_ms / self.request.max_duration_ms)
        first, last = shares[progress.stage]
        return first + (last - first) * min(1.0, share)


@dataclass(frozen=True)
class Beat:
    """A heartbeat, less the metrics and log lines that come with it."""

    sequence: int
    progress: Progress
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class MetricPoint:
    """Values at an iteration."""

    sequence: int
    iteration: int
    epoch: float
    values: Mapping[str, float]
    time: datetime


@dataclass(frozen=True)
class LogLine:
    """A line of a run's log; `level` as saucer.training.v1.LogLevel numbers them."""

    sequence: int
    attempt: int
    level: int
    time: datetime
    text: str


@dataclass(frozen=True)
class LogSearch:
    """Lines in which every keyword occurs, whatever its case, of a level and above; `start` included, `end` not."""

    keywords: tuple[str, ...] = ()
    min_level: int = 0
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class ModelFile:
    """One file of a model."""

    name: str
    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Prediction:
    """What a run leaves that only predicts. `files` are the detections of the model on the run's data."""

    model_id: str
    request: RunRequest
    files: tuple[ModelFile, ...]


@dataclass(frozen=True)
class Model:
    """What a run leaves."""

    model_id: str
    run_id: str
    account_id: str
    task_id: str
    task_name: str
    dataset_version_id: str
    config: str
    # Of a validation: map_50, or top-1 of a classification.
    best_accuracy: float | None
    files: tuple[ModelFile, ...]
    created_at: datetime
    deleted_at: datetime | None = None
    revision: int = 1


@dataclass(frozen=True)
class Deployment:
    """As publishing told of it last: the models that it serves, or may."""

    deployment_id: str
    model_ids: tuple[str, ...]
    at_rest: bool
    revision: int


def delete_model(model: Model, served_by: str | None, now: datetime) -> Model:
    """Softly; again changes nothing.

    Args:
        served_by: a deployment that is not at rest; None: there is none.

    Raises FailedPreconditionError: MODEL_SERVED.
    """
    if model.deleted_at is not None:
        return model
    if served_by is not None:
        raise FailedPreconditionError(
            "MODEL_SERVED", f"The deployment {served_by} serves the model; stop it first.", deployment_id=served_by
        )
    return replace(model, deleted_at=now, revision=model.revision + 1)


def move(run: Run, target: RunState) -> Run:
    """Raises FailedPreconditionError naming the state that does not allow it."""
    if not may_move(run.state, target):
        raise FailedPreconditionError("RUN_STATE", f"A run that is {run.state} cannot become {target}.")
    return replace(run, state=target)


def queue(request: RunRequest, former: Run | None, now: datetime) -> Run:
    """A new run; with `former`, the task's run before, from that one's last checkpoint and with its elapsed time."""
    run = Run(request, RunState.QUEUED, created_at=now, queued_at=now)
    if former is None or former.checkpoint is None:
        return run
    counted = former.meter.counted
    if counted.stage > _TRAINING_RANK:
        counted = Place(_TRAINING_RANK, float(former.progress.iteration))
    return replace(
        run,
        checkpoint=former.checkpoint,
        # What the former start's worker had counted and then lost is not charged to this one either.
        meter=Meter(counted=counted),
        progress=Progress(
            iteration=former.checkpoint.iteration,
            iterations=former.progress.iterations,
            elapsed_ms=former.checkpoint.elapsed_ms,
            best_accuracy=former.progress.best_accuracy,
        ),
    )


def order_stop(run: Run, reason: EndReason, at_charged_ms: int, now: datetime) -> Run:
    """The first order stays. A run that no worker has, and that has learnt nothing, ends at once."""
    if run.state is RunState.ENDED or run.stop_reason is not None:
        return run
    run = replace(run, stop_reason=reason, stop_at_charged_ms=at_charged_ms)
    if run.state is RunState.QUEUED and run.must_stop and not can_be_finished(run):
        # What an earlier attempt ended with did not end the run.
        return end(replace(run, error_message=""), reason, now)
    if run.state is RunState.QUEUED and run.must_stop:
        return replace(run, queued_at=now, ready_at=None)
    return run


def lease(run: Run, lease: Lease, now: datetime) -> Run:
    """To a worker: the next attempt. The charge begins with its first heartbeat."""
    return replace(
        move(run, RunState.LEASED),
        lease=replace(lease, expires_at=now + timedelta(milliseconds=LEASE_MS)),
        attempt=run.attempt + 1,
        meter=begin_attempt(run.meter),
        ready_at=None,
    )


def check_checkpoint(run: Run, checkpoint: Checkpoint | None) -> None:
    """Raises InvalidArgumentError unless it lies under the present attempt's prefix."""
    if checkpoint is not None and not checkpoint.key.startswith(f"{run.artifact_prefix}/"):
        raise InvalidArgumentError(
            "KEY_OUTSIDE_ATTEMPT", f"checkpoint.key: it does not lie under {run.artifact_prefix}/."
        )


def overdue(run: Run, now: datetime) -> str | None:
    """Why the present attempt is lost although its worker is heard of; None: it is not."""
    if run.lease is not None and run.lease.finish_by is not None and now > run.lease.finish_by:
        return f"Finishing took longer than {FINISH_LIMIT.seconds} s."
    if run.meter.progressed_at is not None and now - run.meter.progressed_at > STALL_LOST:
        return f"There was no progress for {STALL_LOST.seconds} s."
    return None


def beat(run: Run, heard: Beat, now: datetime) -> Run:
    """The run after a heartbeat of its owner that came for the first time."""
    assert run.lease is not None
    first = run.state is RunState.LEASED
    if first:
        run = replace(move(run, RunState.RUNNING), started_at=run.started_at or now, told_at=None)
    progress = heard.progress
    meter = count(run.meter, now, progress.place, finishing=_is_finishing(run, progress.stage), free=run.exhausted)
    best = [value for value in (run.progress.best_accuracy, progress.best_accuracy) if value is not None]
    run = replace(
        run,
        meter=meter,
        progress=replace(progress, best_accuracy=max(best) if best else None),
        checkpoint=heard.checkpoint or run.checkpoint,
    )
    if run.stop_reason is None and progress.elapsed_ms > run.request.max_duration_ms + DURATION_GRACE_MS:
        run = replace(run, stop_reason=EndReason.DURATION_REACHED)
    finishing = _is_finishing(run, progress.stage)
    assert run.lease is not None
    return replace(
        run,
        lease=replace(
            run.lease,
            expires_at=now + timedelta(milliseconds=LEASE_MS),
            sequence=heard.sequence,
            finish_by=(run.lease.finish_by or now + FINISH_LIMIT) if finishing else None,
        ),
    )


def _is_finishing(run: Run, stage: RunStage) -> bool:
    """Whether what is left has a limit of its own; to predict is no finishing where there is nothing else to do."""
    return run.must_stop or (run.request.predicts_model_id is None and stage in _FINISHING_STAGES)


def tells(before: Run, after: Run, now: datetime) -> bool:
    """Whether a heartbeat is to be followed by RunProgressed: each minute, epoch, stage, and when an attempt begins."""
    return (
        after.told_at is None
        or now - after.told_at >= TELL_EVERY
        or int(after.progress.epoch) > after.told_epoch
        or after.progress.stage is not before.progress.stage
    )


def as_of(run: Run, now: datetime) -> Run:
    """What is told of it at `now`: since the last heartbeat less time is left."""
    left_ms, beat_at = run.progress.time_left_ms, run.meter.beat_at
    if left_ms is None or beat_at is None:
        return run
    left_ms -= (now - beat_at) // timedelta(milliseconds=1)
    return replace(run, progress=replace(run.progress, time_left_ms=max(0, left_ms)))


def told(run: Run, now: datetime) -> Run:
    """After RunStarted or RunProgressed."""
    return replace(run, told_at=now, told_epoch=int(run.progress.epoch))


def lose(run: Run, now: datetime, message: str, *, released: bool = False, user_error: bool = False) -> Run:
    """The worker is gone. Queued again, to train or only to finish; ended if neither can be.

    Args:
        message: kept of the attempt that used them up, not of the one that was to finish. An error of the user's says
            what to do itself.
        released: the worker gave the run back; the attempt does not count as lost.
        user_error: another attempt to train would fail alike; they count as used up.
    """
    begun = run.state is RunState.RUNNING
    was_exhausted = run.exhausted
    lost_attempts = run.lost_attempts + (1 if begun and not released else 0)
    run = replace(run, lost_attempts=max(lost_attempts, MAX_ATTEMPTS) if user_error else lost_attempts)
    nothing_to_finish = (run.must_stop or run.exhausted) and not can_be_finished(run)
    if not was_exhausted:
        if not user_error and (run.exhausted or nothing_to_finish):
            message = _and_restart(run, message)
        run = replace(run, error_message="" if released else message)
    if run.lost_attempts > MAX_ATTEMPTS or nothing_to_finish:
        return end(run, _reason_without_worker(run), now)
    assert run.lease is not None
    return replace(
        move(run, RunState.QUEUED),
        lease=replace(run.lease, expires_at=None, finish_by=None),
        queued_at=now if begun else run.queued_at,
        ready_at=now + BACK_OFF[run.lost_attempts - 1] if begun and not released and not user_error else None,
        progress=_kept(run) if begun else run.progress,
    )


def _kept(run: Run) -> Progress:
    """What is left of a lost attempt's progress: its checkpoint."""
    progress, checkpoint = run.progress, run.checkpoint
    iteration = checkpoint.iteration if checkpoint is not None else 0
    return Progress(
        iteration=iteration,
        iterations=progress.iterations,
        epoch=progress.epoch * iteration / progress.iteration if progress.iteration else 0.0,
        elapsed_ms=checkpoint.elapsed_ms if checkpoint is not None else 0,
        best_accuracy=progress.best_accuracy,
    )


def can_be_finished(run: Run) -> bool:
    """Whether there is something that was learnt."""
    return run.started_at is not None and run.checkpoint is not None


def _reason_without_worker(run: Run) -> EndReason:
    return run.stop_reason if run.stop_reason is not None and run.must_stop else EndReason.FAILED


def waited_too_long(run: Run, now: datetime) -> bool:
    """Of a queued one."""
    return now - run.queued_at > (FINISH_QUEUE_LIMIT if run.finish_only else QUEUE_LIMIT)


def give_up_waiting(run: Run, now: datetime) -> Run:
    """Ends a queued run that no worker took."""
    if not run.finish_only:
        hours = QUEUE_LIMIT // timedelta(hours=1)
        message = _and_restart(run, f"No worker was free within {hours} hours.")
        return end(replace(run, error_message=message), EndReason.WAITED_TOO_LONG, now)
    minutes = FINISH_QUEUE_LIMIT // timedelta(minutes=1)
    message = f"No worker was free within {minutes} minutes to make a model of what was learnt."
    # What used the attempts up says what to do.
    message = f"{run.error_message} {message}" if run.exhausted else _and_restart(run, message)
    return end(replace(run, error_message=message), _reason_without_worker(run), now)


def _and_restart(run: Run, message: str) -> str:
    """The sentence of an end that no setting of the user's has brought about, with what to do."""
    learnt = run.checkpoint
    goes_on = f"it goes on from iteration {learnt.iteration}" if learnt is not None else "it begins anew"
    return f"{message.rstrip('.')}. Restart the task; {goes_on}."


def reason_of(run: Run, given: EndReason) -> EndReason:
    """Why a run ends whose worker gives this reason.

    Raises InvalidArgumentError for a reason that is not the worker's to give.
    """
    if given not in WORKERS_REASONS and given is not run.stop_reason:
        raise InvalidArgumentError("REASON_NOT_ORDERED", f"reason: {given} was not ordered of this run.")
    if run.exhausted and run.stop_reason is None:
        return EndReason.FAILED
    return given


def goes_on(run: Run, reason: EndReason, *, user_error: bool, finished: bool) -> bool:
    """Whether another attempt may do better than this one, which ends for this reason.

    After an error of the user's it may once: not train on, but make a model of what was learnt before.

    Args:
        finished: there are files all the same.
    """
    if reason is not EndReason.FAILED:
        return False
    if user_error:
        return can_be_finished(run) and not run.exhausted
    return not (run.exhausted and finished)


def end(run: Run, reason: EndReason, now: datetime, *, model_id: str | None = None) -> Run:
    """At rest. Why there is no model is told, and why the attempts failed that one was made of."""
    told = model_id is None or reason is EndReason.FAILED
    return replace(
        move(run, RunState.ENDED),
        end_reason=reason,
        ended_at=now,
        ready_at=None,
        model_id=model_id,
        error_message=run.error_message if told else "",
        lease=replace(run.lease, expires_at=None, finish_by=None) if run.lease else None,
        progress=replace(run.progress, stage=RunStage.ENDED, stage_progress=1.0, time_left_ms=None),
    )
