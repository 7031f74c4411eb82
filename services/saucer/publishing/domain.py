"""A deployment: what it is, and how its state may move (what moves it: lifecycle.py). No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from saucer.lib.money import charge_micros
from saucer.publishing import instances
from saucer.publishing.instances import Instance

# A deployment without a threshold of its own or of the evaluation.
DEFAULT_THRESHOLD = 0.5


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
# In these billing keeps a hold for the start, between two moments: it is granted as PENDING or WAITING ends.
HOLDING = frozenset({_S.QUEUED, *PLACED})
# In these it may be updated: a new version may be what helps a DEGRADED one.
SERVED = frozenset({_S.ACTIVE, _S.DEGRADED})
# In these it may be placed on further Tritons, or others.
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
    DELETED = "DELETED"


@dataclass(frozen=True)
class UpdateRecord:
    """Who changed what, when, by which call: numbers from 1; versions before and after; the candidate's share."""

    number: int
    action: UpdateAction
    author: str
    from_version: int
    to_version: int
    percent: int
    detail: str
    created_at: datetime
    request_id: str | None


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

    `repository` is its model repository as a folder that publishing can write. The shape of a model there is
    `copies` processes, each of which may use `threads`.
    """

    triton_id: str
    address: str
    repository: str
    region_id: str
    spec_id: str
    room: int
    threads: int
    copies: int = 1
    # Models compute on its first GPU.
    gpu: bool = False
    # Takes no more; what it has is moved elsewhere as soon as there is room.
    draining: bool = False
    # Whether it answered when it was last asked; one that was never asked has not.
    live: bool = False


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
    # Of the version that serves, and of the candidate.
    instances: tuple[Instance, ...]
    state: DeploymentState
    # Where a refused new start goes back to, and is.
    former_state: DeploymentState | None
    charge_status: ChargeStatus
    start_number: int
    start_request_id: str | None
    hold_micros: int
    price_per_hour_micros: int
    currency: str
    missing_micros: int
    charged_ms: int
    # What is served and makes no whole millisecond of the counter yet, in microseconds of one instance.
    charged_rest_us: int
    # When the counter was last told.
    progressed_at: datetime | None
    # The first time in this start.
    active_at: datetime | None
    # When a request last came, as far as that is stored; since when it serves, if that is later.
    used_at: datetime | None
    stop_requested: bool
    end_reason: EndReason | None
    error_message: str
    created_at: datetime
    # Of the last change of state.
    moved_at: datetime
    ended_at: datetime | None
    # Softly: it is there for what refers to it, and for no call.
    deleted_at: datetime | None
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
    def refused(self) -> bool:
        """Whether the present start was refused its hold."""
        return self.state is _S.REFUSED or (self.at_rest and self.former_state is not None)

    @property
    def own_instances(self) -> list[Instance]:
        """Of the version that serves, or will."""
        return [item for item in self.instances if item.version_number == self.version.number]

    @property
    def candidate_instances(self) -> list[Instance]:
        """Of the candidate."""
        number = self.candidate.version.number if self.candidate else None
        return [item for item in self.instances if item.version_number == number]

    @property
    def shared(self) -> bool:
        """Whether the candidate has a share of the traffic."""
        return self.candidate is not None and self.candidate.ready and self.candidate.percent > 0

    @property
    def answers(self) -> bool:
        """Whether requests are taken: it is ACTIVE; or DEGRADED, and a candidate with a share serves meanwhile.

        The user has given that one traffic, so its answer is better than none. It is no replica, and not charged.
        """
        meanwhile = self.shared and any(item.serving for item in self.candidate_instances)
        return self.state is _S.ACTIVE or (self.state is _S.DEGRADED and meanwhile)

    @property
    def counted(self) -> list[Instance]:
        """What is charged while it is ACTIVE: as many as there are replicas, at most."""
        return instances.counted(self.own_instances, self.form.replicas)

    @property
    def probed_at(self) -> datetime | None:
        """The last good probe of what serves; None: nothing does."""
        return max((item.probed_at for item in self.own_instances if item.probed_at is not None), default=None)

    @property
    def cost_micros(self) -> int:
        """Of the present start so far, as billing charges it (PRODUCT 6.3)."""
        return charge_micros(self.price_per_hour_micros, self.form.replicas, self.charged_ms)

    @property
    def unit_us(self) -> int:
        """Microseconds of one instance that make a millisecond of the counter, which all replicas together advance."""
        return 1000 * self.form.replicas

    @property
    def stop_at(self) -> datetime | None:
        """When the max duration is reached if as many serve on as do now; None: it has none, or does not serve."""
        if self.state is not _S.ACTIVE or self.form.max_duration_ms is None or self.probed_at is None:
            return None
        left_us = (self.form.max_duration_ms - self.charged_ms) * self.unit_us - self.charged_rest_us
        return self.probed_at + timedelta(microseconds=-(-left_us // len(self.counted)))

    @property
    def idle_stop_at(self) -> datetime | None:
        """When it stops if no request comes; None: it does not, or does not serve."""
        if self.state is not _S.ACTIVE or self.form.idle_stop_ms is None or self.used_at is None:
            return None
        return self.used_at + timedelta(milliseconds=self.form.idle_stop_ms)

    @property
    def warnings(self) -> tuple[str, ...]:
        """For people."""
        found = []
        if self.form.max_duration_ms is None and not self.form.prepaid:
            found.append("It has no max duration: it runs, and is charged, until it is stopped.")
        if self.state is _S.ACTIVE and len(self.counted) < self.form.replicas:
            found.append(f"{describe_serving(self)} Only these are charged.")
        return tuple(found)


def choose_thresholds(
    classes: tuple[str, ...], given: Mapping[str, float], evaluation: Evaluation
) -> tuple[tuple[str, float], ...]:
    """By class: the given one, else the evaluation's for the class, else its overall one, else the default."""
    fallback = DEFAULT_THRESHOLD if evaluation.recommended_overall is None else evaluation.recommended_overall
    return tuple((name, given.get(name, evaluation.recommended.get(name, fallback))) for name in classes)


def describe_serving(deployment: Deployment) -> str:
    """How many replicas serve, and whether the others wait for a Triton with room; for people."""
    replicas = deployment.form.replicas
    missing = replicas - len(deployment.own_instances)
    waiting = f"; no Triton has room for {missing}" if missing > 0 else ""
    return f"{len(deployment.counted)} of {replicas} replicas serve{waiting}."


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
        candidate=deployment.candidate if state in SERVED else None,
        instances=_kept(deployment, state),
        moved_at=now,
        ended_at=now if state in AT_REST else None,
    )


def _kept(deployment: Deployment, state: DeploymentState) -> tuple[Instance, ...]:
    """A candidate that is left behind is unloaded like anything that nobody wants."""
    if state in SERVED:
        return deployment.instances
    return tuple(deployment.own_instances) if state in PLACED else ()
