"""The worker's heartbeat against the real training service."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.lib.auth import Role
from saucer.lib.grpc_client import TokenFile, channel
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2, training_pb2_grpc, worker_pb2_grpc
from saucer.worker.heart import Heart, LeaseLostError
from saucer.worker.transfer import Uploaded
from tests.support.events import publish, until
from tests.support.services import Running, ServiceRunner, Tokens
from tests.support.training import ScriptedWorker, Start, object_store


@dataclass
class Bench:
    running: Running
    tokens: Tokens
    start: Start
    worker: ScriptedWorker
    channel: grpc.aio.Channel

    def heart(self) -> Heart:
        stub = worker_pb2_grpc.WorkerServiceStub(self.channel)
        return Heart(stub, TokenFile(self.tokens.file(Role.WORKER)), self.worker.lease)


@pytest.fixture
async def bench(
    run_service: ServiceRunner, tokens: Tokens, tmp_path: Path, jetstream: JetStreamContext
) -> AsyncIterator[Bench]:
    url, _ = object_store(tmp_path)
    async with run_service("training", TrainingSettings, wire, object_store_url=url) as running:
        start = Start()
        worker = ScriptedWorker.of(running.channel, tokens)
        await publish(jetstream, start.queued())
        assert await worker.take()
        async with channel(running.address) as own:
            yield Bench(running, tokens, start, worker, own)


async def test_everything_that_waits_is_sent_in_order(bench: Bench) -> None:
    heart = bench.heart()
    for iteration in range(450):
        heart.metric(iteration, iteration / 10, {"loss": 1.0})
    beating = asyncio.ensure_future(heart.beat())
    stub = training_pb2_grpc.TrainingServiceStub(bench.running.channel)
    request = training_pb2.ListMetricsRequest(run_id=bench.start.run_id, page_size=5000)
    viewer = bench.tokens.metadata(Role.VIEWER, bench.start.account_id)

    async def arrived() -> list[int] | None:
        points = (await stub.ListMetrics(request, metadata=viewer)).points
        return [point.iteration for point in points] if len(points) == 450 else None

    assert await until(arrived) == list(range(450))
    beating.cancel()


async def test_a_worker_that_cannot_reach_training_halts_before_its_lease_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saucer.worker.heart.HALT_MARGIN_S", 3.0)
    bench.worker.lease.lease_length.FromMilliseconds(6_000)
    heart = bench.heart()
    beating = asyncio.ensure_future(heart.beat())
    await heart.accepted.wait()
    await bench.channel.close()
    out_of_reach_s = time.monotonic()
    bench.channel = channel("127.0.0.1:1")
    heart._stub = worker_pb2_grpc.WorkerServiceStub(bench.channel)
    with pytest.raises(LeaseLostError, match="out of reach"):
        await asyncio.wait_for(beating, 10)
    assert time.monotonic() - out_of_reach_s < 6.0


async def test_a_worker_whose_run_is_anothers_halts_at_its_next_heartbeat(bench: Bench) -> None:
    heart = bench.heart()
    beating = asyncio.ensure_future(heart.beat())
    await heart.accepted.wait()
    await bench.worker.finish(training_pb2.END_REASON_FAILED, released=True)
    with pytest.raises(LeaseLostError, match="another attempt's"):
        await asyncio.wait_for(beating, 30)


async def test_a_stop_is_seen_and_a_checkpoint_is_known_once_it_was_accepted(
    bench: Bench, jetstream: JetStreamContext
) -> None:
    heart = bench.heart()
    beating = asyncio.ensure_future(heart.beat())
    key = f"{bench.worker.lease.artifact_prefix}/checkpoints/c.pth"
    await asyncio.wait_for(heart.checkpoint(Uploaded("c.pth", key, 1, "0" * 64), 7, 700), 10)
    await publish(jetstream, bench.start.stop_requested())
    await asyncio.wait_for(heart.stopped.wait(), 10)
    assert heart.stop_reason == training_pb2.END_REASON_STOPPED_BY_USER
    beating.cancel()
    await bench.worker.finish(training_pb2.END_REASON_FAILED, released=True)
    assert await bench.worker.take()
    assert (bench.worker.lease.checkpoint_key, bench.worker.lease.finish_only) == (key, True)


async def test_the_time_left_runs_down_between_what_the_child_tells(bench: Bench) -> None:
    heart = bench.heart()
    heart.vitals.trained_by_s = time.monotonic() + 1_000
    first = heart._request().time_left.ToMilliseconds()
    await asyncio.sleep(0.2)
    second = heart._request().time_left.ToMilliseconds()
    assert 900_000 < second <= first - 200 < 1_000_000
    heart.vitals.trained_by_s = time.monotonic() - 1
    assert heart._request().time_left.ToMilliseconds() == 0
