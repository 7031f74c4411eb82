"""Starts for the training service: the event that queues one, data in an object store, and a scripted worker."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib.auth import Role
from saucer.lib.clock import to_duration
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.errors import DomainError
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import derived_id, new_id
from saucer.lib.objects import Objects, sha256_of
from saucer.task.v1 import events_pb2 as task_events
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2, worker_pb2, worker_pb2_grpc
from tests.support.events import event
from tests.support.services import Metadata, Tokens
from tests.support.shapes import CLASSES, ShapesData

REGION, SPEC = "local", "cpu-2"
FILES = ("model.onnx", "model.json", "weights.pth", "report.json")


@dataclass(frozen=True)
class Start:
    """One start of a task, as the task service tells of it."""

    account_id: str = field(default_factory=new_id)
    task_id: str = field(default_factory=new_id)
    start_number: int = 1
    resume: bool = False
    manifest_key: str = "system/x/manifest.json"
    manifest_sha256: str = "0" * 64
    image_prefix: str = "system/x/images"
    input_size: int = 128
    epochs: int = 2
    batch_size: int = 8
    expected_accuracy: float | None = None
    max_duration_ms: int = 3_600_000
    region_id: str = REGION
    spec_id: str = SPEC
    count: int = 1
    starting_point: str = "imagenet-lite0"
    weights_key: str = ""

    @property
    def hold_id(self) -> str:
        return f"{self.task_id}-{self.start_number}"

    @property
    def run_id(self) -> str:
        return derived_id("run", self.hold_id)

    @property
    def output_prefix(self) -> str:
        return f"accounts/{self.account_id}/outputs"

    def _task(self) -> task_pb2.Task:
        config = training_pb2.TrainingConfig(
            scene="object-detection",
            classes=CLASSES,
            manifest_key=self.manifest_key,
            manifest_sha256=self.manifest_sha256,
            image_prefix=self.image_prefix,
            input_size=self.input_size,
            epochs=self.epochs,
            lr=2e-3,
            batch_size=self.batch_size,
            warmup=5,
            seed=1,
            expected_accuracy=self.expected_accuracy,
            max_duration=to_duration(self.max_duration_ms),
            starting_point=self.starting_point,
            weights_key=self.weights_key,
            output_prefix=self.output_prefix,
            resume=self.resume,
        )
        return task_pb2.Task(
            task_id=self.task_id,
            account_id=self.account_id,
            form=task_pb2.TaskForm(
                display_name="shapes",
                dataset_version_id=derived_id("version", self.task_id),
                region_id=self.region_id,
                spec_id=self.spec_id,
                count=self.count,
            ),
            config=config,
            start_number=self.start_number,
            hold_id=self.hold_id,
        )

    def queued(self) -> CloudEvent:
        message = task_events.TaskQueued(task=self._task())
        return event(message, "task", self.account_id, self.task_id, self.task_id)

    def stop_requested(self) -> CloudEvent:
        message = task_events.TaskStopRequested(task=self._task())
        return event(message, "task", self.account_id, self.task_id, self.task_id)

    def stop_ordered(self, at_charged_ms: int = 0) -> CloudEvent:
        hold = billing_pb2.Hold(hold_id=self.hold_id, work_kind=billing_pb2.WORK_KIND_TASK, work_id=self.task_id)
        message = billing_events.StopOrdered(
            hold=hold, reason=billing_events.STOP_REASON_ARREARS, stop_at_charged_ms=at_charged_ms
        )
        return event(message, "billing", self.account_id, self.task_id, self.hold_id)


async def store_shapes(objects: Objects, data: ShapesData) -> Start:
    """Puts a data set of a new account where the dataset service would; a start that trains on it."""
    start = Start()
    prefix = f"system/{start.account_id}/images"
    images: list[dict[str, object]] = []
    boxes: list[dict[str, object]] = []
    for split in ("train", "validation", "test"):
        coco = json.loads(getattr(data, split).read_text())
        number_of = {}
        for image in coco["images"]:
            content = (data.images / image["file_name"]).read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            await objects.put(f"{prefix}/{sha256}", content)
            number_of[image["id"]] = len(images) + 1
            images.append(image | {"id": len(images) + 1, "file_name": sha256, "split": split})
        for box in coco["annotations"]:
            boxes.append(box | {"id": len(boxes) + 1, "image_id": number_of[box["image_id"]]})
        categories = coco["categories"]
    manifest = json.dumps({"categories": categories, "images": images, "annotations": boxes}).encode()
    key = f"system/{start.account_id}/datasets/{new_id()}/manifest.json"
    sha256 = await objects.put(key, manifest)
    return replace(start, manifest_key=key, manifest_sha256=sha256, image_prefix=prefix)


@dataclass
class ScriptedWorker:
    """Calls WorkerService as a worker does, one step at a time."""

    stub: worker_pb2_grpc.WorkerServiceAsyncStub
    metadata: Metadata
    name: str = "scripted"
    lease: worker_pb2.Lease = field(default_factory=worker_pb2.Lease)
    sequence: int = 0

    @classmethod
    def of(cls, channel: grpc.aio.Channel, tokens: Tokens, name: str = "scripted") -> ScriptedWorker:
        return cls(worker_pb2_grpc.WorkerServiceStub(channel), tokens.metadata(Role.WORKER), name)

    async def take(self, *, wait_s: int = 10, request_id: str | None = None, spec_id: str = SPEC) -> bool:
        request = worker_pb2.LeaseRunRequest(
            request_id=request_id or new_id(),
            worker_id=self.name,
            region_id=REGION,
            spec_id=spec_id,
            wait=Duration(seconds=wait_s),
        )
        response = await self.stub.LeaseRun(request, metadata=self.metadata)
        self.lease, self.sequence = response.lease, 0
        return response.HasField("lease")

    async def beat(
        self,
        stage: training_pb2.RunStage.ValueType = training_pb2.RUN_STAGE_TRAINING,
        *,
        iteration: int = 0,
        sequence: int | None = None,
        metrics: Sequence[worker_pb2.MetricReport] = (),
        log: Sequence[worker_pb2.LogReport] = (),
        checkpoint: worker_pb2.CheckpointReport | None = None,
        elapsed_ms: int = 0,
        iterations: int = 100,
        epoch: float = 0.0,
        validated: float = 0.0,
    ) -> worker_pb2.HeartbeatResponse:
        self.sequence = sequence or self.sequence + 1
        request = worker_pb2.HeartbeatRequest(
            run_id=self.lease.run.run_id,
            token=self.lease.token,
            sequence=self.sequence,
            stage=stage,
            iteration=iteration,
            iterations=iterations,
            epoch=epoch,
            validated=validated,
            elapsed=to_duration(elapsed_ms),
            metrics=metrics,
            log=log,
            checkpoint=checkpoint,
        )
        return await self.stub.Heartbeat(request, metadata=self.metadata)

    def checkpoint(self, iteration: int, elapsed_ms: int = 0) -> worker_pb2.CheckpointReport:
        return worker_pb2.CheckpointReport(
            key=f"{self.lease.artifact_prefix}/checkpoints/checkpoint_{iteration}.pth",
            sha256="a" * 64,
            size_bytes=10,
            iteration=iteration,
            elapsed=to_duration(elapsed_ms),
        )

    async def put_files(self, objects: Objects, names: Sequence[str] = FILES) -> list[training_pb2.ModelFile]:
        files = []
        for name in names:
            content = f"{name} of {self.lease.run.run_id}".encode()
            key = f"{self.lease.artifact_prefix}/{name}"
            await objects.put(key, content)
            files.append(training_pb2.ModelFile(name=name, key=key, size_bytes=len(content), sha256=sha256_of(content)))
        return files

    async def finish(
        self,
        reason: training_pb2.EndReason.ValueType = training_pb2.END_REASON_COMPLETED,
        files: Sequence[training_pb2.ModelFile] = (),
        *,
        request_id: str | None = None,
        error_message: str = "",
        user_error: bool = False,
        released: bool = False,
        best_map_50: float | None = None,
    ) -> training_pb2.Run:
        request = worker_pb2.FinishRunRequest(
            request_id=request_id or new_id(),
            run_id=self.lease.run.run_id,
            token=self.lease.token,
            reason=reason,
            error_message=error_message,
            user_error=user_error,
            released=released,
            files=files,
            best_map_50=best_map_50,
        )
        return (await self.stub.FinishRun(request, metadata=self.metadata)).run


async def refusal(call: object) -> DomainError:
    """The typed error that a call ends with."""
    try:
        await call  # type: ignore[misc]  # any awaitable
    except grpc.aio.AioRpcError as error:
        return from_rpc(error)
    raise AssertionError("It was not refused.")


def object_store(folder: Path) -> tuple[str, Objects]:
    """A store below a folder: its URL, and itself."""
    url = f"file://{folder / 'objects'}"
    return url, Objects(url)
