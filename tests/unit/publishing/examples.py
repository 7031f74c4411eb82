"""A deployment to start from."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from saucer.publishing import lifecycle
from saucer.publishing.domain import Deployment, DeploymentState, Evaluation, Form, Parity
from saucer.publishing.instances import Instance, Plan

NOW = datetime(2026, 11, 23, tzinfo=UTC)
FORM = Form("cups", "m", "local", "cpu-2", 1, "POSTPAID", None, ())
EVALUATION = Evaluation("e", "m", {"cup": 0.3}, 0.4)
PARITY = Parity(True, 64, 100, 100, ())


def pending(**changes: object) -> Deployment:
    made = lifecycle.create("d", "a", "r", FORM, EVALUATION, ("cup", "plate"), (("cup", 0.3), ("plate", 0.4)), NOW)
    return replace(made, **changes)  # type: ignore[arg-type] # one dict for all types


def queued(**changes: object) -> Deployment:
    return lifecycle.queue(pending(**changes), 7_200_000, 3_600_000, "EUR", NOW)


def deploying(*triton_ids: str, max_duration_ms: int | None = None) -> Deployment:
    """A replica on each Triton."""
    form = replace(FORM, replicas=len(triton_ids), max_duration_ms=max_duration_ms)
    return lifecycle.place(queued(form=form), Plan(triton_ids), NOW)


def active(*triton_ids: str, max_duration_ms: int | None = None) -> Deployment:
    """Serving on each Triton; without any, on one that is called local."""
    deployment = deploying(*(triton_ids or ("local",)), max_duration_ms=max_duration_ms)
    for triton_id in triton_ids or ("local",):
        deployment = lifecycle.activate(deployment, at(deployment, triton_id), PARITY, "system/a/images/0", NOW)
    return deployment


def at(deployment: Deployment, triton_id: str = "local") -> Instance:
    """Of the version that serves."""
    (found,) = (item for item in deployment.own_instances if item.triton_id == triton_id)
    return found


def beside(deployment: Deployment, triton_id: str = "local") -> Instance:
    """Of the candidate."""
    (found,) = (item for item in deployment.candidate_instances if item.triton_id == triton_id)
    return found


def attended() -> timedelta:
    """By a process that has always been there."""
    return timedelta.max


def count(deployment: Deployment, now: datetime, *triton_ids: str) -> Deployment:
    """A good probe on each Triton."""
    for triton_id in triton_ids or ("local",):
        deployment = lifecycle.count(deployment, at(deployment, triton_id), now, attended())
        if deployment.state is DeploymentState.STOPPING:
            break
    return deployment
