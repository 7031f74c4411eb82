"""Which event calls which use case. A run, and an order to stop it, are made once for each hold, in either order."""

from collections.abc import Mapping
from typing import cast

from google.protobuf.message import Message

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib import tracing
from saucer.lib.clock import from_duration
from saucer.lib.cloudevent import CloudEvent, to_json
from saucer.lib.consumer import Handles
from saucer.lib.ids import derived_id
from saucer.publishing.v1 import events_pb2 as publishing_events
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import events_pb2 as task_events
from saucer.training.domain import Deployment, EndReason, RunRequest
from saucer.training.service import Training

STOP_REASONS: Mapping[int, EndReason] = {
    billing_events.STOP_REASON_ARREARS: EndReason.ARREARS,
    billing_events.STOP_REASON_BUDGET_REACHED: EndReason.BUDGET_REACHED,
    billing_events.STOP_REASON_GROUP_ENDED: EndReason.GROUP_ENDED,
    billing_events.STOP_REASON_ACCOUNT_SUSPENDED: EndReason.ACCOUNT_SUSPENDED,
    billing_events.STOP_REASON_HOLD_EXPIRED: EndReason.WAITED_TOO_LONG,
}
# States in which a deployment serves nothing and will not, unless it is started again.
AT_REST = frozenset(
    {
        publishing_pb2.DEPLOYMENT_STATE_REFUSED,
        publishing_pb2.DEPLOYMENT_STATE_STOPPED,
        publishing_pb2.DEPLOYMENT_STATE_FAILED,
    }
)
DeploymentEvent = (
    publishing_events.DeploymentCreated
    | publishing_events.DeploymentChanged
    | publishing_events.DeploymentProgressed
    | publishing_events.DeploymentEnded
)


def handlers(training: Training) -> list[Handles]:
    """Every event that training consumes."""

    async def task_queued(event: CloudEvent, message: Message) -> None:
        task = cast(task_events.TaskQueued, message).task
        request = RunRequest(
            run_id=derived_id("run", task.hold_id),
            account_id=task.account_id,
            task_id=task.task_id,
            task_name=task.form.display_name,
            start_number=task.start_number,
            hold_id=task.hold_id,
            region_id=task.form.region_id,
            spec_id=task.form.spec_id,
            count=task.form.count,
            dataset_version_id=task.form.dataset_version_id,
            config=to_json(task.config).decode(),
            max_duration_ms=from_duration(task.config.max_duration),
            output_prefix=task.config.output_prefix,
            priority=task.form.priority,
            predicts_model_id=task.config.model_id or None,
            traceparent=tracing.current(),
        )
        await training.starts.queue_run(request, resume=task.config.resume)

    async def task_stop_requested(event: CloudEvent, message: Message) -> None:
        task = cast(task_events.TaskStopRequested, message).task
        await training.starts.order_stop(task.hold_id, EndReason.STOPPED_BY_USER, 0)

    async def task_deleted(event: CloudEvent, message: Message) -> None:
        await training.starts.forget_task(cast(task_events.TaskDeleted, message).task.task_id)

    async def stop_ordered(event: CloudEvent, message: Message) -> None:
        ordered = cast(billing_events.StopOrdered, message)
        if ordered.hold.work_kind == billing_pb2.WORK_KIND_TASK:
            # A reason that a later billing may know and this code does not still stops what it is about.
            reason = STOP_REASONS.get(ordered.reason, EndReason.ARREARS)
            await training.starts.order_stop(ordered.hold.hold_id, reason, ordered.stop_at_charged_ms)

    async def quotas_changed(event: CloudEvent, message: Message) -> None:
        quotas = cast(billing_events.AccountQuotasChanged, message).quotas
        running = quotas.running if quotas.HasField("running") else None
        await training.leases.set_share(quotas.account_id, quotas.weight, running, quotas.revision)

    async def deployment_moved(event: CloudEvent, message: Message) -> None:
        deployment = cast(DeploymentEvent, message).deployment
        named = (deployment.model_id, deployment.candidate.version.model_id)
        await training.models.hear_of(
            Deployment(
                deployment.deployment_id,
                tuple(model_id for model_id in named if model_id),
                deployment.state in AT_REST,
                deployment.revision,
            )
        )

    return [
        Handles(task_events.TaskQueued, task_queued),
        Handles(task_events.TaskStopRequested, task_stop_requested),
        Handles(task_events.TaskDeleted, task_deleted),
        Handles(billing_events.StopOrdered, stop_ordered),
        Handles(billing_events.AccountQuotasChanged, quotas_changed),
        Handles(publishing_events.DeploymentCreated, deployment_moved),
        Handles(publishing_events.DeploymentChanged, deployment_moved),
        # Once a minute: so those are known too that were there before training listened.
        Handles(publishing_events.DeploymentProgressed, deployment_moved),
        Handles(publishing_events.DeploymentEnded, deployment_moved),
    ]
