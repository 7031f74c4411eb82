"""A change of one deployment: its row locked, moved, written at the next revision, and told by one event."""

from collections.abc import Callable, Collection
from datetime import datetime

from google.protobuf.message import Message
from prometheus_client import Counter

from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database, Transaction
from saucer.publishing import domain, spans
from saucer.publishing.domain import Deployment, DeploymentState
from saucer.publishing.messages import deployment_message
from saucer.publishing.store import deployments as store
from saucer.publishing.store import monitoring as monitoring_store
from saucer.publishing.v1 import events_pb2

ended_total = Counter("saucer_publishing_ended_total", "Deployments that came to rest", ["reason"])

_S = DeploymentState
Move = Callable[[Deployment, datetime], Deployment]
Event = Callable[..., Message]


async def change(
    database: Database,
    deployment_id: str,
    start_number: int | None,
    states: Collection[DeploymentState] | None,
    move: Move,
    event: Event | None = None,
) -> Deployment:
    """Moves a start if it is in one of the states; otherwise it stays as it is. Raises NotFoundError."""
    async with database.transaction() as tx:
        present = await store.get(tx.connection, deployment_id, lock=True)
        if present is None:
            raise NotFoundError("deployment", deployment_id)
        if start_number is not None and start_number != present.start_number:
            return present
        if states is not None and present.state not in states:
            return present
        return await write(tx, present, move(present, tx.now), event)


async def owned(tx: Transaction, deployment_id: str) -> Deployment:
    """The caller's, locked. Raises NotFoundError."""
    return shown(await store.get(tx.connection, deployment_id, lock=True), deployment_id)


def shown(deployment: Deployment | None, deployment_id: str) -> Deployment:
    """What the caller may see. Raises NotFoundError for what there is not, is deleted, or is another account's."""
    if deployment is None or deployment.deleted_at is not None:
        raise NotFoundError("deployment", deployment_id)
    current().own("deployment", deployment_id, deployment.account_id)
    return deployment


async def write(tx: Transaction, former: Deployment, moved: Deployment, event: Event | None = None) -> Deployment:
    """Stores a change, with the one event that tells it."""
    if moved == former:
        return former
    written = await store.update(tx.connection, moved)
    event = event or _event_of(former, written)
    if event is not None:
        await publish(tx, written, event, await spans.passed(tx.connection, former, written))
    happened = _happened(former, written)
    if happened is not None:
        await monitoring_store.fold_event(
            tx.connection, written.deployment_id, written.start_number, written.state, happened, tx.now
        )
    if written.at_rest and not former.at_rest:
        ended_total.labels(written.end_reason or "REFUSED").inc()
    return written


def _happened(former: Deployment, moved: Deployment) -> str | None:
    """What the list of what happened says of a change; None: nothing."""
    if moved.state is not former.state or moved.error_message not in (former.error_message, ""):
        return moved.error_message
    if moved.state is _S.ACTIVE and len(moved.counted) != len(former.counted):
        return domain.describe_serving(moved)
    return None


def _event_of(former: Deployment, moved: Deployment) -> Event | None:
    if moved.state is former.state:
        if (moved.version, moved.candidate, len(moved.counted)) != (
            former.version,
            former.candidate,
            len(former.counted),
        ):
            return events_pb2.DeploymentChanged
        return None if moved.progressed_at == former.progressed_at else events_pb2.DeploymentProgressed
    return events_pb2.DeploymentEnded if moved.at_rest else _EVENTS.get(moved.state, events_pb2.DeploymentChanged)


_EVENTS: dict[DeploymentState, Event] = {
    _S.QUEUED: events_pb2.DeploymentQueued,
    _S.ACTIVE: events_pb2.DeploymentActivated,
    _S.DEGRADED: events_pb2.DeploymentDegraded,
    _S.STOPPING: events_pb2.DeploymentStopRequested,
}


async def publish(tx: Transaction, deployment: Deployment, event: Event, traceparent: str | None = None) -> None:
    message = event(deployment=deployment_message(deployment))
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, deployment.deployment_id, deployment.revision),
        message,
        account_id=deployment.account_id,
        work_id=deployment.deployment_id,
        resource_id=deployment.deployment_id,
        traceparent=traceparent,
    )
