"""A job that only predicts, in the real child: with a model that a training left, and with nothing else of it."""

import dataclasses
import json
from pathlib import Path

import pytest

from saucer.serving.detections import Detections
from saucer.worker.job import EndReason, Halted, PredictJob, Result, Stage, StageName, Stop, TrainJob
from tests.support.child import Child
from tests.support.shapes import CLASSES, ShapesData, write_shapes


@pytest.fixture(scope="module")
def data(folder: Path) -> ShapesData:
    return write_shapes(folder / "data", train=16, validation=8, test=24)


@pytest.fixture(scope="module")
def trained(child: Child, folder: Path, data: ShapesData) -> Result:
    return child.run(
        TrainJob(
            workdir=str(folder / "training"),
            images=str(data.images),
            train=str(data.train),
            validation=str(data.validation),
            test=str(data.test),
            classes=CLASSES,
            input_size=64,
            epochs=1,
            warmup_iterations=1,
        )
    )


@pytest.fixture(scope="module")
def job(trained: Result, folder: Path, data: ShapesData) -> PredictJob:
    model = folder / "model"
    model.mkdir()
    for kind in ("onnx", "model"):
        source = Path(trained.files[kind])
        (model / source.name).write_bytes(source.read_bytes())
    return PredictJob(
        workdir=str(folder / "prediction"),
        images=str(data.images),
        model=str(model),
        classes=CLASSES,
        validation=str(data.validation),
        test=str(data.test),
    )


def test_a_prediction_gives_the_bytes_that_the_training_left(child: Child, trained: Result, job: PredictJob) -> None:
    result = child.run(job)
    assert result.reason is EndReason.COMPLETED
    for kind in ("detections_test", "detections_validation"):
        assert Path(result.files[kind]).read_bytes() == Path(trained.files[kind]).read_bytes()
    assert json.loads(Path(result.files["report"]).read_text()) == json.loads(Path(trained.files["report"]).read_text())
    stages = {report.stage for report in child.reports if isinstance(report, Stage)}
    assert stages == {StageName.PREPARING, StageName.PREDICTING}


def test_a_split_without_images_has_no_detections(child: Child, job: PredictJob, folder: Path) -> None:
    result = child.run(dataclasses.replace(job, workdir=str(folder / "test_only"), validation=None))
    found = Detections.from_bytes(Path(result.files["detections_validation"]).read_bytes())
    assert (found.images.size, found.score.size) == (0, 0)


def test_of_a_prediction_that_its_duration_ends_nothing_is_left(child: Child, job: PredictJob, folder: Path) -> None:
    result = child.run(dataclasses.replace(job, workdir=str(folder / "short"), max_duration_ms=0))
    assert (result.reason, result.files) == (EndReason.DURATION_REACHED, {})


@pytest.mark.parametrize("finish", [True, False])
def test_a_stop_of_either_kind_halts_a_prediction(child: Child, job: PredictJob, folder: Path, *, finish: bool) -> None:
    child.send(dataclasses.replace(job, workdir=str(folder / f"stopped-{finish}")))
    child.send(Stop("END_REASON_STOPPED_BY_USER", finish=finish))
    assert child.wait_for(Halted).reason == "END_REASON_STOPPED_BY_USER"


def test_a_prediction_tells_how_many_images_it_predicts(child: Child, job: PredictJob, folder: Path) -> None:
    child.run(dataclasses.replace(job, workdir=str(folder / "counted")))
    assert {report.total for report in child.all(Stage) if report.stage is StageName.PREDICTING} == {24 + 8}
