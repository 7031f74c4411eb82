"""Real training in the real child process, through its protocol. One run, killed once, serves most assertions."""

import dataclasses
import json
import math
import queue
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest
import torch

from saucer.serving.detections import Detections
from saucer.serving.detector import Detector
from saucer.serving.runtime import Network
from saucer.serving.spec import GRAPH_FILE
from saucer.worker.job import (
    Checkpoint,
    EndReason,
    Failure,
    FailureKind,
    Halted,
    Kept,
    Log,
    Metrics,
    Progress,
    Quit,
    Result,
    Stage,
    StageName,
    Stop,
    TrainJob,
)
from tests.support.child import Child
from tests.support.shapes import CLASSES, ShapesData, write_shapes

T = TypeVar("T")
EPOCHS = 9
EPOCH_ITERATIONS = 8
ITERATIONS = EPOCHS * EPOCH_ITERATIONS
LR = 2e-3
WARMUP = 20
# As the worker's hooks have them, which only a child may import.
CHECKPOINT_ITERATIONS = 40
LOST_ITERATIONS = 50

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Interrupted:
    """A run whose first child was killed after a checkpoint, and whose second one finished it."""

    before: list[object]
    checkpoint: Checkpoint
    after: list[object]
    result: Result


@pytest.fixture(scope="module")
def data(folder: Path) -> ShapesData:
    return write_shapes(folder / "data", train=60, validation=16, test=16)


@pytest.fixture(scope="module")
def small(folder: Path, data: ShapesData) -> TrainJob:
    return TrainJob(
        workdir=str(folder / "first"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        test=str(data.test),
        classes=CLASSES,
        input_size=128,
        epochs=EPOCHS,
        lr=LR,
        batch_size=8,
        warmup_iterations=WARMUP,
    )


@pytest.fixture(scope="module")
def interrupted(small: TrainJob, child: Child, folder: Path) -> Interrupted:
    first = Child(folder / "stderr.txt")
    first.send(small)
    checkpoint = first.wait_for(Checkpoint)
    first.wait_for(Progress, lambda report: report.iteration > checkpoint.iteration)
    first.kill()
    # Another machine has the checkpoint only.
    moved = folder / "moved.pth"
    moved.write_bytes(Path(checkpoint.path).read_bytes())
    result = child.run(dataclasses.replace(small, workdir=str(folder / "second"), resume=str(moved)))
    return Interrupted(list(first.reports), checkpoint, list(child.reports), result)


def of(kind: type[T], reports: list[object]) -> list[T]:
    return [report for report in reports if isinstance(report, kind)]


def test_a_killed_run_resumes_at_its_checkpoint_and_completes(interrupted: Interrupted) -> None:
    assert interrupted.checkpoint.iteration > 0
    progress = of(Progress, interrupted.after)
    trained = [report for report in progress if report.iteration > interrupted.checkpoint.iteration]
    assert trained[0].iteration == interrupted.checkpoint.iteration + 1
    assert all(report.validated < 1 for report in progress[: -len(trained)]), "before it the validation that was due"
    assert progress[-1].iteration == progress[-1].iterations == ITERATIONS
    assert interrupted.result.reason is EndReason.COMPLETED
    assert interrupted.result.iteration == ITERATIONS


def test_a_checkpoint_has_the_weights_and_their_average_which_it_is_that_is_used(interrupted: Interrupted) -> None:
    content = torch.load(interrupted.checkpoint.path, map_location="cpu", weights_only=True)
    averaged, kept = content["state_dict"], content["ema_state_dict"]
    # mmengine exchanges the two in the file, so that whoever reads the weights alone gets the average.
    trained = {name: kept[f"module.{name}"] for name in averaged}
    assert kept["steps"] == interrupted.checkpoint.iteration
    differs = [
        name for name in averaged if averaged[name].is_floating_point() and (averaged[name] != trained[name]).any()
    ]
    assert "bbox_head.rtm_cls.0.weight" in differs
    for name in differs:
        assert torch.allclose(averaged[name], trained[name], rtol=0.2, atol=0.02), name


def test_elapsed_time_goes_on_where_the_checkpoint_left_it(interrupted: Interrupted) -> None:
    elapsed = [report.elapsed_ms for report in of(Progress, interrupted.after)]
    assert elapsed == sorted(elapsed)
    assert interrupted.checkpoint.elapsed_ms <= elapsed[0] < interrupted.checkpoint.elapsed_ms + 30_000
    assert interrupted.result.elapsed_ms >= elapsed[-1]


def test_the_learning_rate_after_a_resume_is_that_of_an_uninterrupted_run(interrupted: Interrupted) -> None:
    level = ITERATIONS // 2

    def rate(step: int) -> float:
        fallen = max(0, step - level) / (ITERATIONS - level)
        return LR * (0.05 + 0.95 * (1 + math.cos(math.pi * fallen)) / 2)

    rates = [report for report in of(Metrics, interrupted.after) if "lr" in report.values]
    assert rates
    for report in rates:
        if report.iteration > WARMUP:
            assert rate(report.iteration) - 1e-9 <= report.values["lr"] <= rate(report.iteration - 2) + 1e-9


def test_metrics_arrive_for_loss_and_validation(interrupted: Interrupted) -> None:
    metrics = of(Metrics, interrupted.before) + of(Metrics, interrupted.after)
    losses = [report for report in metrics if "loss" in report.values]
    assert all({"loss", "loss_cls", "loss_bbox", "lr"} <= set(report.values) for report in losses)
    assert all(report.epoch == pytest.approx(report.iteration / EPOCH_ITERATIONS, abs=1e-3) for report in metrics)
    assert losses[-1].values["loss"] < max(report.values["loss"] for report in losses)
    validations = [report for report in metrics if "map_50" in report.values]
    assert len(validations) >= 5
    assert all({"map", "map_50", "map_75"} <= set(report.values) for report in validations)
    assert interrupted.result.best_map_50 == max(report.values["map_50"] for report in validations)


def test_the_metrics_file_of_the_second_attempt_holds_the_first_ones_too(interrupted: Interrupted) -> None:
    lines = [json.loads(line) for line in Path(interrupted.result.files["metrics"]).read_text().splitlines()]
    steps = [line["iteration"] for line in lines]
    assert steps[0] < interrupted.checkpoint.iteration < steps[-1]
    assert steps == sorted(steps)


def test_stages_come_in_order_and_logs_are_forwarded(interrupted: Interrupted) -> None:
    stages = list(dict.fromkeys(report.stage for report in of(Stage, interrupted.after)))
    assert stages == [StageName.PREPARING, StageName.TRAINING, StageName.EXPORTING, StageName.PREDICTING]
    last = of(Stage, interrupted.after)[-1]
    assert last.done == last.total == 32
    assert any("Iter(train)" in report.text for report in of(Log, interrupted.after))
    assert "Iter(train)" in Path(interrupted.result.files["log"]).read_text()


def test_the_result_names_its_files(interrupted: Interrupted, data: ShapesData) -> None:
    files = interrupted.result.files
    assert set(files) == {
        "weights",
        "onnx",
        "model",
        "config",
        "metrics",
        "log",
        "detections_validation",
        "detections_test",
        "report",
    }
    weights = torch.load(files["weights"], weights_only=True)
    assert set(weights) == {"state_dict", "meta"}
    assert weights["meta"]["classes"] == list(CLASSES)
    assert str(data.images) not in Path(files["config"]).read_text()
    for name in ("validation", "test"):
        detections = Detections.from_bytes(Path(files[f"detections_{name}"]).read_bytes())
        truth = json.loads(getattr(data, name).read_text())
        assert detections.images.tolist() == [image["id"] for image in truth["images"]]


def test_it_learns_and_the_served_model_scores_what_validation_promised(interrupted: Interrupted) -> None:
    report = json.loads(Path(interrupted.result.files["report"]).read_text())
    best = interrupted.result.best_map_50
    assert best is not None
    assert best > 0.5
    assert report["test"]["map_50"] > 0.4
    assert report["validation"]["map_50"] == pytest.approx(best, abs=0.02)


def test_labels_follow_the_order_of_the_jobs_classes(interrupted: Interrupted, data: ShapesData) -> None:
    # The data set's file lists its categories the other way round.
    detections = Detections.from_bytes(Path(interrupted.result.files["detections_test"]).read_bytes())
    truth = json.loads(data.test.read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    sure = detections.score > 0.5
    found = agreed = 0
    for image, box, label in zip(detections.image_id[sure], detections.box[sure], detections.label[sure], strict=True):
        for item in truth["annotations"]:
            left, top, width, height = item["bbox"]
            if item["image_id"] == image and np.abs(box - [left, top, left + width, top + height]).max() < 6:
                found += 1
                agreed += names[item["category_id"]] == CLASSES[label]
    assert found > 5
    assert agreed >= 0.8 * found


def test_the_exported_graph_computes_what_torch_computes(interrupted: Interrupted, small: TrainJob) -> None:
    from saucer.worker import trainer  # noqa: PLC0415 - imports MMDetection, which only this test needs in this process
    from saucer.worker.export import RawDetector  # noqa: PLC0415

    files = interrupted.result.files
    trainer.load_engine()
    detector = trainer.build(small)
    detector.load_state_dict(torch.load(files["weights"], weights_only=True)["state_dict"])
    raw = RawDetector(detector, small.input_size).eval()
    folder = Path(files["onnx"]).parent
    prepare = Detector.load(folder).prepare
    images = [prepare(path.read_bytes()).pixels for path in sorted(Path(small.images).glob("*.jpg"))[:5]]
    # Anchor by anchor: after the selection, two boxes of almost one score may stand in either order.
    boxes, scores = Network(folder / GRAPH_FILE, 1)(np.stack(images))
    with torch.no_grad():
        expected_boxes, expected_scores = raw(torch.from_numpy(np.stack(images)))
    assert np.allclose(boxes, expected_boxes.numpy(), atol=0.05)
    assert np.allclose(scores, expected_scores.numpy(), atol=1e-4)


def test_finishing_only_makes_the_same_model_from_the_checkpoint(
    child: Child, interrupted: Interrupted, small: TrainJob, folder: Path
) -> None:
    job = dataclasses.replace(
        small, workdir=str(folder / "finish"), resume=interrupted.result.checkpoint, finish_only=True
    )
    result = child.run(job)
    assert result.reason is EndReason.FINISHED
    assert result.elapsed_ms == interrupted.result.elapsed_ms
    assert not child.all(Progress)
    for name in ("box", "score"):
        columns = [
            getattr(Detections.from_bytes(Path(end.files["detections_test"]).read_bytes()), name)
            for end in (result, interrupted.result)
        ]
        assert np.allclose(columns[0], columns[1], atol=1e-3)


def test_a_run_that_had_ended_when_its_worker_was_lost_only_finishes_again(
    child: Child, interrupted: Interrupted, small: TrainJob, folder: Path
) -> None:
    result = child.run(
        dataclasses.replace(
            small,
            workdir=str(folder / "again"),
            resume=interrupted.result.checkpoint,
            expected_accuracy=interrupted.result.best_map_50,
        )
    )
    assert result.reason is EndReason.ACCURACY_REACHED
    assert not child.all(Progress)


def test_training_stops_when_the_expected_accuracy_is_reached(child: Child, small: TrainJob, folder: Path) -> None:
    result = child.run(
        dataclasses.replace(
            small, workdir=str(folder / "accuracy"), expected_accuracy=0.001, epochs=40, warmup_iterations=2
        )
    )
    assert result.reason is EndReason.ACCURACY_REACHED
    assert result.best_map_50 is not None
    assert result.best_map_50 >= 0.001
    assert result.iteration < 40 * EPOCH_ITERATIONS
    assert_usable(result)


def test_training_stops_at_its_maximum_duration_in_mid_epoch(child: Child, small: TrainJob, folder: Path) -> None:
    result = child.run(
        dataclasses.replace(
            small,
            workdir=str(folder / "duration"),
            batch_size=1,
            epochs=50,
            max_duration_ms=21_500,
            elapsed_ms=20_000,
            validation=None,
            test=None,
        )
    )
    assert result.reason is EndReason.DURATION_REACHED
    assert 0 < result.iteration < 60
    assert 21_500 <= result.elapsed_ms < 40_000
    # Before the first validation the current weights are the model.
    assert result.best_map_50 is None
    assert "detections_test" not in result.files
    assert_usable(result)


def test_a_stop_order_ends_the_run_with_a_usable_model(child: Child, small: TrainJob, folder: Path) -> None:
    child.send(dataclasses.replace(small, workdir=str(folder / "stopped"), epochs=500))
    child.wait_for(Progress, lambda report: report.iteration >= 2)
    child.send(Stop("user"))
    result = child.wait_for(Result)
    assert result.reason is EndReason.STOPPED
    assert result.stop_reason == "user"
    assert result.checkpoint is not None
    assert_usable(result)


def test_a_stop_without_finish_leaves_a_checkpoint_only(child: Child, small: TrainJob, folder: Path) -> None:
    child.send(dataclasses.replace(small, workdir=str(folder / "halted"), epochs=500))
    child.wait_for(Progress, lambda report: report.iteration >= 2)
    child.send(Stop("drain", finish=False))
    halted = child.wait_for(Halted)
    assert halted.reason == "drain"
    assert halted.iteration >= 2
    assert halted.checkpoint is not None
    assert Path(halted.checkpoint).is_file()
    assert not (folder / "halted" / "result" / "model.onnx").exists()


def test_training_waits_for_a_checkpoint_to_be_kept_rather_than_lose_more_than_it_may(
    child: Child, small: TrainJob, folder: Path
) -> None:
    job = dataclasses.replace(small, workdir=str(folder / "held"), input_size=64, validation=None, epochs=500)
    child.send(dataclasses.replace(job, waits_for_kept=True))
    for bound in (LOST_ITERATIONS, CHECKPOINT_ITERATIONS + LOST_ITERATIONS):

        def beyond(report: Progress, bound: int = bound) -> bool:
            return report.iteration > bound

        saved = child.wait_for(Checkpoint)
        with pytest.raises(queue.Empty):
            child.wait_for(Progress, beyond, timeout_s=5)
        child.send(Kept(saved.iteration))
        child.wait_for(Progress, beyond)
    child.send(Stop("drain", finish=False))
    child.wait_for(Halted)


def test_data_that_cannot_be_trained_with_is_the_users_failure_and_the_child_lives_on(
    child: Child, small: TrainJob, folder: Path, data: ShapesData
) -> None:
    empty = folder / "empty.json"
    empty.write_text('{"images": [], "annotations": [], "categories": []}')
    broken = folder / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    truth = json.loads(data.train.read_text())
    damaged = folder / "damaged"
    damaged.mkdir()
    for image in truth["images"]:
        (damaged / image["file_name"]).write_bytes(b"no image")
    cases: list[tuple[dict[str, Any], FailureKind, str]] = [
        ({"train": str(empty)}, FailureKind.USER, "training split has no images"),
        ({"classes": ("fork",)}, FailureKind.USER, "No box in the training split"),
        ({"images": str(damaged), "validation": None, "test": None}, FailureKind.USER, "not a JPEG"),
        ({"resume": str(broken)}, FailureKind.PLATFORM, "broken.pth cannot be read"),
        ({"images": str(folder / "nowhere")}, FailureKind.PLATFORM, "are missing"),
    ]
    for number, (changes, kind, text) in enumerate(cases):
        child.send(dataclasses.replace(small, workdir=str(folder / f"fails-{number}"), **changes))
        failure = child.wait_for(Failure)
        assert failure.kind is kind
        assert text in failure.message


def test_one_class_and_crowds_and_images_without_boxes_train(child: Child, small: TrainJob, folder: Path) -> None:
    images = folder / "odd"
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), np.full((40 + 300 * number, 90, 3), 90, np.uint8))
    entries = [{"id": n + 1, "file_name": f"{n}.png", "width": 90, "height": 40 + 300 * n} for n in range(3)]
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 20]},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5, 5, 50, 90], "iscrowd": 1, "area": 10.0},
    ]
    file = folder / "odd.json"
    file.write_text(json.dumps({"images": entries, "annotations": boxes, "categories": [{"id": 3, "name": "cup"}]}))
    result = child.run(
        dataclasses.replace(
            small,
            workdir=str(folder / "odd-work"),
            images=str(images),
            train=str(file),
            validation=str(file),
            test=None,
            classes=("cup",),
            epochs=2,
        )
    )
    assert result.reason is EndReason.COMPLETED
    # Nothing is found yet: that is an accuracy of 0, not a failure.
    assert result.best_map_50 is not None


def test_sigterm_saves_a_checkpoint_and_ends_the_child(small: TrainJob, folder: Path) -> None:
    child = Child(folder / "stderr.txt")
    child.send(dataclasses.replace(small, workdir=str(folder / "terminated"), epochs=500))
    child.wait_for(Progress)
    child.process.send_signal(signal.SIGINT)
    child.process.send_signal(signal.SIGTERM)
    halted = child.wait_for(Halted)
    assert halted.checkpoint is not None
    assert child.process.wait(timeout=30) == 0


def test_a_child_whose_parent_is_gone_ends_at_once(small: TrainJob, folder: Path) -> None:
    child = Child(folder / "stderr.txt")
    child.send(dataclasses.replace(small, workdir=str(folder / "orphan"), epochs=500))
    child.wait_for(Progress)
    assert child.close() == 3
    assert not list((folder / "orphan" / "checkpoints").glob("*"))


def test_quit_ends_a_waiting_child(folder: Path) -> None:
    child = Child(folder / "stderr.txt")
    child.send(Quit())
    assert child.process.wait(timeout=30) == 0


def assert_usable(result: Result) -> None:
    detector = Detector.load(Path(result.files["onnx"]).parent)
    image = cv2.imencode(".jpg", np.full((100, 150, 3), 90, np.uint8))[1].tobytes()
    assert (detector.detect([image])[0].width, detector.spec.classes) == (150, CLASSES)
