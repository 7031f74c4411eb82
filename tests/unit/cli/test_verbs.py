"""The verbs of services that answer as a script says: what is sent, what is printed, how a failure goes on."""

# ruff: noqa: N802 - gRPC names methods as the protos do

import html
import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import grpc
import pytest
from PIL import Image

from saucer.cli import connection, datasets, deployments, evaluation_options, evaluations
from saucer.cli.main import TOPICS, main
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from saucer.lib.errors import InvalidArgumentError
from saucer.lib.grpc_server import to_status
from saucer.lib.ids import new_id
from saucer.publishing.v1 import publishing_pb2, publishing_pb2_grpc
from saucer.task.v1 import task_pb2, task_pb2_grpc
from saucer.training.v1 import training_pb2, training_pb2_grpc
from tests.support.cli import Cli

# Fixed: parallel test processes must collect the same tests.
ACCOUNT, TASK, RUN, MODEL, EVALUATION, DEPLOYMENT, VERSION = (
    f"01a20aea-dd68-71ee-af64-{number:012d}" for number in range(7)
)
ONNX = b"onnx" * 1000
HOSTILE = "<img src=x onerror='alert(1)'>"


def not_found(context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.NOT_FOUND, "There is no such thing.")


@dataclass
class Script(
    task_pb2_grpc.TaskServiceServicer,
    dataset_pb2_grpc.DatasetServiceServicer,
    training_pb2_grpc.TrainingServiceServicer,
    evaluation_pb2_grpc.EvaluationServiceServicer,
    publishing_pb2_grpc.PublishingServiceServicer,
):
    """All services in one. Keeps what it was sent."""

    requests: list[Any] = field(default_factory=list)
    uploaded: bytearray = field(default_factory=bytearray)
    upload_size: int = 0
    fail_writes_at: int = -1
    watched: int = 0
    import_polls: int = 0
    validation_kept: bool = True
    classification: bool = False
    predicted: int = 0

    def task(self, state: Any, progress: float) -> task_pb2.Task:
        task = task_pb2.Task(
            task_id=TASK,
            state=state,
            progress=progress,
            currency="EUR",
            cost_micros=30_000,
            run_id=RUN,
            model_id=MODEL,
            evaluation_id=EVALUATION,
            best_map_50=0.7,
            epoch=8 * progress,
        )
        task.form.display_name = "cups"
        task.config.epochs = 8
        task.config.max_duration.seconds = 3600
        task.config.expected_accuracy = 0.8
        task.elapsed.seconds = 70
        task.time_left.seconds = 100
        return task

    def CreateTask(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return self.task(task_pb2.TASK_STATE_QUEUED, 0)

    def QuoteTask(self, request: Any, context: Any) -> Any:
        return task_pb2.TaskQuote(hold_micros=7_200_000, currency="EUR", warnings=["It is slow."])

    def GetTask(self, request: Any, context: Any) -> Any:
        if request.task_id != TASK:
            not_found(context)
        return self.task(task_pb2.TASK_STATE_SUCCEEDED, 1)

    def ListTasks(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return task_pb2.ListTasksResponse(tasks=[self.task(task_pb2.TASK_STATE_TRAINING, 0.5)])

    def WatchTask(self, request: Any, context: Any) -> Iterator[Any]:
        self.watched += 1
        if self.watched == 1:
            yield self.task(task_pb2.TASK_STATE_TRAINING, 0.42)
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        yield self.task(task_pb2.TASK_STATE_TRAINING, 0.9)
        yield self.task(task_pb2.TASK_STATE_SUCCEEDED, 1)

    def CreateUpload(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.upload_size = request.size_bytes
        return self.upload()

    def upload(self) -> dataset_pb2.Upload:
        return dataset_pb2.Upload(upload_id=RUN, size_bytes=self.upload_size, committed_bytes=len(self.uploaded))

    def GetUpload(self, request: Any, context: Any) -> Any:
        return self.upload()

    def WriteUpload(self, request: Any, context: Any) -> Any:
        if len(self.uploaded) == self.fail_writes_at:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "The disk is full.")
        assert request.offset_bytes == len(self.uploaded)
        self.uploaded += request.data
        return self.upload()

    def ImportDataset(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return dataset_pb2.Import(import_id=RUN, state=dataset_pb2.IMPORT_STATE_QUEUED)

    def GetImport(self, request: Any, context: Any) -> Any:
        self.import_polls += 1
        if self.import_polls < 3:
            return dataset_pb2.Import(
                import_id=RUN, state=dataset_pb2.IMPORT_STATE_IMPORTING, images_done=self.import_polls, images_total=3
            )
        ended = dataset_pb2.Import(
            import_id=RUN, state=dataset_pb2.IMPORT_STATE_SUCCEEDED, images_done=3, images_total=3
        )
        ended.dataset_version_id = VERSION
        ended.report.counts.add(reason="BOX_OF_NO_AREA", count=2)
        ended.report.items.add(reason="BOX_OF_NO_AREA", item="17", message="The box has no area.")
        return ended

    def GetDatasetVersion(self, request: Any, context: Any) -> Any:
        version = dataset_pb2.DatasetVersion(dataset_version_id=VERSION, display_name="cups", classes=["cup"])
        version.statistics.classes.add(class_name="cup", boxes=5, images=3, share=1.0)
        return version

    def GetRun(self, request: Any, context: Any) -> Any:
        if request.run_id != RUN:
            not_found(context)
        return training_pb2.Run(run_id=RUN)

    def ListMetrics(self, request: Any, context: Any) -> Any:
        points = [
            training_pb2.MetricPoint(
                sequence=n, epoch=n / 2, iteration=n, values={"loss": 1 / n, "lr": 0.1, "map_50": 0.5}
            )
            for n in range(1, 5)
        ]
        return training_pb2.ListMetricsResponse(points=points)

    def StreamMetrics(self, request: Any, context: Any) -> Iterator[Any]:
        yield from self.ListMetrics(request, context).points

    def ListLogLines(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return training_pb2.ListLogLinesResponse(
            lines=[training_pb2.LogLine(text="lost it", level=training_pb2.LOG_LEVEL_WARNING)]
        )

    def StreamLogLines(self, request: Any, context: Any) -> Iterator[Any]:
        """Breaks off after each line."""
        number = request.after_sequence + 1
        yield training_pb2.LogLine(sequence=number, text=f"line {number}", level=training_pb2.LOG_LEVEL_INFO)
        if number < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    def ListImageReads(self, request: Any, context: Any) -> Any:
        days = [dataset_pb2.ImageReads(day=day, reads=3, bytes=700) for day in ("2026-11-29", "2026-11-27")]
        return dataset_pb2.ListImageReadsResponse(image_reads=days)

    def ListEvaluationImageReads(self, request: Any, context: Any) -> Any:
        days = [evaluation_pb2.ImageReads(day="2026-11-28", reads=2, bytes=500)]
        return evaluation_pb2.ListEvaluationImageReadsResponse(image_reads=days)

    def GetModel(self, request: Any, context: Any) -> Any:
        if request.model_id != MODEL:
            not_found(context)
        model = training_pb2.Model(model_id=MODEL, display_name="cups", classes=["cup"])
        model.files.add(name="model.onnx", size_bytes=len(ONNX), sha256=sha256(ONNX).hexdigest())
        model.files.add(name="bad.txt", size_bytes=4, sha256=sha256(b"good").hexdigest())
        return model

    def DeleteModel(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.model_id != MODEL:
            not_found(context)
        return training_pb2.Model(model_id=MODEL, display_name="cups")

    def DownloadModelFile(self, request: Any, context: Any) -> Iterator[Any]:
        data = ONNX if request.name == "model.onnx" else b"evil"
        for start in range(0, len(data), 1024):
            yield training_pb2.FileChunk(data=data[start : start + 1024])

    def GetEvaluation(self, request: Any, context: Any) -> Any:
        if request.evaluation_id != EVALUATION:
            not_found(context)
        self.requests.append(request)
        evaluation = evaluation_pb2.Evaluation(evaluation_id=EVALUATION, images=10, map_50=0.81, threshold=0.25)
        evaluation.classification = self.classification
        evaluation.coco.map_75 = 0.625
        evaluation.map_weighted = 0.456
        evaluation.classes.add(class_name="cup", boxes=5, share=1.0, ap_50=0.81, true_positives=4, misses=1)
        return evaluation

    def GetPrecisionRecallCurves(self, request: Any, context: Any) -> Any:
        curves = evaluation_pb2.PrecisionRecallCurves()
        curve = curves.curves.add(class_name="cup", ap_50=0.81)
        curve.points.add(recall=0.5, precision=1.0, threshold=0.9)
        curve.points.add(recall=0.9, precision=0.6, threshold=0.1)
        return curves

    def GetConfusionMatrix(self, request: Any, context: Any) -> Any:
        matrix = evaluation_pb2.ConfusionMatrix(threshold=request.threshold, class_names=["cup", "plate"])
        for boxes in ([7, 2, 1], [0, 5, 3], [4, 0, 0]):
            matrix.rows.add(boxes=boxes)
        return matrix

    def RecommendThresholds(self, request: Any, context: Any) -> Any:
        if not self.validation_kept:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "There are none & so on.")
        self.requests.append(request)
        response = evaluation_pb2.RecommendThresholdsResponse()
        chosen = response.recommendations.add(goal=evaluation_pb2.THRESHOLD_GOAL_BEST_F1, threshold=0.87365)
        chosen.test.precision, chosen.test.precision_interval.low, chosen.test.precision_interval.high = 0.9, 0.6, 0.98
        response.recommendations.add(class_name="cup", goal=evaluation_pb2.THRESHOLD_GOAL_PRECISION, wanted=0.95)
        return response

    def ListSuspectedLabels(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        response = evaluation_pb2.ListSuspectedLabelsResponse()
        response.suspected_labels.add(file_name=HOSTILE)
        suspect = response.suspected_labels.add(
            kind=evaluation_pb2.SUSPECT_KIND_WRONG_CLASS, suspicion=0.75, file_name="b.jpg"
        )
        suspect.detection.class_name, suspect.detection.score, suspect.truth.class_name = "plate", 0.8, "cup"
        return response

    def CompareEvaluations(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        compared = evaluation_pb2.Comparison(better_images=2, worse_images=1, same_images=7)
        for side, f1 in ((compared.base, 0.5), (compared.evaluation, 0.875)):
            side.classes.add(class_name="cup", f1=f1)
        compared.classes.add(class_name="cup", change=evaluation_pb2.CHANGE_BETTER)
        compared.images.add(file_name="a.jpg", base_errors=3, errors=1)
        return compared

    def GetScoreHistograms(self, request: Any, context: Any) -> Any:
        histograms = evaluation_pb2.ScoreHistograms()
        for name in ("", "cup"):
            histograms.histograms.add(
                class_name=name, edges=[0, 0.5, 1], true_positives=[1, 40], false_positives=[333, 2]
            )
        return histograms

    def ListTestImages(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        image = evaluation_pb2.TestImage(
            file_name="a.jpg", width=64, height=48, image=photograph() if request.include_images else b""
        )
        for name in ("cup", "plate", "cup"):
            image.truth.add(x1=1, y1=1, x2=30, y2=30, class_name=name)
        return evaluation_pb2.ListTestImagesResponse(test_images=[image], total_size=1)

    def ExportBadCases(self, request: Any, context: Any) -> Iterator[Any]:
        self.requests.append(request)
        for data in (b"image_id,", b"file_name"):
            yield evaluation_pb2.ExportedPiece(data=data)

    def ListBadCases(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        case = evaluation_pb2.BadCase(file_name="a.jpg", image=photograph() if request.include_images else b"")
        if self.classification:
            case.faults.add(kind=evaluation_pb2.FAULT_KIND_MISS, class_name="cup", detection=-1, truth=0)
            wrong = evaluation_pb2.BadCase(file_name="b.jpg")
            wrong.faults.add(kind=evaluation_pb2.FAULT_KIND_CONFUSED, class_name="plate")
            return evaluation_pb2.ListBadCasesResponse(bad_cases=[case, wrong])
        for _ in range(3):
            case.faults.add(kind=evaluation_pb2.FAULT_KIND_MISS, class_name="cup")
        case.faults.add(kind=evaluation_pb2.FAULT_KIND_FALSE_POSITIVE, class_name="plate")
        case.truth.add(x1=1, y1=1, x2=30, y2=30, class_name="cup")
        return evaluation_pb2.ListBadCasesResponse(bad_cases=[case])

    def CreateDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Deployment(
            deployment_id=DEPLOYMENT, state=publishing_pb2.DEPLOYMENT_STATE_QUEUED, warnings=["It runs until stopped."]
        )

    def GetDeployment(self, request: Any, context: Any) -> Any:
        return publishing_pb2.Deployment(
            deployment_id=DEPLOYMENT,
            state=publishing_pb2.DEPLOYMENT_STATE_ACTIVE,
            classes=["cup", "plate"],
            thresholds=[publishing_pb2.ClassThreshold(class_name="cup", threshold=0.6)],
        )

    def UpdateDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        candidate = publishing_pb2.Candidate(version=publishing_pb2.Version(number=2), percent=request.percent)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=1, candidate=candidate)

    def RollBackDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=request.version_number)

    def SplitDeployment(self, request: Any, context: Any) -> Any:
        candidate = publishing_pb2.Candidate(
            version=publishing_pb2.Version(number=2), percent=request.percent, ready=True
        )
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=1, candidate=candidate)

    def PromoteCandidate(self, request: Any, context: Any) -> Any:
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=2)

    def AbandonCandidate(self, request: Any, context: Any) -> Any:
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=1)

    def ListUpdateRecords(self, request: Any, context: Any) -> Any:
        record = publishing_pb2.UpdateRecord(
            number=1, action=publishing_pb2.UPDATE_ACTION_REJECTED, author="saucer", detail="no such graph"
        )
        return publishing_pb2.ListUpdateRecordsResponse(records=[record])

    def ListDeploymentVersions(self, request: Any, context: Any) -> Any:
        gate = publishing_pb2.Gate(
            parity=publishing_pb2.Parity(ok=True, images=9, boxes=40, paired=39),
            images=[publishing_pb2.ImageDifference(image_id=77, boxes=4, unpaired=1, box_px=1.25)],
            runtime="openvino_bf16",
            runtime_reason="For one image there: openvino_bf16 7.2 ms, onnxruntime 18.3 ms.",
        )
        return publishing_pb2.ListDeploymentVersionsResponse(
            versions=[publishing_pb2.Version(number=2, gate=gate), publishing_pb2.Version(number=1)]
        )

    def ListInstances(self, request: Any, context: Any) -> Any:
        return publishing_pb2.ListInstancesResponse(
            instances=[
                publishing_pb2.Instance(
                    instance_id="second",
                    version_number=2,
                    live=True,
                    state=publishing_pb2.INSTANCE_STATE_LOST,
                    message="its process is gone",
                )
            ]
        )

    def ListTrafficSamples(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        sample = publishing_pb2.TrafficSample(version_number=2, requests=30, errors=1, latency_p99_ms=12.34)
        return publishing_pb2.ListTrafficSamplesResponse(samples=[sample])

    def ListDeploymentEvents(self, request: Any, context: Any) -> Any:
        event = publishing_pb2.DeploymentEvent(start_number=1, kind="DEGRADED", message="no answer", count=3)
        return publishing_pb2.ListDeploymentEventsResponse(events=[event])

    def ListDeploymentLogLines(self, request: Any, context: Any) -> Any:
        line = publishing_pb2.DeploymentLogLine(version_number=2, level="WARNING", message="images were refused: 3")
        return publishing_pb2.ListDeploymentLogLinesResponse(lines=[line])

    def RegisterTriton(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Triton(triton_id=request.triton_id, room=request.room, live=True)

    def DrainTriton(self, request: Any, context: Any) -> Any:
        return publishing_pb2.Triton(triton_id=request.triton_id, draining=not request.undo)

    def ListTritons(self, request: Any, context: Any) -> Any:
        return publishing_pb2.ListTritonsResponse(tritons=[publishing_pb2.Triton(triton_id="second", room=8)])

    def StopDeployment(self, request: Any, context: Any) -> Any:
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, state=publishing_pb2.DEPLOYMENT_STATE_STOPPED)

    def DeleteDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, display_name="cups")

    def Predict(self, request: Any, context: Any) -> Any:
        self.predicted += 1
        found = publishing_pb2.PredictResponse(width=64, height=48, highest_score=0.7)
        found.detections.add(class_name="cup", score=0.7, x1=2, y1=2, x2=30, y2=30, above_threshold=True)
        found.detections.add(class_name="plate", score=0.2, x1=5, y1=5, x2=60, y2=40)
        return found

    def PredictStream(self, requests: Any, context: Any) -> Any:
        for number, request in enumerate(requests, 1):
            if not request.image:
                refusal = to_status("PredictStream", InvalidArgumentError("IMAGE_UNREADABLE", "It is no image."))
                yield publishing_pb2.PredictStreamResponse(request_number=number, error=refusal)
                continue
            yield publishing_pb2.PredictStreamResponse(request_number=number, prediction=self.Predict(request, context))


def photograph() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (120, 130, 140)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(datasets, "POLL_S", 0)
    monkeypatch.setattr(deployments, "POLL_S", 0)
    monkeypatch.setattr(connection, "RECONNECT_S", 0)
    return Script()  # type: ignore[abstract] # no test makes the other calls


@pytest.fixture
def cli(script: Script, tmp_path: Path) -> Iterator[Cli]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    task_pb2_grpc.add_TaskServiceServicer_to_server(script, server)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(script, server)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(script, server)
    evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server(script, server)
    publishing_pb2_grpc.add_PublishingServiceServicer_to_server(script, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    names = ("task", "dataset", "training", "evaluation", "publishing")
    yield Cli.write(
        tmp_path / "profile.json",
        dict.fromkeys(names, address),
        account_id=ACCOUNT,
        region_id="local",
        spec_id="cpu-2",
    )
    server.stop(0)


CREATE = ("task", "create", "--name", "cups", "--dataset", VERSION, "--max-duration", "15m", "--epochs", "8")


def test_a_task_is_created_from_its_options_and_the_profiles_defaults(cli: Cli, script: Script) -> None:
    assert cli.json(*CREATE, "--expected-accuracy", "0.8")["taskId"] == TASK
    (request,) = script.requests
    form = request.form
    assert (request.account_id, form.region_id, form.spec_id, form.scene) == (
        ACCOUNT,
        "local",
        "cpu-2",
        "object-detection",
    )
    assert (form.max_duration.seconds, form.epochs, form.expected_accuracy) == (900, 8, 0.8)
    assert not form.HasField("lr")


def test_a_repeated_command_sends_the_same_request_id(cli: Cli, script: Script) -> None:
    request_id = new_id()
    for _ in range(2):
        cli(*CREATE, "--request-id", request_id)
    cli(*CREATE)
    first, second, third = (request.request_id for request in script.requests)
    assert first == second == request_id != third


def test_a_quote_prints_its_warnings_beside_the_figures(cli: Cli) -> None:
    result = cli.result("task", "quote", *CREATE[2:])
    assert "7.20 EUR" in result.stdout
    assert "It is slow." in result.stderr


def test_tasks_are_filtered_by_state(cli: Cli, script: Script) -> None:
    assert "training" in cli("task", "list", "--state", "training", "--state", "queued")
    assert list(script.requests[0].states) == [task_pb2.TASK_STATE_TRAINING, task_pb2.TASK_STATE_QUEUED]


def test_watching_survives_a_restart_and_prints_a_line_for_each_change(cli: Cli, script: Script) -> None:
    result = cli.result("task", "watch", TASK)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line]
    assert script.watched == 2
    assert len(lines) == 3
    assert "42 %" in lines[0]
    for part in (
        "epoch 3.4 of 8",
        "0:01:10 of 1:00:00",
        "0:01:40 left",
        "0.03 EUR so far",
        "best map_50 0.700 of 0.800",
    ):
        assert part in lines[0]
    assert "succeeded" in result.stdout


def test_watching_with_json_prints_a_snapshot_a_line(cli: Cli) -> None:
    states = [task["state"] for task in cli.lines("task", "watch", TASK)]
    assert states == ["TASK_STATE_TRAINING", "TASK_STATE_TRAINING", "TASK_STATE_SUCCEEDED"]


def folder(tmp_path: Path) -> Path:
    source = tmp_path / "cups"
    (source / "images").mkdir(parents=True)
    (source / "images" / "a.jpg").write_bytes(b"a" * 2_500_000)
    (source / "labels.json").write_text("{}")
    (source / ".hidden").write_text("x")
    return source


def test_a_folder_is_packed_uploaded_and_imported(cli: Cli, script: Script, tmp_path: Path) -> None:
    text = cli("dataset", "import", str(folder(tmp_path)))
    with tarfile.open(fileobj=io.BytesIO(bytes(script.uploaded))) as tar:
        assert tar.getnames() == ["images/a.jpg", "labels.json"]
    assert script.requests[-1].display_name == "cups"
    assert script.requests[-1].upload_id == RUN
    assert "BOX_OF_NO_AREA" in text
    assert "and 1 more" in text
    assert VERSION in text


def test_an_interrupted_upload_goes_on_where_it_was(cli: Cli, script: Script, tmp_path: Path) -> None:
    source = folder(tmp_path)
    script.fail_writes_at = 2 * datasets.CHUNK_BYTES
    said = cli.fails("dataset", "import", str(source))
    assert f"--upload-id {RUN}" in said
    assert "The disk is full." in said
    script.fail_writes_at = -1
    # Packed again later, the folder gives the same bytes.
    (source / "labels.json").touch()
    imported = cli.json("dataset", "import", str(source), "--upload-id", RUN)
    assert imported["datasetVersion"]["datasetVersionId"] == VERSION
    assert len(script.uploaded) == script.upload_size


def test_another_archive_cannot_go_on_with_an_upload(cli: Cli, script: Script, tmp_path: Path) -> None:
    script.upload_size = 7
    assert "another one?" in cli.fails("dataset", "import", str(folder(tmp_path)), "--upload-id", RUN)


def test_an_empty_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no files" in cli.fails("dataset", "import", str(tmp_path / "empty"))


@pytest.mark.parametrize("identifier", [RUN, TASK])
def test_metrics_are_printed_and_drawn_by_run_or_task(cli: Cli, tmp_path: Path, identifier: str) -> None:
    assert "loss 0.25  lr 0.1  map_50 0.5" in cli("run", "metrics", identifier)
    assert len(cli.json("run", "metrics", identifier)) == 4
    cli("run", "metrics", identifier, "--follow", "--plot", str(tmp_path / "curve.png"))
    assert Image.open(tmp_path / "curve.png").format == "PNG"


def test_an_id_of_nothing_is_not_found(cli: Cli) -> None:
    assert "NOT_FOUND" in cli.fails("run", "metrics", new_id())


def test_the_log_is_searched_or_followed(cli: Cli, script: Script) -> None:
    assert "WARNING  lost it" in cli(
        "run", "logs", RUN, "--keyword", "lost", "--level", "warning", "--since", "2026-01-02"
    )
    (request,) = script.requests
    assert list(request.keywords) == ["lost"]
    assert request.min_level == training_pb2.LOG_LEVEL_WARNING
    assert request.HasField("start_time")


def test_a_task_is_shown_and_still_by_the_verbs_former_name(cli: Cli) -> None:
    shown = cli("task", "show", TASK)
    assert "succeeded" in shown
    assert cli("task", "get", TASK) == shown
    assert "NOT_FOUND" in cli.fails("task", "get", new_id())


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("2026-01-02", "2026-01-01T15:00:00Z"),
        ("2026-01-02T09:30", "2026-01-02T00:30:00Z"),
        ("2026-01-02 09:30:15", "2026-01-02T00:30:15Z"),
        ("2026-01-02T09:30:00Z", "2026-01-02T09:30:00Z"),
        ("2026-01-02T09:30+01:00", "2026-01-02T08:30:00Z"),
    ],
)
def test_a_time_is_local_as_times_are_printed_unless_it_states_its_zone(
    cli: Cli, script: Script, given: str, sent: str
) -> None:
    for asks in (("run", "logs", RUN), ("deployment", "traffic", DEPLOYMENT)):
        cli(*asks, "--since", given, "--until", given)
        asked = script.requests[-1]
        assert [asked.start_time.ToJsonString(), asked.end_time.ToJsonString()] == [sent, sent]


@pytest.mark.parametrize("given", ["yesterday", "2026-13-01", "09:30", "0001-01-01T00:00+14:00"])
def test_what_is_no_time_is_refused_with_examples(cli: Cli, given: str) -> None:
    assert "2027-01-31T14:30" in cli.fails("run", "logs", RUN, "--since", given, code=2)


def test_a_log_that_breaks_off_is_followed_from_where_it_was(cli: Cli) -> None:
    assert [line["text"] for line in cli.lines("run", "logs", RUN, "--follow")] == ["line 1", "line 2", "line 3"]
    cli.fails("run", "logs", RUN, "--follow", "--keyword", "x", code=2)


def test_a_model_is_evaluated_on_other_data_by_a_task_that_only_predicts(cli: Cli, script: Script) -> None:
    cli("evaluate", MODEL, "--dataset", VERSION)
    form = script.requests[-1].form
    assert (form.kind, form.model_id) == (task_pb2.TASK_KIND_PREDICT, MODEL)
    assert form.dataset_version_id == VERSION
    assert re.fullmatch(r"[\w-]{1,60}", form.display_name)


def test_an_evaluation_is_shown_at_a_threshold_and_drawn(cli: Cli, script: Script, tmp_path: Path) -> None:
    text = cli("evaluation", "show", TASK, "--threshold", "0.25", "--plot", str(tmp_path / "pr.png"))
    assert "0.810" in text
    assert "0.625" in text
    assert "0.456" in text
    assert script.requests[-1].threshold == 0.25
    assert Image.open(tmp_path / "pr.png").format == "PNG"


def test_a_confusion_matrix_is_a_table_and_a_picture(cli: Cli, tmp_path: Path) -> None:
    text = cli("evaluation", "confusion", EVALUATION, "--threshold", "0.25", "--plot", str(tmp_path / "matrix.png"))
    assert [line.split()[1::2] for line in text.splitlines() if "background" in line][-1] == [
        "background",
        "4",
        "0",
        "0",
    ]
    assert Image.open(tmp_path / "matrix.png").format == "PNG"
    assert cli.json("evaluation", "confusion", EVALUATION)["classNames"] == ["cup", "plate"]


def test_of_many_classes_a_table_shows_the_first_and_says_how_to_see_all(
    cli: Cli, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "MOST_COLUMNS", 1)
    monkeypatch.setattr(evaluation_options, "MOST_ROWS", 1)
    few, every = (cli("evaluation", "confusion", EVALUATION, *more) for more in ((), ("--all",)))
    assert ("plate" in few, "plate" in every) == (False, True)
    assert [line.split()[1::2] for line in few.splitlines() if "background" in line][-1] == ["background", "4", "0"]
    few, every = (
        cli("evaluation", "thresholds", EVALUATION, "--precision", "0.95", *more) for more in ((), ("--all",))
    )
    assert ("cup" in few, "cup" in every) == (False, True)


def test_recommended_thresholds_say_what_they_do_and_with_what_certainty(cli: Cli, script: Script) -> None:
    text = cli("evaluation", "thresholds", EVALUATION, "--precision", "0.95")
    assert script.requests[-1].precision == 0.95
    assert not script.requests[-1].HasField("recall")
    assert " 0.87365 " in text
    assert "0.600 - 0.980" in text
    assert "precision 0.95" in text


def test_a_classifier_that_gives_no_sure_answer_is_unsure_and_misses_nothing(
    cli: Cli, script: Script, tmp_path: Path
) -> None:
    script.classification = True
    file = tmp_path / "report.html"
    cli("evaluation", "report", EVALUATION, "--output", str(file))
    for text in (cli("evaluation", "bad-cases", EVALUATION), file.read_text()):
        assert "unsure of cup" in text
        assert "confused of plate" in text
        assert "miss of" not in text


def test_bad_cases_read_images_only_for_the_sheet(cli: Cli, script: Script, tmp_path: Path) -> None:
    assert "3 x miss of cup, false positive of plate" in cli("evaluation", "bad-cases", EVALUATION, "--kind", "miss")
    assert not script.requests[-1].include_images
    cli("evaluation", "bad-cases", EVALUATION, "--sheet", str(tmp_path / "sheet.png"))
    assert script.requests[-1].include_images
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


def test_bad_cases_are_exported_in_the_form_that_the_name_says(cli: Cli, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "cases.CSV"
    cli("evaluation", "bad-cases", EVALUATION, "--export", str(file), "--min-score", "0.4", "--kind", "confused")
    asked = script.requests[-1]
    assert file.read_text() == "image_id,file_name"
    assert (asked.format, asked.min_score) == (evaluation_pb2.EXPORT_FORMAT_CSV, 0.4)
    assert list(asked.kinds) == [evaluation_pb2.FAULT_KIND_CONFUSED]
    assert not asked.HasField("max_score")
    assert "must end in .csv or .json" in cli.fails("evaluation", "bad-cases", EVALUATION, "--export", "x.txt", code=2)


def test_suspected_labels_are_listed_with_what_was_found(cli: Cli) -> None:
    row = cli("evaluation", "suspects", EVALUATION).splitlines()[-2]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["0.750", "wrong class", "b.jpg", "cup", "plate 0.80"]


def test_two_evaluations_are_compared_by_class_and_by_image(cli: Cli, script: Script) -> None:
    text = cli("evaluation", "compare", TASK, EVALUATION, "--change", "better", "--threshold", "0.4")
    asked = script.requests[-1]
    assert (asked.evaluation_id, asked.base_evaluation_id) == (EVALUATION, EVALUATION)
    assert (asked.change, asked.threshold) == (evaluation_pb2.CHANGE_BETTER, 0.4)
    assert "2 better, 1 worse, 7 the same" in text
    assert "0.875" in text
    assert cli.json("evaluation", "compare", TASK, EVALUATION)["images"][0]["fileName"] == "a.jpg"


def test_scores_are_counted_and_drawn(cli: Cli, tmp_path: Path) -> None:
    text = cli("evaluation", "scores", EVALUATION, "--class", "cup", "--plot", str(tmp_path / "scores.png"))
    assert "333" in text
    assert Image.open(tmp_path / "scores.png").format == "PNG"
    assert "no class fork" in cli.fails("evaluation", "scores", EVALUATION, "--class", "fork")


def test_test_images_are_read_only_for_the_sheet(cli: Cli, script: Script, tmp_path: Path) -> None:
    assert "2 cup, 1 plate" in cli("evaluation", "images", EVALUATION, "--class", "cup")
    assert (script.requests[-1].include_images, script.requests[-1].class_name) == (False, "cup")
    cli("evaluation", "images", EVALUATION, "--sheet", str(tmp_path / "sheet.png"))
    assert script.requests[-1].include_images
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


def test_a_report_is_one_page_that_fetches_and_runs_nothing(cli: Cli, script: Script, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    cli("evaluation", "report", TASK, "--output", str(file), "--threshold", "0.25")
    assert not any(getattr(request, "include_images", False) for request in script.requests)
    text = file.read_text()
    without_pictures = re.sub(r"data:[^\"]*", "", text)
    assert "0.810" in without_pictures
    assert "0.456" in without_pictures
    assert "miss of cup" in without_pictures
    assert "wrong class" in without_pictures
    assert without_pictures.count("<img") == 3
    assert not re.search(r"<script|https?:|<link|@import", without_pictures)
    assert html.escape(HOSTILE) in without_pictures
    assert HOSTILE not in text
    ElementTree.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>|<img[^>]*>", "", text))
    cli("evaluation", "report", TASK, "--output", str(file), "--images", "1")
    assert any(getattr(request, "include_images", False) for request in script.requests)
    assert "data:image/png" in file.read_text()


def test_a_report_without_recommendations_says_why(cli: Cli, script: Script, tmp_path: Path) -> None:
    script.validation_kept = False
    cli("evaluation", "report", EVALUATION, "--output", str(tmp_path / "report.html"))
    assert "There are none &amp; so on." in (tmp_path / "report.html").read_text()


def test_reads_of_both_services_are_listed_by_day(cli: Cli) -> None:
    told = json.loads(cli("--json", "dataset", "reads"))
    assert [(entry["day"], entry["for"]) for entry in told] == [
        ("2026-11-29", "dataset"),
        ("2026-11-28", "evaluation"),
        ("2026-11-27", "dataset"),
    ]


def test_a_model_is_deleted_by_its_id_or_its_tasks(cli: Cli, script: Script) -> None:
    for identifier in (MODEL, TASK):
        cli("model", "delete", identifier)
        assert script.requests[-1] == training_pb2.DeleteModelRequest(model_id=MODEL)


def test_a_model_is_downloaded_and_checked(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "model"
    cli("model", "download", TASK, "model.onnx", "--output", str(target))
    assert (target / "model.onnx").read_bytes() == ONNX
    assert "checksum" in cli.fails("model", "download", MODEL, "bad.txt", "--output", str(target))
    assert [file.name for file in target.iterdir()] == ["model.onnx"]
    assert "it has model.onnx" in cli.fails("model", "download", MODEL, "other", "--output", str(target))


def test_a_deployment_is_made_waited_for_and_stopped(cli: Cli, script: Script) -> None:
    text = cli("deploy", TASK, "--threshold", "cup=0.6", "--max-duration", "2h", "--wait")
    request = script.requests[-1]
    assert (request.model_id, request.display_name, request.max_duration.seconds) == (MODEL, "cups", 7200)
    assert request.thresholds[0] == publishing_pb2.ClassThreshold(class_name="cup", threshold=0.6)
    assert "active" in text
    assert "stopped" in cli("deployment", "stop", DEPLOYMENT, "--wait")
    assert "Deleted cups." in cli("deployment", "delete", DEPLOYMENT)
    assert cli.json("deployment", "delete", DEPLOYMENT)["deploymentId"] == DEPLOYMENT
    assert script.requests[-1].deployment_id == DEPLOYMENT
    cli.fails("deploy", TASK, "--threshold", "cup", code=2)


def test_predictions_are_filtered_and_drawn(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photograph())
    image, target = str(tmp_path / "a.jpg"), tmp_path / "drawn"
    default = cli("predict", DEPLOYMENT, image, "--output", str(target))
    assert "cup" in default
    assert "plate" not in default
    assert Image.open(target / "a.png").width == 64
    assert "plate" in cli("predict", DEPLOYMENT, image, "--threshold", "0.1")
    nothing = cli("predict", DEPLOYMENT, image, "--threshold", "0.9", "--output", str(target))
    assert "the highest score below it is 0.70" in nothing
    (found,) = cli.lines("predict", DEPLOYMENT, image)
    assert len(found["detections"]) == 2


def test_a_folder_of_images_is_predicted_in_order_and_one_that_is_none_is_named(
    cli: Cli, script: Script, tmp_path: Path
) -> None:
    for name in ("b.JPG", "a.jpg", "c.png"):
        (tmp_path / name).write_bytes(photograph())
    (tmp_path / "notes.txt").write_text("no image")
    found = cli.lines("predict", DEPLOYMENT, str(tmp_path))
    assert [Path(line["image"]).name for line in found] == ["a.jpg", "b.JPG", "c.png"]
    assert script.predicted == 3
    (tmp_path / "b.JPG").write_bytes(b"")
    result = cli.result("predict", DEPLOYMENT, str(tmp_path))
    assert result.exit_code == 1
    assert "b.JPG: It is no image. (IMAGE_UNREADABLE)" in result.stdout
    assert "1 of 3 images have no answer" in result.stderr
    (tmp_path / "empty").mkdir()
    assert "No image lies in" in cli.fails("predict", DEPLOYMENT, str(tmp_path / "empty"))


def test_a_version_is_proposed_split_decided_about_and_rolled_back(cli: Cli, script: Script) -> None:
    assert "loading" in cli("update", DEPLOYMENT, TASK, "--percent", "20", "--threshold", "cup=0.6")
    request = script.requests[-1]
    assert (request.model_id, request.percent, request.thresholds[0].threshold) == (MODEL, 20, 0.6)
    # What GetDeployment answers then has no candidate, and another version serves.
    assert "Version 2 was rejected" in cli.fails("update", DEPLOYMENT, "--wait")
    assert script.requests[-1].model_id == ""
    assert "with 40 % of the traffic" in cli("split", DEPLOYMENT, "40")
    assert cli.json("split", DEPLOYMENT, "--promote")["versionNumber"] == 2
    assert cli.json("split", DEPLOYMENT, "--abandon")["versionNumber"] == 1
    cli.fails("split", DEPLOYMENT, "40", "--promote")
    assert cli.json("rollback", DEPLOYMENT, "3")["versionNumber"] == 3
    assert "no such graph" in cli("deployment", "records", DEPLOYMENT)
    assert "passed: 39 of 40 boxes on 9 images" in cli("deployment", "versions", DEPLOYMENT)
    assert "stopped" in cli("stop", DEPLOYMENT)


def test_a_versions_gate_shows_its_runtime_and_the_images_that_differ(cli: Cli, script: Script) -> None:
    shown = cli("deployment", "gate", DEPLOYMENT)
    assert "openvino_bf16 7.2 ms" in shown
    assert "77" in shown
    assert "1.25" in shown
    assert cli.json("deployment", "gate", DEPLOYMENT, "2")["images"][0]["boxPx"] == 1.25
    assert "has not been replayed" in cli.fails("deployment", "gate", DEPLOYMENT, "1")
    assert "has not been replayed" in cli.fails("deployment", "gate", DEPLOYMENT, "3")


def test_a_deployments_instances_traffic_log_and_events_are_listed(cli: Cli, script: Script) -> None:
    assert "images were refused: 3" in cli("deployment", "logs", DEPLOYMENT)
    listed = cli("deployment", "instances", DEPLOYMENT)
    assert all(word in listed for word in ("second", "lost", "its process is gone"))
    assert "12.3" in cli("deployment", "traffic", DEPLOYMENT, "--since", "2026-01-01T00:00Z")
    asked = script.requests[-1]
    assert asked.start_time.ToJsonString() == "2026-01-01T00:00:00Z"
    assert not asked.HasField("end_time")
    assert cli.json("deployment", "traffic", DEPLOYMENT)[0]["requests"] == "30"
    assert "no answer" in cli("deployment", "events", DEPLOYMENT)


def test_a_triton_is_registered_drained_and_resumed(cli: Cli, script: Script) -> None:
    server = ("--address", "gpu-2:8001", "--repository", "/models", "--region", "eu", "--spec", "gpu-1")
    assert "second" in cli(
        "triton", "register", "second", *server, "--room", "4", "--threads", "2", "--copies", "3", "--gpu"
    )
    assert script.requests[-1] == publishing_pb2.RegisterTritonRequest(
        triton_id="second",
        address="gpu-2:8001",
        repository="/models",
        region_id="eu",
        spec_id="gpu-1",
        room=4,
        threads=2,
        copies=3,
        gpu=True,
    )
    cli.fails("triton", "register", "second", *server, "--room", "0", "--threads", "2", code=2)
    assert cli.json("triton", "drain", "second")["draining"] is True
    assert cli.json("triton", "resume", "second")["draining"] is False
    assert "second" in cli("triton", "list")


def test_the_confidence_is_moved_without_asking_again(cli: Cli, script: Script, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photograph())
    result = cli.result("test", DEPLOYMENT, str(tmp_path / "a.jpg"), stdin="0.1\n2\n0.9\n\n0.2\n")
    assert result.exit_code == 0, result.output
    own, low, high = result.stdout.partition("plate")[0], result.stdout, result.stdout.rpartition("plate")[2]
    assert "cup" in own
    assert low.count("plate") == 1
    assert "the highest score below it is 0.70" in high
    assert "2 is no confidence" in result.stderr
    assert script.predicted == 1
    assert Image.open(tmp_path / "a-boxes.png").width == 64


def test_a_topic_has_its_verbs_whatever_was_imported_before() -> None:
    """A process of its own: one that imported another topic may have added verbs to this."""
    program = (
        "from saucer.cli.main import main, TOPICS\n"
        "import sys\n"
        "print(*sorted(getattr(main.get_command(None, sys.argv[1]), 'commands', {})))"
    )

    def verbs(before: str) -> str:
        command = [sys.executable, "-c", before + program, "deployment"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    alone = verbs("")
    assert "versions" in alone
    assert alone == verbs("import saucer.cli.versions, saucer.cli.testing\n")


def test_the_help_names_every_verb_of_a_topic_and_no_other() -> None:
    context = click.Context(main)
    said, registered = {}, {}
    for topic, (_, text) in TOPICS.items():
        command = main.get_command(context, topic)
        if isinstance(command, click.Group):
            verbs = text.partition(": ")[2].removesuffix(".")
            said[topic] = sorted(verbs.split(", "))
            registered[topic] = sorted(name for name, verb in command.commands.items() if not verb.hidden)
    assert said == registered


def test_every_verb_has_help_and_starts_without_drawing(cli: Cli) -> None:
    for topic in TOPICS:
        assert cli.result(topic, "--help").exit_code == 0, topic
