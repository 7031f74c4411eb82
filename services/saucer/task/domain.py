"""A task: what it is, how its state may move, and what events of others make of it. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from saucer.lib.money import charge_micros


class Refused(Exception):  # noqa: N818 - it is an answer, not a mishap
    """A form that the data or the scene does not allow."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class TaskState(StrEnum):
    """Of a task. Those from SUCCEEDED on are at rest."""

    PENDING = "PENDING"
    WAITING = "WAITING"
    QUEUED = "QUEUED"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    REFUSED = "REFUSED"


_S = TaskState
# There is no run yet.
UNQUEUED = frozenset({_S.PENDING, _S.WAITING})
# In these billing keeps a hold for the start, between two moments: it is granted as PENDING ends, and resolved when the
# run has.
HOLDING = frozenset({_S.QUEUED, _S.TRAINING})
AT_REST = frozenset({_S.SUCCEEDED, _S.STOPPED, _S.FAILED, _S.REFUSED})
RESTARTABLE = frozenset({_S.STOPPED, _S.FAILED, _S.REFUSED})

TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    # A refused restart goes back to where it came from; a first start has only REFUSED.
    _S.PENDING: frozenset({_S.WAITING, _S.QUEUED, _S.REFUSED, _S.STOPPED, _S.FAILED}),
    _S.WAITING: frozenset({_S.QUEUED, _S.STOPPED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.TRAINING, _S.EVALUATING, _S.STOPPED, _S.FAILED}),
    _S.TRAINING: frozenset({_S.EVALUATING, _S.STOPPED, _S.FAILED}),
    _S.EVALUATING: frozenset({_S.SUCCEEDED, _S.STOPPED, _S.FAILED}),
    _S.SUCCEEDED: frozenset(),
    _S.STOPPED: frozenset({_S.PENDING}),
    _S.FAILED: frozenset({_S.PENDING}),
    _S.REFUSED: frozenset({_S.PENDING}),
}


class TaskKind(StrEnum):
    """What a task does: trains a model, or evaluates one that is there on other data."""

    TRAIN = "TRAIN"
    PREDICT = "PREDICT"


class EndReason(StrEnum):
    """Why a start ended."""

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


END_STATES: Mapping[EndReason, TaskState] = {
    EndReason.COMPLETED: _S.SUCCEEDED,
    EndReason.ACCURACY_REACHED: _S.SUCCEEDED,
    EndReason.DURATION_REACHED: _S.SUCCEEDED,
    EndReason.STOPPED_BY_USER: _S.STOPPED,
    EndReason.ARREARS: _S.STOPPED,
    EndReason.BUDGET_REACHED: _S.STOPPED,
    EndReason.GROUP_ENDED: _S.STOPPED,
    EndReason.WAITED_TOO_LONG: _S.FAILED,
    EndReason.ACCOUNT_SUSPENDED: _S.STOPPED,
    EndReason.FAILED: _S.FAILED,
}


class Action(StrEnum):
    """What a user's call has changed."""

    RESTARTED = "RESTARTED"
    STOPPED = "STOPPED"


class ChargeStatus(StrEnum):
    """Separate from the state: whether the present start is being charged."""

    NOT_BILLING = "NOT_BILLING"
    BILLING = "BILLING"
    STOPPED_FOR_ARREARS = "STOPPED_FOR_ARREARS"


@dataclass(frozen=True)
class Form:
    """What the user chose; None: left open."""

    display_name: str
    scene: str
    remark: str
    tags: tuple[str, ...]
    dataset_version_id: str
    output_path: str
    expected_accuracy: float | None
    max_duration_ms: int | None
    epochs: int | None
    lr: float | None
    batch_size: int | None
    warmup: int | None
    input_size: int | None
    region_id: str
    spec_id: str
    count: int
    billing_mode: str
    starting_point: str
    seed: int
    # Of PREPAID; empty otherwise.
    resource_group_id: str = ""
    # 0: none of its own.
    budget_micros: int = 0
    # Among the account's own that wait for a worker; the higher goes first.
    priority: int = 0
    kind: TaskKind = TaskKind.TRAIN
    # Of a predict task.
    model_id: str = ""
    # Of a training that begins with the account's own earlier model.
    base_model_id: str = ""

    @property
    def prepaid(self) -> bool:
        """Whether it takes capacity, and not money."""
        return self.billing_mode == "PREPAID"


@dataclass(frozen=True)
class Config:
    """What the training is given."""

    scene: str
    classes: tuple[str, ...]
    manifest_key: str
    manifest_sha256: str
    image_prefix: str
    input_size: int
    epochs: int
    lr: float
    batch_size: int
    warmup: int
    seed: int
    expected_accuracy: float | None
    max_duration_ms: int
    starting_point: str
    output_path: str
    resume: bool
    # Of a predict task.
    model_id: str = ""
    classification: bool = False
    # Pairs of a label's name in the data and the class that it stands for, where they differ.
    label_names: tuple[tuple[str, str], ...] = ()
    # Of the account's own earlier model that the training begins with.
    weights_key: str = ""
    weights_sha256: str = ""


@dataclass(frozen=True)
class Progress:
    """Of the present start, as the last event of its run told it."""

    run_id: str = ""
    run_revision: int = 0
    stage: str = "UNSPECIFIED"
    attempt: int = 0
    fraction: float = 0.0
    iteration: int = 0
    iterations: int = 0
    epoch: float = 0.0
    elapsed_ms: int = 0
    time_left_ms: int | None = None
    charged_ms: int = 0
    # Top-1 of a classification.
    best_map_50: float | None = None


@dataclass(frozen=True)
class Former:
    """What a refused restart puts back, beside the state: what the start before was given, and how far it came."""

    form: Form
    config: Config
    progress: Progress
    stop_requested: bool
    ended_at: datetime


@dataclass(frozen=True)
class KnownModel:
    """A model that a run left, as far as a task depends on it that predicts with it or begins with it."""

    model_id: str
    account_id: str
    scene: str
    classes: tuple[str, ...]
    input_size: int
    # Of the run; empty: unknown.
    starting_point: str = ""
    weights_key: str = ""
    weights_sha256: str = ""
    classification: bool = False


@dataclass(frozen=True)
class Evaluated:
    """How an evaluation of what a run left has ended."""

    run_id: str
    evaluation_id: str
    # On the test split; None: it could not be scored.
    test_accuracy: float | None
    message: str


@dataclass(frozen=True)
class Task:
    """One AutoML job."""

    task_id: str
    account_id: str
    request_id: str
    form: Form
    config: Config
    # field, value, reason
    derived: tuple[tuple[str, str, str], ...]
    state: TaskState
    # Where a refused restart goes back to.
    former_state: TaskState | None
    # Of a restart that is not granted yet.
    former: Former | None
    charge_status: ChargeStatus
    start_number: int
    restart_request_id: str | None
    hold_micros: int
    price_per_hour_micros: int
    currency: str
    progress: Progress
    stop_requested: bool
    end_reason: EndReason | None
    error_message: str
    missing_micros: int
    model_id: str
    evaluation_id: str
    # On the test split: map_50, or top-1 of a classification.
    test_accuracy: float | None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    deleted_at: datetime | None
    revision: int
    # An earlier start has learnt something: to resume from, until a worker begins the present one.
    learnt_before: bool = False
    # An evaluation's end that has overtaken that of its run: kept until the run's end is heard.
    evaluated: Evaluated | None = None

    @property
    def hold_id(self) -> str:
        """Of the present start: the same on every retry."""
        return f"{self.task_id}-{self.start_number}"

    @property
    def at_rest(self) -> bool:
        """Whether nothing moves any more."""
        return self.state in AT_REST

    @property
    def refused(self) -> bool:
        """Whether the present start was refused its hold."""
        return self.state is TaskState.REFUSED or (self.at_rest and self.former_state is not None)

    @property
    def needed_models(self) -> frozenset[str]:
        """Of the account's own, those that a start without a run needs: to predict with, or to begin with."""
        # A checkpoint holds what the training began with. No event tells of one; a run without an iteration has none.
        resumes = self.config.resume and (self.progress.iteration > 0 or self.learnt_before)
        return frozenset({self.form.model_id, "" if resumes else self.form.base_model_id} - {""})

    @property
    def cost_micros(self) -> int:
        """Of the present start so far, as billing charges it (PRODUCT 6.3)."""
        return charge_micros(self.price_per_hour_micros, self.form.count, self.progress.charged_ms)


def transition(task: Task, state: TaskState, now: datetime) -> Task:
    """Raises ValueError for a move that the table does not have."""
    if state not in TRANSITIONS[task.state]:
        raise ValueError(f"A task does not go from {task.state} to {state}.")
    return replace(task, state=state, updated_at=now, ended_at=now if state in AT_REST else None)


def wait(task: Task, now: datetime) -> Task:
    """Its resource group has no free capacity yet."""
    return transition(task, TaskState.WAITING, now)


def queue(task: Task, hold_micros: int, price_per_hour_micros: int, currency: str, now: datetime) -> Task:
    """The hold is granted; what a former start left is left behind only now."""
    return replace(
        transition(task, TaskState.QUEUED, now),
        charge_status=ChargeStatus.NOT_BILLING,
        stop_requested=False,
        end_reason=None,
        error_message="",
        model_id="",
        evaluation_id="",
        test_accuracy=None,
        hold_micros=hold_micros,
        price_per_hour_micros=price_per_hour_micros,
        currency=currency,
        missing_micros=0,
        former_state=None,
        former=None,
        progress=Progress(stage="QUEUED"),
        evaluated=None,
        learnt_before=task.learnt_before or task.progress.iteration > 0,
    )


def end_unqueued(task: Task, state: TaskState, reason: EndReason, message: str, now: datetime) -> Task:
    """Ends a start that has no run."""
    ended = transition(task, state, now)
    return replace(ended, end_reason=reason, error_message=message, former_state=None, former=None)


def refuse(task: Task, message: str, missing_micros: int, now: datetime) -> Task:
    """The hold is refused: a first start is REFUSED, a restart is where it was, and has a former state still."""
    refused = transition(task, task.former_state or TaskState.REFUSED, now)
    refused = replace(refused, missing_micros=missing_micros, error_message=message, former=None)
    former = task.former
    if former is None:
        return refused
    return replace(
        refused,
        form=former.form,
        config=former.config,
        progress=former.progress,
        stop_requested=former.stop_requested,
        ended_at=former.ended_at,
    )


def restart(
    task: Task,
    request_id: str,
    *,
    from_scratch: bool,
    max_duration_ms: int | None,
    now: datetime,
    form: Form | None = None,
) -> Task:
    """A new start of the same task, which may yet be refused. Raises ValueError unless it can be restarted.

    Args:
        form: with another billing mode or resource group; None: as before.
    """
    config = replace(
        task.config,
        resume=not from_scratch and bool(task.progress.run_id),
        max_duration_ms=max_duration_ms or task.config.max_duration_ms,
    )
    pending = transition(task, TaskState.PENDING, now)
    assert task.ended_at is not None, "it is at rest"
    return replace(
        pending,
        former_state=task.state,
        former=Former(task.form, task.config, task.progress, task.stop_requested, task.ended_at),
        start_number=task.start_number + 1,
        restart_request_id=request_id,
        form=form or task.form,
        config=config,
        stop_requested=False,
        # What ends before it is granted must not charge the former start's time to the new hold.
        progress=replace(task.progress, charged_ms=0),
    )


def follow(task: Task, progress: Progress, *, running: bool, charged: bool, begun: bool, now: datetime) -> Task:
    """A run's snapshot: progress, and TRAINING once it runs. An older snapshot changes nothing.

    Args:
        charged: unlike the attempt that only finishes what lost ones learnt.
        begun: a worker has had the run, so that the next start resumes from this one.
    """
    if task.at_rest or task.state is TaskState.EVALUATING or progress.run_revision <= task.progress.run_revision:
        return task
    if running and task.state is TaskState.QUEUED:
        task = transition(task, TaskState.TRAINING, now)
    status = ChargeStatus.BILLING if running and charged and not task.form.prepaid else ChargeStatus.NOT_BILLING
    return replace(_reach(task, progress, begun=begun), charge_status=status, updated_at=now)


def end_run(
    task: Task, progress: Progress, reason: EndReason, model_id: str, message: str, *, begun: bool, now: datetime
) -> Task:
    """The run is over: its model is evaluated, or without one the task is at rest. `begun` as follow() has it."""
    if task.at_rest or task.state is TaskState.EVALUATING:
        return task
    evaluated, arrears = task.evaluated, reason is EndReason.ARREARS
    task = replace(
        _reach(task, progress, begun=begun),
        end_reason=reason,
        model_id=model_id,
        error_message=message,
        charge_status=ChargeStatus.STOPPED_FOR_ARREARS if arrears else ChargeStatus.NOT_BILLING,
        evaluated=None,
    )
    if model_id:
        evaluating = transition(task, TaskState.EVALUATING, now)
        return evaluating if evaluated is None else hear_evaluation(evaluating, evaluated, now)
    # Nothing was learnt that could be used, so nothing has succeeded, whatever ended the run.
    state = END_STATES[reason]
    return transition(task, TaskState.FAILED if state is TaskState.SUCCEEDED else state, now)


def _reach(task: Task, progress: Progress, *, begun: bool) -> Task:
    return replace(task, progress=progress, learnt_before=task.learnt_before and not begun)


def hear_evaluation(task: Task, evaluated: Evaluated, now: datetime) -> Task:
    """The evaluation of a run has ended; that of another start's run changes nothing.

    It may be heard before the run's end, which is delivered again while the evaluation goes on: then it is kept.
    """
    if task.state is TaskState.EVALUATING and evaluated.run_id == task.progress.run_id:
        return end_evaluation(task, evaluated.evaluation_id, evaluated.test_accuracy, evaluated.message, now)
    # Until a run is heard of, it may be the present start's.
    if task.state in HOLDING and task.progress.run_id in ("", evaluated.run_id):
        return replace(task, evaluated=evaluated, updated_at=now)
    return task


def end_evaluation(task: Task, evaluation_id: str, test_accuracy: float | None, message: str, now: datetime) -> Task:
    """The model is scored, or could not be; the task rests where its end reason says."""
    if task.state is not TaskState.EVALUATING:
        return task
    assert task.end_reason is not None
    scored = replace(
        task, evaluation_id=evaluation_id, test_accuracy=test_accuracy, error_message=task.error_message or message
    )
    return transition(scored, END_STATES[task.end_reason], now)
