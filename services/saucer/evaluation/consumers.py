"""Which event calls which use case."""

from typing import cast

from google.protobuf.message import Message

from saucer.evaluation.domain import Source, StoredFile
from saucer.evaluation.service import Evaluations
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import Handles
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2


def handlers(evaluations: Evaluations) -> list[Handles]:
    """Every event that evaluation consumes."""

    async def run_ended(event: CloudEvent, message: Message) -> None:
        ended = cast(training_events.RunEnded, message)
        by_prediction = ended.HasField("prediction")
        if not by_prediction and not ended.HasField("model"):
            return
        model = ended.prediction if by_prediction else ended.model
        source = Source(
            manifest=StoredFile(model.manifest_key, model.manifest_sha256),
            test=_file(model, "detections_test.npz"),
            validation=_file(model, "detections_validation.npz"),
            image_prefix=model.image_prefix,
            classes=tuple(model.classes),
            label_names=dict(model.label_names),
        )
        await evaluations.want(
            model.account_id,
            model.task_id,
            model.run_id,
            model.model_id,
            model.dataset_version_id,
            source,
            by_prediction=by_prediction,
        )

    return [Handles(training_events.RunEnded, run_ended)]


def _file(model: training_pb2.Model | training_pb2.Prediction, name: str) -> StoredFile:
    for file in model.files:
        if file.name == name:
            return StoredFile(file.key, file.sha256)
    # The evaluation ends with a sentence that names it; a dead event would leave the task waiting.
    return StoredFile("", "")
