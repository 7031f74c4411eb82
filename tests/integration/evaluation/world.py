"""Evaluation as it runs, with models in its store, and what to ask it with."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
from nats.js import JetStreamContext

from saucer.evaluation.main import EvaluationSettings, wire
from saucer.evaluation.metrics import Counts
from saucer.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.auth import Role
from saucer.lib.cloudevent import from_json
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.serving.detections import Detections
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.evaluation.generated_model import GeneratedModel, generated_model
from tests.support.events import event, publish, read_events
from tests.support.services import Running, ServiceRunner, Tokens

CLASSES = ["cup", "plate"]
BOX = [10, 10, 40, 40]
# Several images, classes and faults of every kind.
SEED = 10
IMAGE = {"id": 1, "file_name": "a", "width": 10, "height": 10, "split": "test"}
CATEGORIES = [{"id": 0, "name": "cup"}]


@dataclass
class World:
    """A running evaluation service over a store, and what to ask it with."""

    stub: "evaluation_pb2_grpc.EvaluationServiceAsyncStub"  # of the stubs alone
    objects: Objects
    tokens: Tokens
    jetstream: JetStreamContext
    account_id: str

    async def model(self) -> training_pb2.Model:
        """A model whose detections lie in the store: on image 2 a cup is found well, on image 3 a plate as a cup."""
        model_id = new_id()
        manifest = {
            "images": [
                {"id": 1, "file_name": "a" * 64, "width": 100, "height": 80, "split": "validation"},
                {"id": 2, "file_name": "b" * 64, "width": 100, "height": 80, "split": "test"},
                {"id": 3, "file_name": "c" * 64, "width": 100, "height": 80, "split": "test"},
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 0, "bbox": BOX, "area": 1600, "iscrowd": 0},
                {"id": 2, "image_id": 2, "category_id": 0, "bbox": BOX, "area": 1600, "iscrowd": 0},
                {"id": 3, "image_id": 3, "category_id": 1, "bbox": BOX, "area": 1600, "iscrowd": 0},
            ],
            "categories": [{"id": 0, "name": "cup"}, {"id": 1, "name": "plate"}],
        }
        files = {
            "manifest.json": json.dumps(manifest).encode(),
            "detections_test.npz": detections([2, 3], [2, 3], [0.9, 0.6]).to_bytes(),
            "detections_validation.npz": detections([1], [1], [0.7]).to_bytes(),
        }
        prefix = f"system/{self.account_id}/{model_id}"
        sums = {name: await self.objects.put(f"{prefix}/{name}", data) for name, data in files.items()}
        for image in "abc":
            await self.objects.put(f"system/{self.account_id}/images/{image * 64}", image.encode())
        return training_pb2.Model(
            model_id=model_id,
            account_id=self.account_id,
            task_id=new_id(),
            run_id=new_id(),
            classes=CLASSES,
            dataset_version_id=new_id(),
            manifest_key=f"{prefix}/manifest.json",
            manifest_sha256=sums["manifest.json"],
            image_prefix=f"system/{self.account_id}/images",
            files=[
                training_pb2.ModelFile(name=name, key=f"{prefix}/{name}", sha256=sums[name])
                for name in ("detections_test.npz", "detections_validation.npz")
            ],
        )

    async def tell(self, model: training_pb2.Model) -> None:
        run = training_pb2.Run(run_id=model.run_id, account_id=self.account_id, task_id=model.task_id)
        ended = training_events.RunEnded(run=run, model=model)
        await publish(self.jetstream, event(ended, "training", self.account_id, model.task_id, model.run_id))

    async def ended(self, model: training_pb2.Model) -> evaluation_pb2.Evaluation:
        subject = f"saucer.evaluation.v1.EvaluationEnded.{self.account_id}.{model.task_id}.>"
        (found,) = await read_events(self.jetstream, subject, count=1, timeout_s=120)
        return from_json(found.data, evaluation_events.EvaluationEnded()).evaluation

    @property
    def viewer(self) -> tuple[tuple[str, str], ...]:
        return self.tokens.metadata(Role.VIEWER, self.account_id)


def detections(images: list[int], rows: list[int], scores: list[float]) -> Detections:
    x, y, width, height = BOX
    return Detections(
        images=np.array(images, np.int64),
        image_id=np.array(rows, np.int64),
        box=np.array([[x, y, x + width, y + height]] * len(rows), np.float32),
        score=np.array(scores, np.float32),
        label=np.zeros(len(rows), np.int32),
    )


def a_world(running: Running, url: str, tokens: Tokens, jetstream: JetStreamContext) -> World:
    stub = evaluation_pb2_grpc.EvaluationServiceStub(running.channel)
    return World(stub, Objects(url), tokens, jetstream, new_id())


class Start:
    """Starts evaluation on a database and a store of the test's own."""

    def __init__(self, run: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, folder: Path) -> None:
        self._run, self._tokens, self._jetstream = run, tokens, jetstream
        self.store = folder / "objects"
        self.database_url = ""

    @asynccontextmanager
    async def __call__(self, **settings: Any) -> AsyncIterator[World]:
        url = f"file://{self.store}"
        self.database_url = self.database_url or await self._run.new_database()
        own = {"object_store_url": url, "database_url": self.database_url}
        async with self._run("evaluation", EvaluationSettings, wire, **(own | settings)) as running:
            yield a_world(running, url, self._tokens, self._jetstream)


async def scored(world: World, seed: int = SEED) -> tuple[GeneratedModel, evaluation_pb2.Evaluation]:
    model = await generated_model(world.objects, world.account_id, seed)
    await world.tell(model.message)
    told = await world.ended(model.message)
    assert told.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED, told.error_message
    return model, told


async def at(world: World, evaluation_id: str, threshold: float | None) -> evaluation_pb2.Evaluation:
    request = evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id, threshold=threshold)
    return await world.stub.GetEvaluation(request, metadata=world.viewer)


async def list_bad_cases(world: World, evaluation_id: str, **more: Any) -> evaluation_pb2.ListBadCasesResponse:
    request = evaluation_pb2.ListBadCasesRequest(evaluation_id=evaluation_id, **more)
    return await world.stub.ListBadCases(request, metadata=world.viewer)


def value(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None


def ratios(message: Any) -> tuple[float | None, ...]:
    return tuple(value(message, name) for name in ("precision", "recall", "f1"))


def ratios_of(counts: Counts) -> tuple[float | None, ...]:
    return counts.precision, counts.recall, counts.f1


async def image_reads(start: Start, account_id: str) -> tuple[int, int]:
    connection = await asyncpg.connect(start.database_url)
    try:
        row = await connection.fetchrow(
            "SELECT coalesce(sum(reads), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM image_read "
            "WHERE account_id = $1",
            account_id,
        )
    finally:
        await connection.close()
    assert row is not None
    return row[0], row[1]
