"""A classifier, trained by the real child on discs and bars, exported, and judged by evaluation's own scoring."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saucer.evaluation.scoring import score
from saucer.serving.detections import Detections
from saucer.worker.job import EndReason, Failure, FailureKind, Metrics, PredictJob, Result, TrainJob
from tests.support.child import Child
from tests.support.shapes import CLASSES, ShapesData, write_shapes

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def boxed(folder: Path) -> ShapesData:
    return write_shapes(folder / "data", train=80, validation=24, test=24)


@pytest.fixture(scope="module")
def data(folder: Path, boxed: ShapesData) -> ShapesData:
    """Images that show shapes of one kind alone are labelled so; every other one has no label."""
    files = {}
    for split in SPLITS:
        content = json.loads(getattr(boxed, split).read_text())
        shown: dict[int, set[int]] = {}
        for box in content["annotations"]:
            shown.setdefault(box["image_id"], set()).add(box["category_id"])
        content["annotations"] = [
            {"id": number, "image_id": image, "category_id": kinds.pop()}
            for number, (image, kinds) in enumerate(shown.items(), start=1)
            if len(kinds) == 1
        ]
        files[split] = folder / f"{split}_classes.json"
        files[split].write_text(json.dumps(content))
    return ShapesData(boxed.images, **files)


def job_of(folder: Path, data: ShapesData, **changes: Any) -> TrainJob:
    job = TrainJob(
        workdir=str(folder / "training"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        test=str(data.test),
        classes=CLASSES,
        input_size=64,
        epochs=8,
        batch_size=8,
        warmup_iterations=5,
        # Of some seeds so few images teach nothing in the one precision, which the child chooses by its speed.
        seed=1,
        classifies=True,
    )
    return dataclasses.replace(job, **changes)


@pytest.fixture(scope="module")
def trained(child: Child, folder: Path, data: ShapesData) -> Result:
    return child.run(job_of(folder, data))


def test_a_classifier_learns_and_tells_its_top_1(child: Child, trained: Result) -> None:
    values = [
        report.values["top_1"] for report in child.reports if isinstance(report, Metrics) if "top_1" in report.values
    ]
    assert max(values) >= 0.75
    assert trained.best_map_50 == max(values)


def test_its_answers_are_the_best_five_with_the_box_of_the_image_and_scores_that_add_up(
    trained: Result, data: ShapesData
) -> None:
    found = Detections.from_bytes(Path(trained.files["detections_test"]).read_bytes())
    sizes = {image["id"]: (image["width"], image["height"]) for image in json.loads(data.test.read_text())["images"]}
    for image in found.images.tolist():
        mine = found.image_id == image
        assert sorted(found.label[mine].tolist()) == [0, 1]
        assert found.score[mine].sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(found.box[mine], [[0, 0, *sizes[image]]] * 2, atol=1e-3)


def test_evaluation_scores_what_it_left_as_its_report_says(trained: Result, data: ShapesData) -> None:
    manifest: dict[str, Any] = {"images": [], "annotations": []}
    for split in SPLITS:
        content = json.loads(getattr(data, split).read_text())
        manifest["images"] += [image | {"split": split} for image in content["images"]]
        manifest["annotations"] += [
            label | {"id": len(manifest["annotations"]) + place} for place, label in enumerate(content["annotations"])
        ]
        manifest["categories"] = content["categories"]
    test, validation = (Path(trained.files[f"detections_{split}"]).read_bytes() for split in ("test", "validation"))
    figures = score(json.dumps(manifest).encode(), test, validation, CLASSES).summary.figures
    assert figures.classification
    assert figures.top_1 == json.loads(Path(trained.files["report"]).read_text())["test"]["top_1"]
    assert (figures.top_1 or 0) >= 0.7
    assert figures.top_5 == 1.0


def test_a_prediction_with_the_classifier_gives_the_same_bytes(
    child: Child, trained: Result, folder: Path, data: ShapesData
) -> None:
    model = folder / "model"
    model.mkdir()
    for kind in ("onnx", "model"):
        source = Path(trained.files[kind])
        (model / source.name).write_bytes(source.read_bytes())
    again = child.run(
        PredictJob(
            workdir=str(folder / "prediction"),
            images=str(data.images),
            model=str(model),
            classes=CLASSES,
            validation=str(data.validation),
            test=str(data.test),
            classifies=True,
        )
    )
    for kind in ("detections_test", "detections_validation", "report"):
        assert Path(again.files[kind]).read_bytes() == Path(trained.files[kind]).read_bytes()


def test_training_stops_at_the_expected_top_1(child: Child, folder: Path, data: ShapesData) -> None:
    result = child.run(job_of(folder, data, workdir=str(folder / "early"), expected_accuracy=0.3))
    assert result.reason is EndReason.ACCURACY_REACHED


@pytest.mark.parametrize("classifies", [True, False])
def test_labels_of_the_other_kind_are_the_users_to_change(
    child: Child, folder: Path, data: ShapesData, boxed: ShapesData, *, classifies: bool
) -> None:
    child.send(job_of(folder, boxed if classifies else data, workdir=str(folder / "wrong"), classifies=classifies))
    failure = child.wait_for(Failure)
    assert failure.kind is FailureKind.USER
    assert "Choose the scene" in failure.message
