"""Which event calls which use case. Counters and snapshots make every one of them idempotent by itself."""

from typing import cast

from google.protobuf.message import Message

from saucer.billing.domain import HoldRequest, WorkKind
from saucer.billing.service import Billing
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import Handles
from saucer.publishing.v1 import events_pb2 as publishing_events
from saucer.task.v1 import events_pb2 as task_events
from saucer.training.v1 import events_pb2 as training_events

RunEvent = (
    training_events.RunStarted
    | training_events.RunProgressed
    | training_events.RunInterrupted
    | training_events.RunEnded
)
DeploymentEvent = (
    publishing_events.DeploymentActivated
    | publishing_events.DeploymentProgressed
    | publishing_events.DeploymentDegraded
    | publishing_events.DeploymentEnded
)


def handlers(billing: Billing) -> list[Handles]:
    """Every event that billing consumes."""

    async def task_queued(event: CloudEvent, message: Message) -> None:
        task = cast(task_events.TaskQueued, message).task
        await billing.holds.use(task.hold_id, task.task_id, task.start_number)

    async def run_counts(event: CloudEvent, message: Message) -> None:
        run = cast(RunEvent, message).run
        await billing.holds.advance(run.hold_id, run.charged_ms, running=True)

    async def run_rests(event: CloudEvent, message: Message) -> None:
        run = cast(RunEvent, message).run
        await billing.holds.advance(run.hold_id, run.charged_ms, running=False)

    async def run_ended(event: CloudEvent, message: Message) -> None:
        run = cast(RunEvent, message).run
        await billing.holds.resolve(run.hold_id, run.charged_ms)

    async def task_ended(event: CloudEvent, message: Message) -> None:
        task = cast(task_events.TaskEnded, message).task
        await billing.holds.give_up(
            HoldRequest(
                task.hold_id,
                task.account_id,
                WorkKind.TASK,
                task.task_id,
                task.start_number,
                task.form.region_id,
                task.form.spec_id,
                task.form.count,
                task.form.resource_group_id or None,
            ),
            task.currency,
            task.charged_ms,
        )

    async def deployment_queued(event: CloudEvent, message: Message) -> None:
        deployment = cast(publishing_events.DeploymentQueued, message).deployment
        await billing.holds.use(deployment.hold_id, deployment.deployment_id, deployment.start_number)

    async def deployment_counts(event: CloudEvent, message: Message) -> None:
        deployment = cast(DeploymentEvent, message).deployment
        await billing.holds.advance(deployment.hold_id, deployment.charged_ms, running=True)

    async def deployment_rests(event: CloudEvent, message: Message) -> None:
        deployment = cast(DeploymentEvent, message).deployment
        await billing.holds.advance(deployment.hold_id, deployment.charged_ms, running=False)

    async def deployment_ended(event: CloudEvent, message: Message) -> None:
        deployment = cast(DeploymentEvent, message).deployment
        await billing.holds.give_up(
            HoldRequest(
                deployment.hold_id,
                deployment.account_id,
                WorkKind.DEPLOYMENT,
                deployment.deployment_id,
                deployment.start_number,
                deployment.region_id,
                deployment.spec_id,
                deployment.replicas,
                deployment.resource_group_id or None,
            ),
            deployment.currency,
            deployment.charged_ms,
        )

    return [
        Handles(task_events.TaskQueued, task_queued),
        Handles(training_events.RunStarted, run_counts),
        Handles(training_events.RunProgressed, run_counts),
        Handles(training_events.RunInterrupted, run_rests),
        Handles(training_events.RunEnded, run_ended),
        Handles(task_events.TaskEnded, task_ended),
        Handles(publishing_events.DeploymentQueued, deployment_queued),
        Handles(publishing_events.DeploymentActivated, deployment_counts),
        Handles(publishing_events.DeploymentProgressed, deployment_counts),
        Handles(publishing_events.DeploymentDegraded, deployment_rests),
        Handles(publishing_events.DeploymentEnded, deployment_ended),
    ]
