"""Which event calls which use case. Snapshots carry revisions, so that each is idempotent by itself."""

from typing import cast

from google.protobuf.message import Message

from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import Handles
from saucer.task.domain import EndReason
from saucer.task.messages import read_model, read_progress
from saucer.task.service import Tasks
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2

RunEvent = training_events.RunStarted | training_events.RunProgressed | training_events.RunInterrupted


def handlers(tasks: Tasks) -> list[Handles]:
    """Every event that task consumes."""

    async def run_goes_on(event: CloudEvent, message: Message) -> None:
        run = cast(RunEvent, message).run
        await tasks.follow_run(run.task_id, run.start_number, read_progress(run), running=True)

    async def run_interrupted(event: CloudEvent, message: Message) -> None:
        run = cast(RunEvent, message).run
        await tasks.follow_run(run.task_id, run.start_number, read_progress(run), running=False)

    async def run_ended(event: CloudEvent, message: Message) -> None:
        ended = cast(training_events.RunEnded, message)
        run = ended.run
        if ended.HasField("model"):
            await tasks.meet_model(read_model(ended.model))
        await tasks.end_run(
            run.task_id,
            run.start_number,
            read_progress(run),
            EndReason(training_pb2.EndReason.Name(run.end_reason).removeprefix("END_REASON_")),
            ended.model.model_id or ended.prediction.model_id,
            run.error_message,
        )

    async def evaluation_ended(event: CloudEvent, message: Message) -> None:
        evaluation = cast(evaluation_events.EvaluationEnded, message).evaluation
        failed = evaluation.state == evaluation_pb2.EVALUATION_STATE_FAILED
        await tasks.end_evaluation(
            evaluation.task_id,
            evaluation.model_id,
            evaluation.evaluation_id,
            evaluation.map_50 if evaluation.HasField("map_50") and not failed else None,
            evaluation.error_message,
        )

    return [
        Handles(training_events.RunStarted, run_goes_on),
        Handles(training_events.RunProgressed, run_goes_on),
        Handles(training_events.RunInterrupted, run_interrupted),
        Handles(training_events.RunEnded, run_ended),
        Handles(evaluation_events.EvaluationEnded, evaluation_ended),
    ]
