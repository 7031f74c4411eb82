"""The trace of a start, from the call that asked for it to its bill: a span for each state that it passes through."""

from collections.abc import Mapping

from saucer.lib import tracing
from saucer.lib.postgres import Connection
from saucer.publishing.domain import Deployment, DeploymentState
from saucer.publishing.store import deployments as store

# What goes on in a state that outlives calls.
NAMES: Mapping[DeploymentState, str] = {
    DeploymentState.WAITING: "waits for capacity",
    DeploymentState.QUEUED: "waits for Triton",
    DeploymentState.DEPLOYING: "deploy",
    DeploymentState.ACTIVE: "serve",
    DeploymentState.DEGRADED: "does not serve",
    DeploymentState.STOPPING: "unload",
}


async def begin(connection: Connection, deployment_id: str) -> None:
    """A start is asked for: what it does later belongs to the present trace, if there is one."""
    traceparent = tracing.current()
    if traceparent is not None:
        await store.put_trace(connection, deployment_id, traceparent)


async def passed(connection: Connection, former: Deployment, moved: Deployment) -> str | None:
    """Records the state that a deployment has left; the traceparent of what follows from the change."""
    traceparent = await store.trace_of(connection, moved.deployment_id)
    name = NAMES.get(former.state)
    if traceparent is None or name is None or moved.state is former.state:
        return traceparent
    attributes = {"work_id": moved.deployment_id, "hold_id": moved.hold_id, "became": moved.state}
    return tracing.record(name, traceparent, former.moved_at, moved.moved_at, attributes)
