"""A deployment: what it is, how its state may move, and what probes and orders make of it. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

# A good probe proves at most this much time before it; what is longer ago is not charged.
PROBE_GAP_LIMIT = timedelta(seconds=15)
# While it serves, the counter is told this often.
PROGRESS_EVERY = timedelta(minutes=1)
# A deployment without a threshold of its own or of the evaluation.
DEFAULT_THRESHOLD = 0.5
# Between attempts to load: doubles up to the greatest.
RETRY_FIRST = timedelta(seconds=1)
RETRY_GREATEST = timedelta(seconds=60)
# So often Triton may refuse a model that is being deployed; then the deployment has failed, with Triton's reason.
LOAD_ATTEMPTS = 3


class DeploymentState(StrEnum):
    """Of a deployment. Those from STOPPED on are at rest."""

    PENDING = "PENDING"
    WAITING = "WAITING"
    QUEUED = "QUEUED"
    DEPLOYING = "DEPLOYING"
    ACTIVE = "ACTIVE"
    DEGRADED = "DEGRADED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    REFUSED = "REFUSED"


_S = DeploymentState
AT_REST = frozenset({_S.STOPPED, _S.FAILED, _S.REFUSED})
# In these Triton may hold something of it, so they take room there.
PLACED = frozenset({_S.DEPLOYING, _S.ACTIVE, _S.DEGRADED, _S.STOPPING})
# In these it may be updated: a new version may be what helps a DEGRADED one.
SERVED = frozenset({_S.ACTIVE, _S.DEGRADED})
# In these it may be placed on another Triton.
MOVABLE = frozenset({_S.DEPLOYING, *SERVED})
# In these there is nothing to unload.
UNPLACED = frozenset({_S.PENDING, _S.WAITING, _S.QUEUED})

TRANSITIONS: Mapping[DeploymentState, frozenset[DeploymentState]] = {
    # A refused new start goes back to where it came from; a first start has only REFUSED.
    _S.PENDING: frozenset({_S.WAITING, _S.QUEUED, _S.REFUSED, _S.STOPPED, _S.FAILED}),
    _S.WAITING: frozenset({_S.QUEUED, _S.STOPPED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.DEPLOYING, _S.STOPPED, _S.FAILED}),
    _S.DEPLOYING: frozenset({_S.ACTIVE, _S.STOPPING, _S.FAILED}),
    _S.ACTIVE: frozenset({_S.DEGRADED, _S.STOPPING}),
    _S.DEGRADED: frozenset({_S.ACTIVE, _S.STOPPING, _S.FAILED}),
    _S.STOPPING: frozenset({_S.STOPPED}),
    _S.STOPPED: frozenset({_S.PENDING}),
    _S.FAILED: frozenset({_S.PENDING}),
    _S.REFUSED: frozenset({_S.PENDING}),
}


class EndReason(StrEnum):
    """Why a start ended."""

    STOPPED_BY_USER = "STOPPED_BY_USER"
    DURATION_REACHED = "DURATION_REACHED"
    ARREARS = "ARREARS"
    BUDGET_REACHED = "BUDGET_REACHED"
    GROUP_ENDED = "GROUP_ENDED"
    WAITED_TOO_LONG = "WAITED_TOO_LONG"
    ACCOUNT_SUSPENDED = "ACCOUNT_SUSPENDED"
    PARITY_FAILED = "PARITY_FAILED"
    FAILED = "FAILED"
    IDLE = "IDLE"


class ChargeStatus(StrEnum):
    """Separate from the state: whether the present start is being charged."""

    NOT_BILLING = "NOT_BILLING"
    BILLING = "BILLING"
    STOPPED_FOR_ARREARS = "STOPPED_FOR_ARREARS"


@dataclass(frozen=True)
class Model:
    """A model as its run left it. `files` by name: key in the object store, and SHA-256."""

    model_id: str
    account_id: str
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, str]]
    manifest_key: str
    manifest_sha256: str
    image_prefix: str


@dataclass(frozen=True)
class Evaluation:
    """That a model is evaluated, and the thresholds that this recommends by class."""

    evaluation_id: str
    model_id: str
    recommended: Mapping[str, float]
    # For classes that have none of their own.
    recommended_overall: float | None


@dataclass(frozen=True)
class Form:
    """What the user chose; None: left open."""

    display_name: str
    model_id: str
    region_id: str
    spec_id: str
    replicas: int
    billing_mode: str
    max_duration_ms: int | None
    thresholds: tuple[tuple[str, float], ...]
    # Of PREPAID; empty otherwise.
    resource_group_id: str = ""
    # 0: none of its own.
    budget_micros: int = 0
    # Without a request for that long, it stops; None: it does not.
    idle_stop_ms: int | None = None

    @property
    def prepaid(self) -> bool:
        """Whether it takes capacity, and not money."""
        return self.billing_mode == "PREPAID"


@dataclass(frozen=True)
class Parity:
    """The replay of test images, against the stored evaluation."""

    ok: bool
    images: int
    boxes: int
    paired: int
    worst_images: tuple[int, ...]

    @property
    def paired_share(self) -> float:
        """1 if there are no boxes."""
        return self.paired / self.boxes if self.boxes else 1.0


@dataclass(frozen=True)
class Version:
    """What a deployment serves, or has served, or may serve: a model and its thresholds by class."""

    number: int
    model_id: str
    evaluation_id: str
    classes: tuple[str, ...]
    thresholds: tuple[tuple[str, float], ...]
    # Once its replay has agreed; so is the image that probes send: its key in the object store, whose last part is its
    # SHA-256.
    parity: Parity | None = None
    probe_key: str = ""


@dataclass(frozen=True)
class Candidate:
    """A version beside the one that serves: loading and being replayed, then, once it is ready, with its share."""

    version: Version
    # Another than the deployment's: it is being moved there.
    triton_id: str
    # Of the traffic once it is ready; 0: as soon as it is ready, it takes the place of the one that serves.
    percent: int
    ready: bool
    proposed_at: datetime


class UpdateAction(StrEnum):
    """What was changed of a deployment, or asked for."""

    CREATED = "CREATED"
    STARTED = "STARTED"
    STOPPED = "STOPPED"
    UPDATED = "UPDATED"
    ROLLED_BACK = "ROLLED_BACK"
    SPLIT = "SPLIT"
    PROMOTED = "PROMOTED"
    ABANDONED = "ABANDONED"
    REJECTED = "REJECTED"
    MOVED = "MOVED"


@dataclass(frozen=True)
class UpdateRecord:
    """Who changed what, when: numbers from 1; versions before and after; the candidate's share."""

    number: int
    action: UpdateAction
    author: str
    from_version: int
    to_version: int
    percent: int
    detail: str
    created_at: datetime


@dataclass(frozen=True)
class DeploymentEvent:
    """What happened to one start of a deployment, and how often."""

    start_number: int
    kind: str
    message: str
    count: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True)
class LogLine:
    """What a process said that serves a model, which numbers its lines from 1: INFO, WARNING or ERROR."""

    number: int
    level: str
    message: str
    logged_at: datetime


@dataclass(frozen=True)
class KeptLine:
    """A line as it is kept: ascending positions, and whose it is."""

    position: int
    version_number: int
    triton_id: str
    line: LogLine


@dataclass(frozen=True)
class Triton:
    """A registered server: where it is, what it is in billing's words, and how many deployments it takes.

    `repository` is its model repository as a folder that publishing can write; `threads` is what one model may use.
    """

    triton_id: str
    address: str
    repository: str
    region_id: str
    spec_id: str
    room: int
    threads: int
    # Takes no more; what it has is moved elsewhere as soon as there is room.
    draining: bool = False
    # Whether it answered when it was last asked.
    live: bool = True


@dataclass(frozen=True)
class Deployment:
    """A model, online."""

    deployment_id: str
    account_id: str
    request_id: str
    form: Form
    # The one that serves, or will.
    version: Version
    candidate: Candidate | None
    # Where the version that serves is placed; empty: nowhere.
    triton_id: str
    state: DeploymentState
    # Where a refused new start goes back to.
    former_state: DeploymentState | None
    charge_status: ChargeStatus
    start_number: int
    start_request_id: str | None
    hold_micros: int
    price_per_hour_micros: int
    currency: str
    missing_micros: int
    charged_ms: int
    # The last good probe while it is ACTIVE: the charge is counted up to here.
    probed_at: datetime | None
    # When the counter was last told.
    progressed_at: datetime | None
    # The first time in this start.
    active_at: datetime | None
    # When a request last came, as far as that is stored; since when it serves, if that is later.
    used_at: datetime | None
    # Failures since it last served, and when to try again.
    attempts: int
    retry_at: datetime | None
    stop_requested: bool
    end_reason: EndReason | None
    error_message: str
    created_at: datetime
    # Of the last change of state.
    moved_at: datetime
    ended_at: datetime | None
    revision: int

    @property
    def hold_id(self) -> str:
        """Of the present start: the same on every retry."""
        return f"{self.deployment_id}-{self.start_number}"

    @property
    def at_rest(self) -> bool:
        """Whether nothing moves any more."""
        return self.state in AT_REST

    @property
    def cost_micros(self) -> int:
        """Of the present start so far, as billing charges it (PRODUCT 6.3)."""
        return self.price_per_hour_micros * self.form.replicas * (self.charged_ms // 1000) // 3600

    @property
    def stop_at(self) -> datetime | None:
        """When the max duration is reached if it serves without a gap; None: it has none, or does not serve."""
        if self.state is not _S.ACTIVE or self.form.max_duration_ms is None or self.probed_at is None:
            return None
        return self.probed_at + timedelta(milliseconds=self.form.max_duration_ms - self.charged_ms)

    @property
    def idle_stop_at(self) -> datetime | None:
        """When it stops if no request comes; None: it does not, or does not serve."""
        if self.state is not _S.ACTIVE or self.form.idle_stop_ms is None or self.used_at is None:
            return None
        return self.used_at + timedelta(milliseconds=self.form.idle_stop_ms)

    @property
    def warnings(self) -> tuple[str, ...]:
        """For people."""
        if self.form.max_duration_ms is None and not self.form.prepaid:
            return ("It has no max duration: it runs, and is charged, until it is stopped.",)
        return ()


def choose_thresholds(
    classes: tuple[str, ...], given: Mapping[str, float], evaluation: Evaluation
) -> tuple[tuple[str, float], ...]:
    """By class: the given one, else the evaluation's for the class, else its overall one, else the default."""
    fallback = DEFAULT_THRESHOLD if evaluation.recommended_overall is None else evaluation.recommended_overall
    return tuple((name, given.get(name, evaluation.recommended.get(name, fallback))) for name in classes)


def transition(deployment: Deployment, state: DeploymentState, now: datetime) -> Deployment:
    """Raises ValueError for a move that the table does not have."""
    if state not in TRANSITIONS[deployment.state]:
        raise ValueError(f"A deployment does not go from {deployment.state} to {state}.")
    charge = deployment.charge_status
    if state is _S.ACTIVE:
        charge = ChargeStatus.NOT_BILLING if deployment.form.prepaid else ChargeStatus.BILLING
    elif charge is ChargeStatus.BILLING:
        charge = ChargeStatus.NOT_BILLING
    return replace(
        deployment,
        state=state,
        charge_status=charge,
        # Only what is served between two good probes counts, so no time is carried over into or out of ACTIVE.
        probed_at=now if state is _S.ACTIVE else None,
        candidate=deployment.candidate if state in SERVED else None,
        triton_id=deployment.triton_id if state in PLACED else "",
        moved_at=now,
        ended_at=now if state in AT_REST else None,
    )


# Starting


def create(
    deployment_id: str,
    account_id: str,
    request_id: str,
    form: Form,
    evaluation: Evaluation,
    classes: tuple[str, ...],
    thresholds: tuple[tuple[str, float], ...],
    now: datetime,
) -> Deployment:
    """As it is before its first hold."""
    return Deployment(
        deployment_id=deployment_id,
        account_id=account_id,
        request_id=request_id,
        form=form,
        version=Version(1, form.model_id, evaluation.evaluation_id, classes, thresholds),
        candidate=None,
        triton_id="",
        state=_S.PENDING,
        former_state=None,
        charge_status=ChargeStatus.NOT_BILLING,
        start_number=1,
        start_request_id=None,
        hold_micros=0,
        price_per_hour_micros=0,
        currency="",
        missing_micros=0,
        charged_ms=0,
        probed_at=None,
        progressed_at=None,
        active_at=None,
        used_at=None,
        attempts=0,
        retry_at=None,
        stop_requested=False,
        end_reason=None,
        error_message="",
        created_at=now,
        moved_at=now,
        ended_at=None,
        revision=1,
    )


def wait(deployment: Deployment, now: datetime) -> Deployment:
    """Its resource group has no free capacity yet."""
    return transition(deployment, _S.WAITING, now)


def queue(
    deployment: Deployment, hold_micros: int, price_per_hour_micros: int, currency: str, now: datetime
) -> Deployment:
    """The hold is granted; what a former start left is left behind only now."""
    return replace(
        transition(_fresh(deployment), _S.QUEUED, now),
        former_state=None,
        charge_status=ChargeStatus.NOT_BILLING,
        hold_micros=hold_micros,
        price_per_hour_micros=price_per_hour_micros,
        currency=currency,
    )


def _fresh(deployment: Deployment) -> Deployment:
    return replace(
        deployment,
        missing_micros=0,
        charged_ms=0,
        progressed_at=None,
        active_at=None,
        used_at=None,
        version=replace(deployment.version, parity=None, probe_key=""),
        attempts=0,
        retry_at=None,
        stop_requested=False,
        end_reason=None,
        error_message="",
    )


def refuse(deployment: Deployment, message: str, missing_micros: int, now: datetime) -> Deployment:
    """The hold is refused: a first start is REFUSED, a new one is where it was."""
    refused = transition(deployment, deployment.former_state or _S.REFUSED, now)
    return replace(refused, former_state=None, missing_micros=missing_micros, error_message=message)


def start_again(deployment: Deployment, request_id: str, now: datetime, form: Form | None = None) -> Deployment:
    """A new start of the same deployment. Raises ValueError unless it is at rest.

    Args:
        form: with another billing mode or resource group; None: as before.

    The counter goes with the hold, so it begins anew; the rest of what the former start left stays until the hold is
    granted.
    """
    return replace(
        transition(deployment, _S.PENDING, now),
        former_state=deployment.state,
        start_number=deployment.start_number + 1,
        start_request_id=request_id,
        form=form or deployment.form,
        charged_ms=0,
    )


# Serving


def deploy(deployment: Deployment, triton_id: str, now: datetime) -> Deployment:
    """There is room: it is being loaded."""
    return replace(transition(deployment, _S.DEPLOYING, now), triton_id=triton_id, attempts=0, retry_at=None)


def activate(deployment: Deployment, parity: Parity, probe_key: str, now: datetime) -> Deployment:
    """The replay agreed: it serves, and the charge begins."""
    version = replace(deployment.version, parity=parity, probe_key=probe_key)
    return replace(_serving(deployment, now), version=version, active_at=now)


def recover(deployment: Deployment, now: datetime) -> Deployment:
    """It serves again; the gap is not charged."""
    return _serving(deployment, now)


def _serving(deployment: Deployment, now: datetime) -> Deployment:
    return replace(
        transition(deployment, _S.ACTIVE, now),
        progressed_at=now,
        used_at=now,
        attempts=0,
        retry_at=None,
        error_message="",
    )


def degrade(deployment: Deployment, message: str, now: datetime) -> Deployment:
    """A probe failed: nothing serves, nothing is charged."""
    return replace(transition(deployment, _S.DEGRADED, now), error_message=message, attempts=0, retry_at=None)


def count(deployment: Deployment, now: datetime) -> Deployment:
    """A good probe of an ACTIVE deployment: the counter goes on, by no more than the limit, up to the max duration.

    At the max duration, and at its idle stop, the deployment is STOPPING.
    """
    assert deployment.probed_at is not None, "it is ACTIVE"
    elapsed = max(timedelta(0), min(now - deployment.probed_at, PROBE_GAP_LIMIT))
    charged_ms = deployment.charged_ms + elapsed // timedelta(milliseconds=1)
    limit_ms = deployment.form.max_duration_ms
    if limit_ms is None or charged_ms < limit_ms:
        if deployment.idle_stop_at is not None and now >= deployment.idle_stop_at:
            return stop(replace(deployment, charged_ms=charged_ms), EndReason.IDLE, now)
        due = deployment.progressed_at is None or now - deployment.progressed_at >= PROGRESS_EVERY
        told_at = now if due else deployment.progressed_at
        return replace(deployment, charged_ms=charged_ms, probed_at=now, progressed_at=told_at)
    return stop(replace(deployment, charged_ms=limit_ms), EndReason.DURATION_REACHED, now)


def retry_after(deployment: Deployment, message: str, now: datetime) -> Deployment:
    """Loading failed: the next attempt comes after a pause that grows."""
    pause = min(RETRY_FIRST * 2 ** min(deployment.attempts, 16), RETRY_GREATEST)
    return replace(deployment, attempts=deployment.attempts + 1, retry_at=now + pause, error_message=message)


# Versions


def propose(deployment: Deployment, version: Version, percent: int, now: datetime) -> Deployment:
    """A version is to be loaded and replayed beside the one that serves."""
    return _beside(deployment, version, deployment.triton_id, percent, now)


def move(deployment: Deployment, triton_id: str, now: datetime) -> Deployment:
    """The version that serves is to be loaded and replayed on another Triton, and then to serve from there."""
    return _beside(deployment, deployment.version, triton_id, 0, now)


def _beside(deployment: Deployment, version: Version, triton_id: str, percent: int, now: datetime) -> Deployment:
    assert deployment.state in SERVED
    assert deployment.candidate is None
    candidate = Candidate(replace(version, parity=None, probe_key=""), triton_id, percent, ready=False, proposed_at=now)
    return replace(deployment, candidate=candidate)


def pass_gate(deployment: Deployment, parity: Parity, probe_key: str) -> Deployment:
    """The candidate's replay agreed: it gets its share, or, where none was asked for, all."""
    assert deployment.candidate is not None
    version = replace(deployment.candidate.version, parity=parity, probe_key=probe_key)
    ready = replace(deployment, candidate=replace(deployment.candidate, version=version, ready=True))
    return ready if deployment.candidate.percent else promote(ready)


def split(deployment: Deployment, percent: int) -> Deployment:
    """Another share for a candidate that is ready; 0: none, until it is promoted or abandoned."""
    assert deployment.candidate is not None
    assert deployment.candidate.ready
    return replace(deployment, candidate=replace(deployment.candidate, percent=percent))


def promote(deployment: Deployment) -> Deployment:
    """The candidate, which is ready, takes the place of the version that serves."""
    assert deployment.candidate is not None
    assert deployment.candidate.ready
    candidate = deployment.candidate
    return replace(deployment, version=candidate.version, triton_id=candidate.triton_id, candidate=None)


def abandon(deployment: Deployment) -> Deployment:
    """The version that serves goes on alone."""
    return replace(deployment, candidate=None)


# Ending


def stop(deployment: Deployment, reason: EndReason, now: datetime) -> Deployment:
    """Towards STOPPED: at once where Triton holds nothing of it. At rest, or already stopping: unchanged."""
    if deployment.at_rest or deployment.state is _S.STOPPING:
        return deployment
    if deployment.state in UNPLACED:
        return _end(deployment, _S.STOPPED, reason, "", now)
    stopping = transition(deployment, _S.STOPPING, now)
    return replace(
        stopping,
        stop_requested=True,
        end_reason=reason,
        charge_status=_charge_after(reason),
        attempts=0,
        retry_at=None,
    )


def stopped(deployment: Deployment, now: datetime) -> Deployment:
    """Nothing of it is in Triton any more."""
    return transition(deployment, _S.STOPPED, now)


def fail(deployment: Deployment, reason: EndReason, message: str, now: datetime, parity: Parity | None) -> Deployment:
    """Ends it with what went wrong."""
    failed = _end(deployment, _S.FAILED, reason, message, now)
    return replace(failed, version=replace(failed.version, parity=parity or deployment.version.parity))


def _end(deployment: Deployment, state: DeploymentState, reason: EndReason, message: str, now: datetime) -> Deployment:
    if deployment.state in (_S.PENDING, _S.WAITING):
        deployment = _fresh(deployment)
    ended = transition(deployment, state, now)
    return replace(
        ended, former_state=None, end_reason=reason, error_message=message, charge_status=_charge_after(reason)
    )


def _charge_after(reason: EndReason) -> ChargeStatus:
    return ChargeStatus.STOPPED_FOR_ARREARS if reason is EndReason.ARREARS else ChargeStatus.NOT_BILLING
