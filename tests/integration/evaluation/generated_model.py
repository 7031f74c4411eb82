"""Models whose labels and detections are generated, with the columns that the pure functions are asked with."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from saucer.evaluation.manifest import manifest_of
from saucer.evaluation.matching import Scored, match
from saucer.evaluation.metrics import CocoMetrics, ThresholdCurves, coco_metrics
from saucer.evaluation.truth import Truth, from_coco
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.serving.detections import Detections
from saucer.training.v1 import training_pb2
from tests.unit.evaluation.generated import Columns, generate


@dataclass(frozen=True)
class Answers:
    """What the pure functions say of a split."""

    truth: Truth
    detections: Detections
    scored: Scored
    curves: ThresholdCurves
    coco: CocoMetrics


@dataclass(frozen=True)
class GeneratedModel:
    """A model with its files in the store. Images are named by their id, and hold it."""

    message: training_pb2.Model
    test: Answers
    validation: Answers


async def generated_model(objects: Objects, account_id: str, seed: int) -> GeneratedModel:
    """Every other image of a generated set is a test image, the rest validates."""
    document, classes, columns = generate(seed)
    # Of a segmentation, as it were.
    for annotation in document["annotations"][::2]:
        annotation["area"] /= 2
    images = sorted(document["images"], key=lambda image: image["id"])
    for place, image in enumerate(images):
        image |= {"split": "validation" if place % 2 else "test", "file_name": f"i{image['id']}"}
        image["source_name"] = f"Photo {image['id']}.jpg"
        await objects.put(f"system/{account_id}/images/{image['file_name']}", str(image["id"]).encode())
    test = answers(document, classes, columns, "test")
    validation = answers(document, classes, columns, "validation")
    files = {
        "detections_test.npz": test.detections.to_bytes(),
        "detections_validation.npz": validation.detections.to_bytes(),
    }
    return GeneratedModel(await stored_model(objects, account_id, document, classes, files), test, validation)


def answers(document: dict[str, Any], classes: list[str], columns: Columns, split: str) -> Answers:
    truth = from_coco(manifest_of(document).split(split), classes)
    mine = np.isin(columns.image_id, truth.images)
    detections = Detections(
        truth.images, columns.image_id[mine], columns.box[mine], columns.score[mine], columns.label[mine]
    )
    scored = match(truth, detections)
    return Answers(truth, detections, scored, ThresholdCurves(scored), coco_metrics(truth, detections))


async def stored_model(
    objects: Objects, account_id: str, document: object, classes: list[str], files: dict[str, bytes]
) -> training_pb2.Model:
    """Writes a model's files; the message that tells of it."""
    model_id = new_id()
    prefix = f"system/{account_id}/runs/{model_id}"
    manifest_sha256 = await objects.put(f"{prefix}/manifest.json", json.dumps(document).encode())
    sums = {name: await objects.put(f"{prefix}/{name}", data) for name, data in files.items()}
    return training_pb2.Model(
        model_id=model_id,
        account_id=account_id,
        task_id=new_id(),
        run_id=new_id(),
        classes=classes,
        dataset_version_id=new_id(),
        manifest_key=f"{prefix}/manifest.json",
        manifest_sha256=manifest_sha256,
        image_prefix=f"system/{account_id}/images",
        files=[training_pb2.ModelFile(name=name, key=f"{prefix}/{name}", sha256=sums[name]) for name in files],
    )
