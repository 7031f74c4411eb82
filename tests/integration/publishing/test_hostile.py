"""What comes from outside, as bad as it gets: typed errors, bounded memory, and others are served."""

import asyncio
import os
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from nats.js import JetStreamContext

from saucer.lib.grpc_client import from_rpc
from saucer.local.servers import TritonServer
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import Online, jpeg, online, serving_processes
from tests.support.services import ServiceRunner, Tokens

CALLERS = 1000
# Images in flight, and what the runtime keeps of them; far below a thousand decoded photographs.
MAX_GROWTH_BYTES = 300 * 2**20


@pytest.fixture
async def world(
    run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, triton: TritonServer, tmp_path: Path
) -> AsyncIterator[Online]:
    async with online(run_service, tokens, jetstream, triton, tmp_path) as made:
        yield made


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG whose header states a size, and whose pixels are what one likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def memory_bytes(deployment: publishing_pb2.Deployment) -> int:
    """Of this process, in which publishing runs, and of those that serve."""
    processes = [os.getpid(), *serving_processes(deployment.deployment_id)]
    pages = sum(int(Path(f"/proc/{number}/statm").read_text().split()[1]) for number in processes)
    return pages * os.sysconf("SC_PAGE_SIZE")


async def outcome(world: Online, deployment: publishing_pb2.Deployment, image: bytes) -> str:
    try:
        await world.predict(deployment, image)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {from_rpc(error).reason}"
    return "OK"


async def test_hostile_images_are_refused_by_name_and_bounded_in_memory(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        whole = jpeg(180, 640, 480)
        noise = np.random.default_rng(1).integers(0, 255, 200_000, np.uint8).tobytes()
        refused = {
            "a bomb": png(60_000, 60_000, b"\0" * 60_001),
            "a strip of a million pixels that has too many": png(1_000_000, 65, b"\0"),
            "sides that overflow": png(2**31 - 1, 2**31 - 1, b"\0"),
            "no sides": png(0, 0, b""),
            "a header alone": whole[:20],
            "a cut header": png(10, 10, b"")[:20],
            "another format": b"GIF89a" + noise,
            "noise": noise,
            "a start and noise": b"\xff\xd8\xff" + noise,
        }
        before = memory_bytes(active)
        for name, image in refused.items():
            assert await outcome(world, active, image) == "INVALID_ARGUMENT IMAGE_REFUSED", name
        # What can be decoded in part, or is as wide as is allowed, is answered or refused, and nothing else.
        for image in (
            whole[: len(whole) // 2],
            png(1_000_000, 1, b"\0" * 1_000_001),
            png(1, 1_000_000, b"\0\0" * 1_000_000),
            png(8000, 8000, b"\0"),
        ):
            assert await outcome(world, active, image) in {"OK", "INVALID_ARGUMENT IMAGE_REFUSED"}
            assert await outcome(world, active, whole) == "OK", "others are served on"
        assert memory_bytes(active) - before < MAX_GROWTH_BYTES
        assert (await world.get(active.deployment_id)).state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE


async def test_a_thousand_callers_at_once_are_answered_or_refused_at_once_in_bounded_memory(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        image = jpeg(180, 1000, 800)
        before = memory_bytes(active)
        found = Counter(await asyncio.gather(*(outcome(world, active, image) for _ in range(CALLERS))))
        allowed = {"OK", "RESOURCE_EXHAUSTED TOO_MANY_REQUESTS", "RESOURCE_EXHAUSTED RATE_LIMITED"}
        assert set(found) <= allowed, found
        assert found["OK"] >= 32
        assert sum(found.values()) == CALLERS
        assert memory_bytes(active) - before < MAX_GROWTH_BYTES
        assert await outcome(world, active, image) == "OK"
