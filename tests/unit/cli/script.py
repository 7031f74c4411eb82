"""All services in one that answer as a script says, and the command line against them."""

# ruff: noqa: N802 - gRPC names methods as the protos do

import io
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from saucer.cli import connection, datasets, deployments
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from saucer.lib.errors import InvalidArgumentError
from saucer.lib.grpc_status import to_status
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
    evaluation_state: Any = evaluation_pb2.EVALUATION_STATE_SUCCEEDED
    classification: bool = False
    endless: bool = False
    fail_lists: bool = False
    predicted: int = 0
    candidate: int = 0
    # The request id of the update that made version 2, which is rejected since.
    made_version_2: str = "none"
    last_action: Any = publishing_pb2.UPDATE_ACTION_REJECTED
    state: Any = publishing_pb2.DEPLOYMENT_STATE_ACTIVE

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
        upload = self.upload()
        if request.HasField("chunks_from_bytes") and request.chunks_from_bytes < len(self.uploaded):
            # One in each answer.
            start = request.chunks_from_bytes
            chunk = self.uploaded[start : start + datasets.CHUNK_BYTES]
            upload.chunks.add(offset_bytes=start, size_bytes=len(chunk), sha256=sha256(chunk).hexdigest())
        return upload

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
        evaluation = evaluation_pb2.Evaluation(evaluation_id=EVALUATION, model_id=MODEL, state=self.evaluation_state)
        if self.evaluation_state != evaluation_pb2.EVALUATION_STATE_SUCCEEDED:
            evaluation.error_message = "no image is labelled"
            return evaluation
        evaluation.threshold = request.threshold if request.HasField("threshold") else 0.25
        evaluation.images, evaluation.map_50 = 10, 0.81
        evaluation.classification = self.classification
        evaluation.coco.map_75 = 0.625
        evaluation.map_weighted = 0.456
        evaluation.classes.add(class_name="cup", boxes=5, share=1.0, ap_50=0.81, true_positives=4, misses=1)
        return evaluation

    def fail_list(self, context: Any) -> None:
        if self.fail_lists:
            context.abort(grpc.StatusCode.UNAVAILABLE, "The store is away.")

    def ListEvaluations(self, request: Any, context: Any) -> Any:
        scoring = evaluation_pb2.Evaluation(evaluation_id=EVALUATION, state=evaluation_pb2.EVALUATION_STATE_SCORING)
        return evaluation_pb2.ListEvaluationsResponse(evaluations=[scoring])

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
        chosen.validation.precision, chosen.validation.recall = 0.917, 0.683
        response.recommendations.add(
            class_name="cup", goal=evaluation_pb2.THRESHOLD_GOAL_PRECISION, wanted=request.precision
        )
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
            side.threshold = request.threshold
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
        self.fail_list(context)
        image = evaluation_pb2.TestImage(
            file_name="a.jpg", width=64, height=48, image=photograph() if request.include_images else b""
        )
        for name in ("cup", "plate", "cup"):
            image.truth.add(x1=1, y1=1, x2=30, y2=30, class_name=name)
        if self.endless:
            return evaluation_pb2.ListTestImagesResponse(test_images=[image] * request.page_size, next_page_token="on")
        return evaluation_pb2.ListTestImagesResponse(test_images=[image], total_size=1)

    def ExportBadCases(self, request: Any, context: Any) -> Iterator[Any]:
        self.requests.append(request)
        for data in (b"image_id,", b"file_name"):
            yield evaluation_pb2.ExportedPiece(data=data)
            self.fail_list(context)

    def ListBadCases(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.fail_list(context)
        case = evaluation_pb2.BadCase(file_name="a.jpg", image=photograph() if request.include_images else b"")
        if self.classification:
            case.faults.add(kind=evaluation_pb2.FAULT_KIND_MISS, class_name="cup", detection=-1, truth=0)
            wrong = evaluation_pb2.BadCase(file_name="b.jpg")
            wrong.faults.add(kind=evaluation_pb2.FAULT_KIND_CONFUSED, class_name="plate")
            return evaluation_pb2.ListBadCasesResponse(bad_cases=[case, wrong], total_size=2)
        for _ in range(3):
            case.faults.add(kind=evaluation_pb2.FAULT_KIND_MISS, class_name="cup")
        case.faults.add(kind=evaluation_pb2.FAULT_KIND_FALSE_POSITIVE, class_name="plate")
        case.truth.add(x1=1, y1=1, x2=30, y2=30, class_name="cup")
        if self.endless:
            return evaluation_pb2.ListBadCasesResponse(bad_cases=[case] * request.page_size, next_page_token="on")
        return evaluation_pb2.ListBadCasesResponse(bad_cases=[case], total_size=3)

    def CreateDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Deployment(
            deployment_id=DEPLOYMENT, state=publishing_pb2.DEPLOYMENT_STATE_QUEUED, warnings=["It runs until stopped."]
        )

    def GetDeployment(self, request: Any, context: Any) -> Any:
        found = publishing_pb2.Deployment(
            deployment_id=DEPLOYMENT,
            state=self.state,
            version_number=1,
            classes=["cup", "plate"],
            thresholds=[publishing_pb2.ClassThreshold(class_name="cup", threshold=0.6)],
        )
        if self.candidate:
            found.candidate.version.number = self.candidate
            found.candidate.version.classes.extend(["plate", "cup"])
            found.candidate.version.thresholds.add(class_name="cup", threshold=0.5)
        return found

    def UpdateDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.request_id == self.made_version_2:
            return self.GetDeployment(request, context)
        candidate = publishing_pb2.Candidate(version=publishing_pb2.Version(number=2), percent=request.percent)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=1, candidate=candidate)

    def RollBackDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if request.version_number == 2:
            return self.GetDeployment(request, context)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=request.version_number)

    def SplitDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        candidate = publishing_pb2.Candidate(
            version=publishing_pb2.Version(number=2), percent=request.percent, ready=True
        )
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=1, candidate=candidate)

    def PromoteCandidate(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=2)

    def AbandonCandidate(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, version_number=1)

    def ListUpdateRecords(self, request: Any, context: Any) -> Any:
        record = publishing_pb2.UpdateRecord(
            number=2, action=self.last_action, author="saucer", to_version=2, detail="no such graph"
        )
        made = publishing_pb2.UpdateRecord(
            number=1,
            action=publishing_pb2.UPDATE_ACTION_UPDATED,
            author="ann",
            to_version=2,
            request_id=self.made_version_2,
        )
        return publishing_pb2.ListUpdateRecordsResponse(records=[record, made])

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

    def UnregisterTriton(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Triton(triton_id=request.triton_id, draining=True)

    def ListTritons(self, request: Any, context: Any) -> Any:
        return publishing_pb2.ListTritonsResponse(tritons=[publishing_pb2.Triton(triton_id="second", room=8)])

    def StopDeployment(self, request: Any, context: Any) -> Any:
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, state=publishing_pb2.DEPLOYMENT_STATE_STOPPED)

    def DeleteDeployment(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return publishing_pb2.Deployment(deployment_id=DEPLOYMENT, display_name="cups")

    def Predict(self, request: Any, context: Any) -> Any:
        self.predicted += 1
        found = publishing_pb2.PredictResponse(width=64, height=48, highest_score=0.7, version_number=1)
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
