"""Checkpoints on their way to the object store, against the real training service."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from saucer.lib.auth import Role
from saucer.lib.errors import UnavailableError
from saucer.lib.grpc_client import TokenFile, channel
from saucer.lib.objects import Objects
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2, worker_pb2_grpc
from saucer.worker.heart import Heart
from saucer.worker.job import Checkpoint
from saucer.worker.uploads import Checkpoints
from tests.support.events import publish, until
from tests.support.services import ServiceRunner, Tokens
from tests.support.training import ScriptedWorker, Start, object_store

ITERATION = 40


class Store(Objects):
    """That holds uploads back while `open` is not set, and refuses the next `refused`; `put_keys` are those that are
    whole."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.open = asyncio.Event()
        self.open.set()
        self.refused = 0
        self.put_keys: list[str] = []

    async def put(self, key: str, data: bytes | Path) -> str:
        await self.open.wait()
        if self.refused:
            self.refused -= 1
            raise UnavailableError("STORE_UNAVAILABLE", "The object store took nothing.")
        sha256 = await super().put(key, data)
        self.put_keys.append(key)
        return sha256


@dataclass
class Bench:
    """One attempt that has begun; its heart beats while `beating` runs."""

    worker: ScriptedWorker
    store: Store
    checkpoints: Checkpoints
    folder: Path
    beating: asyncio.Future[None]

    def offer(self, content: bytes, iteration: int = ITERATION) -> None:
        """As the child saves: aside, and renamed over what was there."""
        file, aside = self.folder / f"checkpoint_{iteration}.pth", self.folder / "aside"
        aside.write_bytes(content)
        aside.replace(file)
        self.checkpoints.offer(Checkpoint(str(file), iteration, iteration * 100))

    async def known(self) -> bytes:
        """What the next attempt resumes from."""
        await self.worker.finish(training_pb2.END_REASON_FAILED, released=True)
        assert await self.worker.take()
        file = self.folder / "resume.pth"
        lease = self.worker.lease
        await self.store.download(lease.checkpoint_key, file, sha256=lease.checkpoint_sha256)
        return file.read_bytes()


@pytest.fixture
async def bench(
    run_service: ServiceRunner, tokens: Tokens, tmp_path: Path, jetstream: JetStreamContext
) -> AsyncIterator[Bench]:
    url, _ = object_store(tmp_path)
    store = Store(url)
    async with run_service("training", TrainingSettings, wire, object_store_url=url) as running:
        worker = ScriptedWorker.of(running.channel, tokens)
        await publish(jetstream, Start().queued())
        assert await worker.take()
        async with channel(running.address) as own:
            heart = Heart(worker_pb2_grpc.WorkerServiceStub(own), TokenFile(tokens.file(Role.WORKER)), worker.lease)
            checkpoints = Checkpoints(worker.lease.artifact_prefix, store, tmp_path / "outgoing", heart)
            beating = asyncio.ensure_future(heart.beat())
            uploading = asyncio.ensure_future(checkpoints.run())
            await heart.accepted.wait()
            yield Bench(worker, store, checkpoints, tmp_path, beating)
            for task in (beating, uploading):
                task.cancel()
            await asyncio.gather(beating, uploading, return_exceptions=True)


async def test_lost_between_a_second_upload_at_one_iteration_and_its_report_a_run_resumes_from_the_first(
    bench: Bench,
) -> None:
    bench.offer(b"before the validation")
    await bench.checkpoints.drain()
    bench.beating.cancel()  # training is out of reach
    bench.offer(b"after it")

    async def twice() -> bool:
        return len(bench.store.put_keys) == 2

    await until(twice)
    assert await bench.known() == b"before the validation"


async def test_a_checkpoint_that_replaces_one_whose_upload_is_under_way_is_kept(bench: Bench) -> None:
    bench.store.open.clear()
    bench.offer(b"before the validation")
    await asyncio.sleep(0.1)
    bench.offer(b"after it")
    bench.store.open.set()
    await bench.checkpoints.drain()
    (key,) = await bench.store.keys(f"{bench.worker.lease.artifact_prefix}/checkpoints")
    assert bench.store.put_keys[-1] == key, "the first was removed"
    assert await bench.known() == b"after it"


async def test_a_checkpoint_is_called_kept_once_the_service_knows_it(bench: Bench) -> None:
    bench.store.open.clear()
    bench.offer(b"weights")
    await asyncio.sleep(0.1)
    assert bench.checkpoints.kept.empty()
    bench.store.open.set()
    assert await asyncio.wait_for(bench.checkpoints.kept.get(), 10) == ITERATION
    assert await bench.known() == b"weights"


async def test_an_upload_that_is_refused_is_tried_again_until_a_newer_checkpoint_comes(bench: Bench) -> None:
    bench.store.refused = 1
    bench.offer(b"first")
    assert await asyncio.wait_for(bench.checkpoints.kept.get(), 10) == ITERATION
    bench.store.refused = 1
    bench.offer(b"second", ITERATION + 1)
    await bench.checkpoints.drain()
    bench.offer(b"third", ITERATION + 2)
    assert await asyncio.wait_for(bench.checkpoints.kept.get(), 10) == ITERATION + 2
    await bench.checkpoints.drain()
    assert not list((bench.folder / "outgoing").iterdir())
    assert await bench.known() == b"third"
