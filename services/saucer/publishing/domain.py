"""A deployment: what it is, how its state may move, and what probes and orders make of it. No I/O."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from saucer.publishing import instances
from saucer.publishing.instances import Instance, InstanceState

# A good probe of an instance proves at most this much time before it; what is longer ago is not charged.
PROBE_GAP_LIMIT = timedelta(seconds=15)
# While it serves, the counter is told this often.
PROGRESS_EVERY = timedelta(minutes=1)
# A deployment without a threshold of its own or of the evaluation.
DEFAULT_THRESHOLD = 0.5
# Between attempts to load: doubles up to the greatest.
RETRY_FIRST = timedelta(seconds=1)
RETRY_GREATEST = timedelta(seconds=60)
# So often each Triton may refuse a model that is being deployed; then the deployment has failed, with Triton's reason.
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
    def own_instances(self) -> list[Instance]:
        """Of the version that serves, or will."""
        return [item for item in self.instances if item.version_number == self.version.number]

    @property
    def candidate_instances(self) -> list[Instance]:
        """Of the candidate."""
        number = self.candidate.version.number if self.candidate else None
        return [item for item in self.instances if item.version_number == number]

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
        return self.price_per_hour_micros * self.form.replicas * (self.charged_ms // 1000) // 3600

    @property
    def stop_at(self) -> datetime | None:
        """When the max duration is reached if as many serve on as do now; None: it has none, or does not serve."""
        if self.state is not _S.ACTIVE or self.form.max_duration_ms is None or self.probed_at is None:
            return None
        left_us = (self.form.max_duration_ms - self.charged_ms) * _unit_us(self) - self.charged_rest_us
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
        instances=(),
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
        charged_rest_us=0,
        progressed_at=None,
        active_at=None,
        used_at=None,
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
        charged_rest_us=0,
        progressed_at=None,
        active_at=None,
        used_at=None,
        version=replace(deployment.version, parity=None, probe_key=""),
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
        charged_rest_us=0,
    )


# Serving


def place(deployment: Deployment, plan: instances.Plan, now: datetime) -> Deployment:
    """It gets further instances and loses others. QUEUED: once it has one, it is being deployed."""
    number = deployment.version.number
    added = [Instance(number, triton_id, InstanceState.LOADING, now) for triton_id in plan.added]
    if deployment.state is _S.QUEUED:
        return replace(transition(deployment, _S.DEPLOYING, now), instances=tuple(added)) if added else deployment
    own = [*(item for item in deployment.own_instances if item not in plan.given_up), *added]
    return _carry(deployment, replace(deployment, instances=(*own, *_beside(deployment, own, now))), now)


def _beside(deployment: Deployment, own: Sequence[Instance], now: datetime) -> list[Instance]:
    """The candidate's: where the version that serves is."""
    if deployment.candidate is None:
        return []
    known = {item.triton_id: item for item in deployment.candidate_instances}
    number = deployment.candidate.version.number
    places = [item.triton_id for item in own]
    return [known.get(key, Instance(number, key, InstanceState.LOADING, now)) for key in places]


def is_placed(deployment: Deployment, leaving: Collection[str]) -> bool:
    """Whether it has as many instances as it is to have, and none on a Triton that it is to leave."""
    own = {item.triton_id for item in deployment.own_instances}
    beside = {item.triton_id for item in deployment.candidate_instances}
    followed = deployment.candidate is None or beside == own
    return len(own) == deployment.form.replicas and own.isdisjoint(leaving) and followed


def activate(deployment: Deployment, instance: Instance, parity: Parity, probe_key: str, now: datetime) -> Deployment:
    """The replay of an instance agreed: it serves. The first makes the deployment ACTIVE, and the charge begins."""
    if instance.version_number == deployment.version.number:
        passed = replace(deployment, version=_passed(deployment.version, parity, probe_key))
    else:
        assert deployment.candidate is not None, "an instance is of one of the two"
        version = _passed(deployment.candidate.version, parity, probe_key)
        passed = replace(deployment, candidate=replace(deployment.candidate, version=version))
    return _serve(passed, instance, now)


def _passed(version: Version, parity: Parity, probe_key: str) -> Version:
    """The first replay is the one that is shown."""
    return version if version.parity else replace(version, parity=parity, probe_key=probe_key)


def recover(deployment: Deployment, instance: Instance, now: datetime) -> Deployment:
    """An instance serves again; the gap is not charged."""
    return _serve(deployment, instance, now)


def _serve(deployment: Deployment, instance: Instance, now: datetime) -> Deployment:
    serving = Instance(instance.version_number, instance.triton_id, InstanceState.SERVING, now, probed_at=now)
    return _carry(deployment, _with(deployment, serving), now)


def lose(deployment: Deployment, instance: Instance, message: str, now: datetime) -> Deployment:
    """A probe failed: it does not serve. Without another, nothing of the deployment does."""
    lost = Instance(instance.version_number, instance.triton_id, InstanceState.LOST, now, message=message)
    return _carry(deployment, _with(deployment, lost), now)


def _with(deployment: Deployment, instance: Instance) -> Deployment:
    changed = (instance if item.key == instance.key else item for item in deployment.instances)
    return replace(deployment, instances=tuple(changed))


def _carry(former: Deployment, changed: Deployment, now: datetime) -> Deployment:
    """After a change of instances: the counter goes on, and the state follows.

    On a Triton that counts already, counting goes on from where it stood, whichever version serves there now; on any
    other it begins now. So at no time more than the wanted replicas count.
    """
    counted_to = {item.triton_id: item.probed_at for item in former.counted}
    for item in changed.counted:
        changed = _with(changed, replace(item, probed_at=counted_to.get(item.triton_id, now)))
    if changed.probed_at is None:
        return _degraded(changed, now) if changed.state is _S.ACTIVE else changed
    return changed if changed.state is _S.ACTIVE else _active(changed, now)


def _active(deployment: Deployment, now: datetime) -> Deployment:
    active = transition(deployment, _S.ACTIVE, now)
    return replace(active, progressed_at=now, active_at=deployment.active_at or now, used_at=now, error_message="")


def _degraded(deployment: Deployment, now: datetime) -> Deployment:
    """Nothing serves, nothing is charged."""
    message = next((item.message for item in deployment.own_instances if item.message), "")
    return replace(transition(deployment, _S.DEGRADED, now), error_message=message)


def count(deployment: Deployment, instance: Instance, now: datetime) -> Deployment:
    """A good probe of an instance: the counter goes on by its share, by no more than the limit, up to the max duration.

    At the max duration, and at its idle stop, the deployment is STOPPING.
    """
    assert instance.probed_at is not None, "it is SERVING"
    probed = _with(deployment, replace(instance, probed_at=max(now, instance.probed_at)))
    if deployment.state is not _S.ACTIVE or instance not in deployment.counted:
        return probed
    elapsed = max(timedelta(0), min(now - instance.probed_at, PROBE_GAP_LIMIT))
    served_us = deployment.charged_rest_us + elapsed // timedelta(microseconds=1)
    charged_ms, rest_us = divmod(served_us, _unit_us(deployment))
    grown = replace(probed, charged_ms=deployment.charged_ms + charged_ms, charged_rest_us=rest_us)
    limit_ms = deployment.form.max_duration_ms
    if limit_ms is not None and grown.charged_ms >= limit_ms:
        return stop(replace(grown, charged_ms=limit_ms, charged_rest_us=0), EndReason.DURATION_REACHED, now)
    if deployment.idle_stop_at is not None and now >= deployment.idle_stop_at:
        return stop(grown, EndReason.IDLE, now)
    due = deployment.progressed_at is None or now - deployment.progressed_at >= PROGRESS_EVERY
    return replace(grown, progressed_at=now) if due else grown


def _unit_us(deployment: Deployment) -> int:
    """Microseconds of one instance that make a millisecond of the counter, which all replicas together advance."""
    return 1000 * deployment.form.replicas


def put_off(deployment: Deployment, instance: Instance, message: str, now: datetime) -> Deployment:
    """An attempt failed: the next one comes after a pause that grows."""
    pause = min(RETRY_FIRST * 2 ** min(instance.attempts, 16), RETRY_GREATEST)
    later = replace(instance, attempts=instance.attempts + 1, retry_at=now + pause, message=message)
    own = instance.version_number == deployment.version.number
    # While another serves, the deployment has no error of its own.
    told = message if own and deployment.state is not _S.ACTIVE else deployment.error_message
    return replace(_with(deployment, later), error_message=told)


def refuse_load(deployment: Deployment, instance: Instance, message: str, now: datetime) -> Deployment:
    """A Triton does not serve the model: put off. FAILED once no Triton is left that may try what has never served."""
    later = put_off(deployment, instance, message, now)
    if later.state is _S.DEPLOYING and all(item.attempts >= LOAD_ATTEMPTS for item in later.own_instances):
        return fail(deployment, EndReason.FAILED, f"Triton does not serve the model: {message}", now, None)
    return later


# Versions


def propose(deployment: Deployment, version: Version, percent: int, now: datetime) -> Deployment:
    """A version is to be loaded and replayed beside the one that serves, wherever that is."""
    assert deployment.state in SERVED
    assert deployment.candidate is None
    candidate = Candidate(replace(version, parity=None, probe_key=""), percent, ready=False, proposed_at=now)
    proposed = replace(deployment, candidate=candidate)
    own = proposed.own_instances
    return replace(proposed, instances=(*own, *_beside(proposed, own, now)))


def may_be_ready(deployment: Deployment) -> bool:
    """Whether a candidate that is not called ready yet serves wherever the other version does, and somewhere."""
    if deployment.candidate is None or deployment.candidate.ready:
        return False
    serving = {item.triton_id for item in deployment.candidate_instances if item.serving}
    return bool(serving) and {item.triton_id for item in deployment.own_instances if item.serving} <= serving


def pass_gate(deployment: Deployment, now: datetime) -> Deployment:
    """The candidate's replays agreed: it gets its share, or, where none was asked for, all."""
    assert deployment.candidate is not None
    ready = replace(deployment, candidate=replace(deployment.candidate, ready=True))
    return ready if deployment.candidate.percent else promote(ready, now)


def split(deployment: Deployment, percent: int) -> Deployment:
    """Another share for a candidate that is ready; 0: none, until it is promoted or abandoned."""
    assert deployment.candidate is not None
    assert deployment.candidate.ready
    return replace(deployment, candidate=replace(deployment.candidate, percent=percent))


def promote(deployment: Deployment, now: datetime) -> Deployment:
    """The candidate, which is ready, takes the place of the version that serves."""
    assert deployment.candidate is not None
    assert deployment.candidate.ready
    beside = tuple(deployment.candidate_instances)
    promoted = replace(deployment, version=deployment.candidate.version, candidate=None, instances=beside)
    return _carry(deployment, promoted, now)


def abandon(deployment: Deployment) -> Deployment:
    """The version that serves goes on alone."""
    return replace(deployment, candidate=None, instances=tuple(deployment.own_instances))


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
        instances=tuple(replace(item, attempts=0, retry_at=None) for item in stopping.instances),
    )


def unloaded(deployment: Deployment, instance: Instance, now: datetime) -> Deployment:
    """A Triton has nothing of it any more; with the last one it is STOPPED."""
    left = tuple(item for item in deployment.instances if item.key != instance.key)
    return replace(deployment, instances=left) if left else stopped(deployment, now)


def stopped(deployment: Deployment, now: datetime) -> Deployment:
    """Nothing of it is in a Triton any more, or is waited for there."""
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
