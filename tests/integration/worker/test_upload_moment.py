"""Killed in the middle of a checkpoint's upload, a run goes on from the checkpoint before, to the same bits."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from nats.js import JetStreamContext

from saucer.lib.auth import Role
from saucer.lib.grpc_client import TokenFile
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2, training_pb2_grpc, worker_pb2_grpc
from saucer.worker.attempt import Attempt
from saucer.worker.child_process import ChildProcess
from saucer.worker.transfer import ImageCache
from tests.support.events import publish
from tests.support.services import Running, ServiceRunner, Tokens
from tests.support.shapes import write_shapes
from tests.support.training import ScriptedWorker, Start, object_store, store_shapes

# A checkpoint comes before the first validation, and then every 40 iterations; the upload of the last does not end.
FIRST, SECOND = 52, 92
# A kill loses no more, in the midst of an upload either.
LOST_ITERATIONS = 50
EPOCH_ITERATIONS, EPOCHS = 12, 8

pytestmark = pytest.mark.timeout(400)


class HeldUpload(Objects):
    """A store that has taken half of the SECOND checkpoint, and takes no more of it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.held = asyncio.Event()

    async def put(self, key: str, data: bytes | Path) -> str:
        if f"/checkpoint_{SECOND}_" not in key:
            return await super().put(key, data)
        assert isinstance(data, Path)
        content = await asyncio.to_thread(data.read_bytes)
        await super().put(key, content[: len(content) // 2])
        self.held.set()
        await asyncio.Event().wait()
        raise AssertionError


@dataclass
class Bench:
    running: Running
    tokens: Tokens
    objects: Objects
    folder: Path
    jetstream: JetStreamContext
    children: list[ChildProcess] = field(default_factory=list)

    async def child(self, processes: int) -> ChildProcess:
        if not self.children or not self.children[-1].alive:
            self.children.append(await ChildProcess.start(self.folder / "child.log"))
        return self.children[-1]

    async def attempt(self, start: Start, objects: Objects) -> Attempt:
        worker = ScriptedWorker.of(self.running.channel, self.tokens)
        assert await worker.take(wait_s=30)
        assert worker.lease.run.run_id == start.run_id
        workdir = self.folder / f"{start.run_id}-{worker.lease.run.attempt}"
        workdir.mkdir()
        return Attempt(
            worker.lease,
            stub=worker_pb2_grpc.WorkerServiceStub(self.running.channel),
            token=TokenFile(self.tokens.file(Role.WORKER)),
            objects=objects,
            cache=ImageCache(self.folder / "images", objects, 10_000_000),
            workdir=workdir,
            child=self.child,
            threads=1,
            deterministic=True,
        )

    async def weights(self, start: Start) -> dict[str, torch.Tensor]:
        stub = training_pb2_grpc.TrainingServiceStub(self.running.channel)
        viewer = self.tokens.metadata(Role.VIEWER, start.account_id)
        run = await stub.GetRun(training_pb2.GetRunRequest(run_id=start.run_id), metadata=viewer)
        assert run.end_reason == training_pb2.END_REASON_COMPLETED
        model = await stub.GetModel(training_pb2.GetModelRequest(model_id=run.model_id), metadata=viewer)
        (key,) = (file.key for file in model.files if file.name == "weights.pth")
        file = self.folder / f"{run.run_id}.pth"
        await self.objects.download(key, file)
        weights: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["state_dict"]
        return weights


@pytest.fixture
async def bench(
    run_service: ServiceRunner, tokens: Tokens, tmp_path: Path, jetstream: JetStreamContext
) -> AsyncIterator[Bench]:
    url, objects = object_store(tmp_path)
    async with run_service("training", TrainingSettings, wire, object_store_url=url) as running:
        bench = Bench(running, tokens, objects, tmp_path, jetstream)
        yield bench
        for child in bench.children:
            await child.kill()


async def test_killed_during_the_upload_of_a_checkpoint_a_run_ends_with_the_same_weights(bench: Bench) -> None:
    data = write_shapes(bench.folder / "data", train=24, validation=6, test=2)
    stored = await store_shapes(bench.objects, data)
    start = replace(stored, epochs=EPOCHS, batch_size=24 // EPOCH_ITERATIONS, input_size=64)

    store = HeldUpload(bench.objects.url)
    await publish(bench.jetstream, start.queued())
    attempt = await bench.attempt(start, store)
    killed = asyncio.ensure_future(attempt.go())
    await store.held.wait()
    await bench.children[-1].kill()
    assert attempt._heart.vitals.iteration - FIRST <= LOST_ITERATIONS
    killed.cancel()  # nothing is told, as by a machine that is gone
    await asyncio.gather(killed, return_exceptions=True)

    resumed = await bench.attempt(start, bench.objects)
    assert f"/checkpoint_{FIRST}_" in resumed._lease.checkpoint_key
    assert await resumed.go() == "completed"

    whole = replace(start, task_id=new_id())
    await publish(bench.jetstream, whole.queued())
    assert await (await bench.attempt(whole, bench.objects)).go() == "completed"

    left, right = await bench.weights(start), await bench.weights(whole)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
