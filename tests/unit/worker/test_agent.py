"""A stop waits for the present run to be given back, for as long as the worker was told, and no longer."""

import asyncio
from pathlib import Path

import grpc
import pytest

from saucer.lib.grpc_client import TokenFile
from saucer.lib.objects import Objects
from saucer.worker.agent import Agent


@pytest.mark.parametrize(("takes_s", "release_s", "in_time"), [(0.3, 30.0, True), (30.0, 1.0, False)])
async def test_a_stop_waits_as_long_as_the_worker_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes_s: float, release_s: float, in_time: bool
) -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        agent = Agent(
            channel,
            TokenFile(tmp_path / "token"),
            Objects("memory:///"),
            worker_id="w",
            region_id="local",
            spec_id="cpu",
            work_folder=tmp_path,
            cache_bytes=0,
            threads=1,
            release_s=release_s,
        )
        giving_back, given_back = asyncio.Event(), asyncio.Event()

        async def give_back() -> None:
            giving_back.set()
            await asyncio.sleep(takes_s)
            given_back.set()

        monkeypatch.setattr(agent, "_drop_child", give_back)
        agent.drain()
        running = asyncio.create_task(agent.run())
        await asyncio.wait_for(agent.stop(), 25)
        assert giving_back.is_set()
        assert given_back.is_set() == in_time
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
