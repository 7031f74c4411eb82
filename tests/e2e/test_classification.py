"""Classification on real parts: a folder for each class in, a classifier trained, its evaluation read."""

import json
import shutil
from pathlib import Path

import grpc
import pytest

from saucer.dataset.v1 import dataset_pb2
from saucer.evaluation.v1 import evaluation_pb2
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2
from tests.support.saucer_client import HOLD_MICROS, Saucer
from tests.support.shapes import CLASSES, write_shapes


def class_folders(folder: Path) -> Path:
    """Images of shapes, each below the name of the one kind that it shows."""
    drawn = write_shapes(folder / "drawn", train=100, validation=1, test=1)
    content = json.loads(drawn.train.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        kinds = {names[box["category_id"]] for box in content["annotations"] if box["image_id"] == image["id"]}
        if len(kinds) == 1:
            target = folder / "folders" / kinds.pop()
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn.images / image["file_name"], target)
    return folder / "folders"


async def test_a_folder_for_each_class_becomes_a_classifier_with_an_evaluation_and_online(
    saucer: Saucer, tmp_path: Path
) -> None:
    account = await saucer.account(4 * HOLD_MICROS)
    imported = await saucer.import_folder(account, class_folders(tmp_path))
    assert imported.state == dataset_pb2.IMPORT_STATE_SUCCEEDED, imported
    version = imported.dataset_version_id
    with pytest.raises(grpc.aio.AioRpcError, match="take the scene image-classification"):
        await saucer.create_task(account, saucer.form(version))
    form = saucer.form(version, scene="image-classification", input_size=64, epochs=6)
    created = await saucer.create_task(account, form)
    task = await saucer.task_ends(account, created.task_id)
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED, task
    request = evaluation_pb2.GetEvaluationRequest(evaluation_id=task.evaluation_id)
    found = await saucer.evaluation.GetEvaluation(request, metadata=account.metadata)
    assert found.classification
    assert found.top_1 == task.test_top_1 > 0.5
    assert not task.HasField("test_map_50")
    run = await saucer.run_of(account, task.task_id)
    assert run is not None
    assert run.best_top_1 == task.best_top_1 > 0.5
    assert not run.HasField("best_map_50")
    model = await saucer.training.GetModel(
        training_pb2.GetModelRequest(model_id=task.model_id), metadata=account.metadata
    )
    assert model.validation_top_1 == run.best_top_1
    assert not found.HasField("map_50")
    assert {entry.class_name for entry in found.classes} == set(CLASSES)
    assert sum(entry.boxes for entry in found.classes) == found.images
    await saucer.nothing_frozen(account)

    # Online it is what it was evaluated as: an image's answers are its classes, each over the whole image.
    deployment = await saucer.deploy(account, task.model_id)
    assert deployment.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, deployment
    assert deployment.parity.ok
    kind = CLASSES[0]
    image = next((tmp_path / "folders" / kind).iterdir()).read_bytes()
    predict = publishing_pb2.PredictRequest(deployment_id=deployment.deployment_id, image=image)
    answer = await saucer.publishing.Predict(predict, metadata=account.metadata)
    assert {item.class_name for item in answer.detections} <= set(CLASSES)
    assert sum(item.score for item in answer.detections) == pytest.approx(1, abs=0.01)
    for item in answer.detections:
        assert (item.x1, item.y1, item.x2, item.y2) == pytest.approx((0, 0, answer.width, answer.height), abs=0.01)
    await saucer.stop_deployment(account, deployment.deployment_id)
    await saucer.nothing_frozen(account)
