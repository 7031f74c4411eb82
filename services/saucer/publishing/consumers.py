"""Which event calls which use case. Each is idempotent by itself: a model never changes, a stop stops once."""

from typing import cast

from google.protobuf.message import Message

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.clock import from_timestamp
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import Handles
from saucer.publishing.domain import EndReason
from saucer.publishing.messages import read_evaluation, read_model
from saucer.publishing.peers import read_hold
from saucer.publishing.service import Deployments
from saucer.training.v1 import events_pb2 as training_events

STOP_REASONS = {
    billing_events.STOP_REASON_ARREARS: EndReason.ARREARS,
    billing_events.STOP_REASON_BUDGET_REACHED: EndReason.BUDGET_REACHED,
    billing_events.STOP_REASON_GROUP_ENDED: EndReason.GROUP_ENDED,
    billing_events.STOP_REASON_ACCOUNT_SUSPENDED: EndReason.ACCOUNT_SUSPENDED,
    billing_events.STOP_REASON_HOLD_EXPIRED: EndReason.WAITED_TOO_LONG,
}


def handlers(deployments: Deployments) -> list[Handles]:
    """Every event that publishing consumes."""

    async def run_ended(event: CloudEvent, message: Message) -> None:
        ended = cast(training_events.RunEnded, message)
        if ended.HasField("model"):
            await deployments.meet_model(read_model(ended.model))

    async def model_deleted(event: CloudEvent, message: Message) -> None:
        await deployments.forget_model(cast(training_events.ModelDeleted, message).model.model_id)

    async def evaluation_ended(event: CloudEvent, message: Message) -> None:
        evaluation = cast(evaluation_events.EvaluationEnded, message).evaluation
        # Thresholds are those of the data that the model was made for.
        if evaluation.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED and not evaluation.by_prediction:
            await deployments.meet_evaluation(read_evaluation(evaluation), from_timestamp(evaluation.end_time))

    async def stop_ordered(event: CloudEvent, message: Message) -> None:
        order = cast(billing_events.StopOrdered, message)
        if order.hold.work_kind == billing_pb2.WORK_KIND_DEPLOYMENT:
            # A reason that a later billing may know and this code does not still stops what it is about.
            reason = STOP_REASONS.get(order.reason, EndReason.ARREARS)
            await deployments.obey_stop(order.hold.work_id, order.hold.start_number, reason)

    async def hold_granted(event: CloudEvent, message: Message) -> None:
        hold = cast(billing_events.HoldGranted, message).hold
        if hold.work_kind == billing_pb2.WORK_KIND_DEPLOYMENT:
            await deployments.starts.grant(hold.work_id, hold.start_number, read_hold(hold))

    return [
        Handles(training_events.RunEnded, run_ended),
        Handles(training_events.ModelDeleted, model_deleted),
        Handles(evaluation_events.EvaluationEnded, evaluation_ended),
        Handles(billing_events.HoldGranted, hold_granted),
        Handles(billing_events.StopOrdered, stop_ordered),
    ]
