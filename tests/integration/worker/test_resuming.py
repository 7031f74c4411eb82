"""A run that is killed and resumed ends with the weights of one that never was, bit for bit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saucer.worker.job import Checkpoint, Halted, Metrics, Progress, Result, Stage, StageName, Stop, TrainJob
from tests.support.child import Child
from tests.support.shapes import CLASSES, write_shapes

EPOCH_ITERATIONS = 10
EPOCHS = 6
ITERATIONS = EPOCHS * EPOCH_ITERATIONS
# Validations come every 10 iterations. A checkpoint comes before the first, and then every 40: there both are due.
FIRST_CHECKPOINT, CHECKPOINT = 10, 50

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def job(folder: Path) -> TrainJob:
    data = write_shapes(folder / "data", train=40, validation=16, test=4)
    return TrainJob(
        workdir=str(folder / "whole"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        test=str(data.test),
        classes=CLASSES,
        input_size=64,
        epochs=EPOCHS,
        batch_size=40 // EPOCH_ITERATIONS,
        seed=3,
        deterministic=True,
    )


@pytest.fixture(scope="module")
def whole(child: Child, job: TrainJob) -> Result:
    """Never interrupted."""
    return child.run(job)


def in_training(child: Child) -> None:
    child.wait_for(Progress, lambda report: report.iteration > CHECKPOINT)


def in_the_first_validation(child: Child) -> None:
    assert child.wait_for(Checkpoint).iteration == FIRST_CHECKPOINT


def in_the_validation_that_follows_a_checkpoint(child: Child) -> None:
    # At CHECKPOINT; on a machine so slow that the time brings one before it, in training.
    child.wait_for(Checkpoint, lambda report: report.iteration > FIRST_CHECKPOINT)


def while_the_model_is_exported(child: Child) -> None:
    child.wait_for(Stage, lambda report: report.stage is StageName.EXPORTING)


@pytest.mark.parametrize(
    "moment",
    [
        in_training,
        in_the_first_validation,
        in_the_validation_that_follows_a_checkpoint,
        pytest.param(while_the_model_is_exported, marks=pytest.mark.soak),
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    child: Child, job: TrainJob, whole: Result, folder: Path, moment: Callable[[Child], None]
) -> None:
    first = Child(folder / "stderr.txt")
    first.send(dataclasses.replace(job, workdir=str(folder / moment.__name__)))
    moment(first)
    first.kill()
    checkpoint = first.all(Checkpoint)[-1]
    resumed = child.run(dataclasses.replace(job, workdir=str(folder / "resumed"), resume=checkpoint.path))
    assert resumed.iteration == ITERATIONS
    assert checkpoint.iteration >= FIRST_CHECKPOINT
    check_same(resumed, whole)


def test_halted_by_order_in_mid_epoch_it_ends_with_the_same_bits_and_validates_as_often(
    child: Child, job: TrainJob, whole: Result, folder: Path
) -> None:
    child.send(dataclasses.replace(job, workdir=str(folder / "halted")))
    child.wait_for(Progress, lambda report: report.iteration > 1)
    child.send(Stop("drain", finish=False))
    halted = child.wait_for(Halted)
    before = validations(child)
    assert 0 < halted.iteration < ITERATIONS
    resumed = child.run(dataclasses.replace(job, workdir=str(folder / "resumed"), resume=halted.checkpoint))
    assert before + validations(child) == list(range(10, ITERATIONS + 1, 10))
    check_same(resumed, whole)


def test_a_classifier_halted_and_resumed_ends_with_the_same_bits(child: Child, job: TrainJob, folder: Path) -> None:
    def labelled(split: str) -> str:
        """One label for each image that has a box, of the whole image."""
        content = json.loads(Path(getattr(job, split)).read_text())
        first = {box["image_id"]: box["category_id"] for box in reversed(content["annotations"])}
        content["annotations"] = [
            {"id": image, "image_id": image, "category_id": category} for image, category in sorted(first.items())
        ]
        file = folder / f"{split}-labels.json"
        file.write_text(json.dumps(content))
        return str(file)

    splits: dict[str, Any] = {split: labelled(split) for split in ("train", "validation", "test")}
    classifying = dataclasses.replace(job, classifies=True, epochs=9, workdir=str(folder / "classes"), **splits)
    uninterrupted = child.run(classifying)
    child.send(dataclasses.replace(classifying, workdir=str(folder / "classes-halted")))
    child.wait_for(Progress, lambda report: report.iteration > 1)
    child.send(Stop("drain", finish=False))
    halted = child.wait_for(Halted)
    assert 0 < halted.iteration < uninterrupted.iteration
    workdir = str(folder / "classes-resumed")
    check_same(child.run(dataclasses.replace(classifying, workdir=workdir, resume=halted.checkpoint)), uninterrupted)


def validations(child: Child) -> list[int]:
    return [report.iteration for report in child.all(Metrics) if "map_50" in report.values]


def check_same(resumed: Result, whole: Result) -> None:
    """Model, its average, optimiser, schedule, best weights, random states and detections."""
    assert resumed.best_map_50 == whole.best_map_50
    assert resumed.checkpoint is not None
    assert whole.checkpoint is not None
    left, right = (torch.load(path, weights_only=True) for path in (resumed.checkpoint, whole.checkpoint))
    for part in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers"):
        check_equal(left[part], right[part], part)
    for part in ("best_weights", "best_iteration", "random"):
        check_equal(left["saucer"][part], right["saucer"][part], part)
    for kind in ("onnx", "detections_test"):
        assert Path(resumed.files[kind]).read_bytes() == Path(whole.files[kind]).read_bytes(), kind


def check_equal(left: Any, right: Any, name: str) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), name
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), name
        for key in left:
            check_equal(left[key], right[key], f"{name}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), name
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            check_equal(one, other, f"{name}.{index}")
    else:
        assert left == right, name
