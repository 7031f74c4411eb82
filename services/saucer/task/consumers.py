"""Which event calls which use case. Snapshots carry revisions, so that each is idempotent by itself."""

from collections.abc import Mapping
from typing import Literal, cast

from google.protobuf.message import Message

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import Handles
from saucer.task.domain import EndReason, Evaluated
from saucer.task.messages import read_model, read_pace, read_progress
from saucer.task.peers import read_hold
from saucer.task.service import Tasks
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2

RunEvent = training_events.RunStarted | training_events.RunProgressed | training_events.RunInterrupted

STOP_REASONS: Mapping[int, EndReason] = {
    billing_events.STOP_REASON_ARREARS: EndReason.ARREARS,
    billing_events.STOP_REASON_BUDGET_REACHED: EndReason.BUDGET_REACHED,
    billing_events.STOP_REASON_GROUP_ENDED: EndReason.GROUP_ENDED,
    billing_events.STOP_REASON_ACCOUNT_SUSPENDED: EndReason.ACCOUNT_SUSPENDED,
    billing_events.STOP_REASON_HOLD_EXPIRED: EndReason.WAITED_TOO_LONG,
}


def handlers(tasks: Tasks) -> list[Handles]:
    """Every event that task consumes."""

    async def run_goes_on(event: CloudEvent, message: Message) -> None:
        run = cast(RunEvent, message).run
        await tasks.follow_run(
            run.task_id,
            run.start_number,
            read_progress(run),
            running=True,
            charged=not run.uncharged,
            begun=_begun(run),
        )

    async def run_interrupted(event: CloudEvent, message: Message) -> None:
        run = cast(RunEvent, message).run
        await tasks.follow_run(
            run.task_id, run.start_number, read_progress(run), running=False, charged=False, begun=_begun(run)
        )

    async def run_ended(event: CloudEvent, message: Message) -> None:
        ended = cast(training_events.RunEnded, message)
        run = ended.run
        if ended.HasField("model"):
            await tasks.meet_model(read_model(ended.model, run.config))
        pace = read_pace(run)
        if pace is not None:
            await tasks.learn_pace(pace, predicts=bool(run.config.model_id))
        await tasks.end_run(
            run.task_id,
            run.start_number,
            read_progress(run),
            EndReason(training_pb2.EndReason.Name(run.end_reason).removeprefix("END_REASON_")),
            ended.model.model_id or ended.prediction.model_id,
            run.error_message,
            begun=_begun(run),
        )

    async def model_deleted(event: CloudEvent, message: Message) -> None:
        await tasks.forget_model(cast(training_events.ModelDeleted, message).model.model_id)

    async def evaluation_ended(event: CloudEvent, message: Message) -> None:
        evaluation = cast(evaluation_events.EvaluationEnded, message).evaluation
        failed = evaluation.state == evaluation_pb2.EVALUATION_STATE_FAILED
        await tasks.end_evaluation(
            evaluation.task_id,
            Evaluated(
                evaluation.run_id,
                evaluation.evaluation_id,
                None if failed else _accuracy(evaluation),
                evaluation.error_message,
            ),
        )

    async def hold_granted(event: CloudEvent, message: Message) -> None:
        hold = cast(billing_events.HoldGranted, message).hold
        if hold.work_kind == billing_pb2.WORK_KIND_TASK:
            await tasks.grant(hold.work_id, hold.start_number, read_hold(hold))

    async def stop_ordered(event: CloudEvent, message: Message) -> None:
        ordered = cast(billing_events.StopOrdered, message)
        if ordered.hold.work_kind == billing_pb2.WORK_KIND_TASK:
            # A reason that a later billing may know and this code does not still stops what it is about.
            reason = STOP_REASONS.get(ordered.reason, EndReason.ARREARS)
            await tasks.obey_stop(ordered.hold.work_id, ordered.hold.start_number, reason)

    async def quotas_changed(event: CloudEvent, message: Message) -> None:
        quotas = cast(billing_events.AccountQuotasChanged, message).quotas
        queued = quotas.queued if quotas.HasField("queued") else None
        await tasks.set_quota(quotas.account_id, queued, quotas.revision)

    return [
        Handles(billing_events.HoldGranted, hold_granted),
        Handles(billing_events.StopOrdered, stop_ordered),
        Handles(billing_events.AccountQuotasChanged, quotas_changed),
        Handles(training_events.RunStarted, run_goes_on),
        Handles(training_events.RunProgressed, run_goes_on),
        Handles(training_events.RunInterrupted, run_interrupted),
        Handles(training_events.RunEnded, run_ended),
        Handles(training_events.ModelDeleted, model_deleted),
        Handles(evaluation_events.EvaluationEnded, evaluation_ended),
    ]


def _accuracy(evaluation: evaluation_pb2.Evaluation) -> float | None:
    field: Literal["top_1", "map_50"] = "top_1" if evaluation.classification else "map_50"
    return getattr(evaluation, field) if evaluation.HasField(field) else None


def _begun(run: training_pb2.Run) -> bool:
    return run.HasField("start_time")
