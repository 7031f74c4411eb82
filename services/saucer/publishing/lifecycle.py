"""What orders, probes and the time make of a deployment, from its first start to its end. No I/O."""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from saucer.publishing import instances
from saucer.publishing.domain import (
    SERVED,
    UNPLACED,
    Candidate,
    ChargeStatus,
    Deployment,
    DeploymentState,
    EndReason,
    Evaluation,
    Form,
    Parity,
    Version,
    transition,
)
from saucer.publishing.instances import Instance, InstanceState

# A good probe of an instance proves at most this much time before it; what is longer ago is not charged. The lease of a
# replica that died fits in, with the probe of the one that takes over.
PROBE_GAP_LIMIT = timedelta(seconds=15)
# After an absence of the process an idle stop waits so long, or its own length if that is shorter: until then callers
# that were kept away may come back.
IDLE_GRACE = timedelta(seconds=60)
# While it serves, the counter is told this often.
PROGRESS_EVERY = timedelta(minutes=1)
# Between attempts to load: doubles up to the greatest.
RETRY_FIRST = timedelta(seconds=1)
RETRY_GREATEST = timedelta(seconds=60)
# By up to this share of it a pause is shorter, for each instance by another: what failed at once is not tried at once.
RETRY_SPREAD = 0.25
# So often each Triton may refuse a model that is being deployed; then the deployment has failed, with Triton's reason.
# So often a candidate that is ready may fail where the other version serves; then it is rejected.
LOAD_ATTEMPTS = 3
# So long what is on a Triton that is to be left waits for a candidate to serve in its new place, too.
FOLLOW_LIMIT = timedelta(minutes=5)


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
        state=DeploymentState.PENDING,
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
        deleted_at=None,
        revision=1,
    )


def wait(deployment: Deployment, now: datetime) -> Deployment:
    """Its resource group has no free capacity yet."""
    return transition(deployment, DeploymentState.WAITING, now)


def queue(
    deployment: Deployment, hold_micros: int, price_per_hour_micros: int, currency: str, now: datetime
) -> Deployment:
    """The hold is granted; what a former start left is left behind only now."""
    return replace(
        transition(_fresh(deployment), DeploymentState.QUEUED, now),
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
    """The hold is refused: a first start is REFUSED, a new one is where it was, and has a former state still."""
    refused = transition(deployment, deployment.former_state or DeploymentState.REFUSED, now)
    return replace(refused, missing_micros=missing_micros, error_message=message)


def start_again(deployment: Deployment, request_id: str, now: datetime, form: Form | None = None) -> Deployment:
    """A new start of the same deployment. Raises ValueError unless it is at rest.

    Args:
        form: with another billing mode or resource group; None: as before.

    The counter goes with the hold, so it begins anew; the rest of what the former start left stays until the hold is
    granted.
    """
    return replace(
        transition(deployment, DeploymentState.PENDING, now),
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
    if deployment.state is DeploymentState.QUEUED:
        return (
            replace(transition(deployment, DeploymentState.DEPLOYING, now), instances=tuple(added))
            if added
            else deployment
        )
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


def awaited(deployment: Deployment, leaving: Collection[str], now: datetime) -> set[str]:
    """Tritons on which the version that serves has arrived before a candidate, which is ready and serves elsewhere.

    Requests go to the candidate, so what serves on a leaving Triton, or on one on which the other version is stuck, is
    not given up before it has followed; but one that does not follow within the limit keeps no Triton from being left.
    """
    left = {*leaving, *(item.triton_id for item in deployment.own_instances if item.stuck)}
    serving = {item.triton_id for item in deployment.candidate_instances if item.serving}
    if deployment.candidate is None or not deployment.candidate.ready or serving.isdisjoint(left):
        return set()
    arrived = (item for item in deployment.own_instances if item.serving and now - item.since < FOLLOW_LIMIT)
    return {item.triton_id for item in arrived} - serving


def is_placed(deployment: Deployment, leaving: Collection[str]) -> bool:
    """Whether nothing is to be placed or given up, wherever there is room.

    It has as many instances as it is to have, none of them stuck or on a Triton that it is to leave; or more are stuck
    than it is to have, so that it is tried nowhere else.
    """
    replicas = deployment.form.replicas
    own = {item.triton_id for item in deployment.own_instances}
    beside = {item.triton_id for item in deployment.candidate_instances}
    followed = deployment.candidate is None or beside == own
    stuck = sum(item.stuck for item in deployment.own_instances)
    settled = len(own) - stuck < replicas < stuck if stuck else len(own) == replicas
    return settled and own.isdisjoint(leaving) and followed


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
        return _degraded(changed, now) if changed.state is DeploymentState.ACTIVE else changed
    return changed if changed.state is DeploymentState.ACTIVE else _active(changed, now)


def _active(deployment: Deployment, now: datetime) -> Deployment:
    active = transition(deployment, DeploymentState.ACTIVE, now)
    return replace(active, progressed_at=now, active_at=deployment.active_at or now, used_at=now, error_message="")


def _degraded(deployment: Deployment, now: datetime) -> Deployment:
    """Nothing of its version serves, nothing is charged; a candidate with a share answers on, uncharged too."""
    message = next((item.message for item in deployment.own_instances if item.message), "")
    return replace(transition(deployment, DeploymentState.DEGRADED, now), error_message=message)


def count(deployment: Deployment, instance: Instance, now: datetime, attended: timedelta) -> Deployment:
    """A good probe of an instance: the counter goes on by its share, by no more than the limit, up to the max duration.

    Args:
        attended: for how long the process that probed has been there; what was before then is not charged, and says
            little of whether it is idle.

    At the max duration, and at its idle stop, the deployment is STOPPING.
    """
    assert instance.probed_at is not None, "it is SERVING"
    probed = _with(deployment, replace(instance, probed_at=max(now, instance.probed_at)))
    if deployment.state is not DeploymentState.ACTIVE or instance not in deployment.counted:
        return probed
    elapsed = max(timedelta(0), min(now - instance.probed_at, PROBE_GAP_LIMIT, attended))
    served_us = deployment.charged_rest_us + elapsed // timedelta(microseconds=1)
    charged_ms, rest_us = divmod(served_us, deployment.unit_us)
    grown = replace(probed, charged_ms=deployment.charged_ms + charged_ms, charged_rest_us=rest_us)
    limit_ms = deployment.form.max_duration_ms
    if limit_ms is not None and grown.charged_ms >= limit_ms:
        return stop(replace(grown, charged_ms=limit_ms, charged_rest_us=0), EndReason.DURATION_REACHED, now)
    if _is_idle(deployment, now, attended):
        return stop(grown, EndReason.IDLE, now)
    due = deployment.progressed_at is None or now - deployment.progressed_at >= PROGRESS_EVERY
    return replace(grown, progressed_at=now) if due else grown


def _is_idle(deployment: Deployment, now: datetime, attended: timedelta) -> bool:
    """Whether its idle stop has come, and callers could reach it lately. `attended` alone is not how long it was idle:
    restarts would put a long idle stop off for ever.
    """
    if deployment.idle_stop_at is None or deployment.form.idle_stop_ms is None:
        return False
    grace = min(IDLE_GRACE, timedelta(milliseconds=deployment.form.idle_stop_ms))
    return now >= deployment.idle_stop_at and attended >= grace


def put_off(deployment: Deployment, instance: Instance, message: str, now: datetime) -> Deployment:
    """An attempt failed: the next one comes after a pause that grows."""
    place = f"{deployment.deployment_id}/{instance.version_number}/{instance.triton_id}"
    spread = RETRY_SPREAD * zlib.crc32(place.encode()) / 2**32
    pause = min(RETRY_FIRST * 2 ** min(instance.attempts, 16), RETRY_GREATEST) * (1 - spread)
    return _tell(deployment, replace(instance, attempts=instance.attempts + 1, retry_at=now + pause), message)


def note(deployment: Deployment, instance: Instance, message: str) -> Deployment:
    """Something that is none of the model's fault keeps an instance from serving: no attempt, but no secret either."""
    return deployment if instance.serving else _tell(deployment, instance, message)


def _tell(deployment: Deployment, instance: Instance, message: str) -> Deployment:
    own = instance.version_number == deployment.version.number
    # While another serves, the deployment has no error of its own.
    told = message if own and deployment.state is not DeploymentState.ACTIVE else deployment.error_message
    return replace(_with(deployment, replace(instance, message=message)), error_message=told)


def refuse_load(deployment: Deployment, instance: Instance, message: str, now: datetime) -> Deployment:
    """A Triton does not serve the model: put off. FAILED once no Triton is left that may try what has never served."""
    later = put_off(deployment, instance, message, now)
    if _is_hopeless(later):
        return fail(deployment, EndReason.FAILED, f"Triton does not serve the model: {message}", now, None)
    return later


def rule_out(
    deployment: Deployment, instance: Instance, reason: EndReason, message: str, parity: Parity | None, now: datetime
) -> Deployment:
    """As refuse_load, of what another attempt would hardly change, as a replay that disagrees: it was the last."""
    later = put_off(deployment, replace(instance, attempts=max(instance.attempts, LOAD_ATTEMPTS - 1)), message, now)
    return fail(deployment, reason, message, now, parity) if _is_hopeless(later) else later


def _is_hopeless(deployment: Deployment) -> bool:
    """Whether it has never served, and no instance is left that may yet."""
    tried = all(item.attempts >= LOAD_ATTEMPTS for item in deployment.own_instances)
    return deployment.state is DeploymentState.DEPLOYING and tried


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
    """Whether a candidate that is not called ready yet may be."""
    return deployment.candidate is not None and not deployment.candidate.ready and candidate_serves(deployment)


def candidate_serves(deployment: Deployment) -> bool:
    """Whether the candidate serves now wherever the other version does, and somewhere."""
    serving = {item.triton_id for item in deployment.candidate_instances if item.serving}
    return bool(serving) and {item.triton_id for item in deployment.own_instances if item.serving} <= serving


def fails_alone(deployment: Deployment, instance: Instance) -> bool:
    """Whether an instance is the candidate's, and the other version serves from the same Triton.

    While that does not serve either, it is Triton that is in trouble, and not the candidate.
    """
    beside = any(item.serving and item.triton_id == instance.triton_id for item in deployment.own_instances)
    return beside and instance in deployment.candidate_instances


def is_beyond_help(deployment: Deployment, instance: Instance) -> bool:
    """Whether a candidate is given up for an instance that, once more, could not be made to serve.

    What is not ready and does not load is not tried again: the other serves on, and the user, who is told at once, can
    ask again. What has a share elsewhere, or was there before, is.
    """
    ready = deployment.candidate is not None and deployment.candidate.ready
    tries = 1 if instance.state is InstanceState.LOADING and not ready else LOAD_ATTEMPTS
    return fails_alone(deployment, instance) and instance.attempts + 1 >= tries


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
    if deployment.at_rest or deployment.state is DeploymentState.STOPPING:
        return deployment
    if deployment.state in UNPLACED:
        return _end(deployment, DeploymentState.STOPPED, reason, "", now)
    stopping = transition(deployment, DeploymentState.STOPPING, now)
    return replace(
        stopping,
        stop_requested=True,
        end_reason=reason,
        charge_status=_charge_after(reason),
        instances=tuple(replace(item, attempts=0, retry_at=None) for item in stopping.instances),
    )


def delete(deployment: Deployment, now: datetime) -> Deployment:
    """Softly. Raises ValueError unless it is at rest."""
    if not deployment.at_rest:
        raise ValueError(f"A deployment that is {deployment.state} is not deleted.")
    return replace(deployment, deleted_at=now)


def unloaded(deployment: Deployment, instance: Instance, now: datetime) -> Deployment:
    """A Triton has nothing of it any more; with the last one it is STOPPED."""
    left = tuple(item for item in deployment.instances if item.key != instance.key)
    return replace(deployment, instances=left) if left else stopped(deployment, now)


def stopped(deployment: Deployment, now: datetime) -> Deployment:
    """Nothing of it is in a Triton any more, or is waited for there."""
    return transition(deployment, DeploymentState.STOPPED, now)


def fail(deployment: Deployment, reason: EndReason, message: str, now: datetime, parity: Parity | None) -> Deployment:
    """Ends it with what went wrong."""
    failed = _end(deployment, DeploymentState.FAILED, reason, message, now)
    return replace(failed, version=replace(failed.version, parity=parity or deployment.version.parity))


def _end(deployment: Deployment, state: DeploymentState, reason: EndReason, message: str, now: datetime) -> Deployment:
    if deployment.state in (DeploymentState.PENDING, DeploymentState.WAITING):
        deployment = _fresh(deployment)
    ended = transition(deployment, state, now)
    return replace(
        ended, former_state=None, end_reason=reason, error_message=message, charge_status=_charge_after(reason)
    )


def _charge_after(reason: EndReason) -> ChargeStatus:
    return ChargeStatus.STOPPED_FOR_ARREARS if reason is EndReason.ARREARS else ChargeStatus.NOT_BILLING
