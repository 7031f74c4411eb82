"""Draining: a worker ends what it has and takes nothing more. Real leases; no child, which plays no part in it."""

import asyncio
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from saucer.lib import grpc_client
from saucer.lib.auth import Role
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import worker_pb2
from saucer.worker.agent import Agent
from tests.support.events import publish, until
from tests.support.services import ServiceRunner, Tokens
from tests.support.training import REGION, SPEC, Start, object_store


class Doing:
    """An agent whose runs last as long as the test wants."""

    def __init__(self, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
        self.agent = agent
        self.leased: list[str] = []
        self.done = asyncio.Event()
        monkeypatch.setattr(agent, "_ready_child", self._no_child)
        monkeypatch.setattr(agent, "_do", self._do)

    async def _no_child(self) -> None:
        return None

    async def _do(self, lease: worker_pb2.Lease) -> None:
        self.leased.append(lease.run.run_id)
        await self.done.wait()

    async def has(self, number: int) -> bool:
        return len(self.leased) == number


async def test_a_drained_worker_ends_its_run_and_leaves_the_next_to_another(
    run_service: ServiceRunner,
    jetstream: JetStreamContext,
    tokens: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, objects = object_store(tmp_path)
    async with run_service("training", TrainingSettings, wire, object_store_url=url) as running:
        channels = [grpc_client.channel(running.address) for _ in range(2)]
        first, second = (
            Doing(
                Agent(
                    channel,
                    grpc_client.TokenFile(tokens.file(Role.WORKER)),
                    objects,
                    worker_id=f"worker-{number}",
                    region_id=REGION,
                    spec_id=SPEC,
                    work_folder=tmp_path / f"worker-{number}",
                    cache_bytes=0,
                    threads=1,
                ),
                monkeypatch,
            )
            for number, channel in enumerate(channels)
        )
        running_first = asyncio.create_task(first.agent.run())
        before, after = Start(), Start()
        await publish(jetstream, before.queued())
        await until(lambda: first.has(1))
        first.agent.drain()
        first.done.set()
        await publish(jetstream, after.queued())
        running_second = asyncio.create_task(second.agent.run())
        await until(lambda: second.has(1))
        assert (first.leased, second.leased) == ([before.run_id], [after.run_id])
        assert not running_first.done()
        second.done.set()
        for agent, task in ((first.agent, running_first), (second.agent, running_second)):
            await agent.stop()
            await task
        for channel in channels:
            await channel.close()
