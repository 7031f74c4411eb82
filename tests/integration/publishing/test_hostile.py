"""What comes from outside, as bad as it gets: typed errors, bounded memory, and others are served."""

import asyncio
import os
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from nats.js import JetStreamContext
from tritonclient.grpc import service_pb2, service_pb2_grpc

from saucer.lib import grpc_server
from saucer.lib.grpc_client import from_rpc
from saucer.lib.grpc_server import MAX_STREAMS_OF_ACCOUNT
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


async def kserve_outcome(world: Online, deployment: publishing_pb2.Deployment, image: bytes) -> str:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[1, 1])
    request = service_pb2.ModelInferRequest(
        model_name=deployment.deployment_id,
        inputs=[tensor],
        raw_input_contents=[struct.pack("<I", len(image)) + image],
    )
    async with grpc.aio.insecure_channel(world.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            await stub.ModelInfer(request, metadata=world.owner(deployment.account_id), timeout=20)
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


@pytest.mark.parametrize("ask", [outcome, kserve_outcome])
async def test_a_thousand_callers_at_once_are_answered_or_refused_at_once_in_bounded_memory(
    world: Online, ask: Callable[[Online, publishing_pb2.Deployment, bytes], Awaitable[str]]
) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        image = jpeg(180, 1000, 800)
        before = memory_bytes(active)
        found = Counter(await asyncio.gather(*(ask(world, active, image) for _ in range(CALLERS))))
        allowed = {"OK", "RESOURCE_EXHAUSTED TOO_MANY_REQUESTS", "RESOURCE_EXHAUSTED RATE_LIMITED"}
        assert set(found) <= allowed, found
        assert found["OK"] >= 32
        assert sum(found.values()) == CALLERS
        assert memory_bytes(active) - before < MAX_GROWTH_BYTES
        assert await outcome(world, active, image) == "OK"


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def headers(pairs: Iterable[tuple[str, str]]) -> bytes:
    """HPACK without its tables: literals that are not indexed (RFC 7541, section 6.2.2)."""

    def text(value: str) -> bytes:
        length, prefix = len(value), b""
        if length < 127:
            return bytes([length]) + value.encode()
        prefix, length = b"\x7f", length - 127
        while length >= 128:
            prefix, length = prefix + bytes([length % 128 + 128]), length // 128
        return prefix + bytes([length]) + value.encode()

    return b"".join(b"\x00" + text(name) + text(value) for name, value in pairs)


async def drip(world: Online, account_id: str, path: str) -> bytes:
    """A call whose request is promised and then comes a byte at a time; what the server says until it ends the call."""
    host, port = world.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    named = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": world.address,
        "te": "trailers",
        "content-type": "application/grpc",
        **{name: str(value) for name, value in world.owner(account_id)},
    }
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers(named.items())))
        writer.write(frame(0, 0, 1, struct.pack(">BI", 0, 20 * 2**20)))
        heard = b""
        async with asyncio.timeout(20):
            while b"grpc-status" not in heard:
                writer.write(frame(0, 0, 1, b"x"))
                try:
                    heard += await asyncio.wait_for(reader.read(65536), 0.2)
                except TimeoutError:
                    continue
        return heard
    finally:
        writer.close()


@pytest.mark.parametrize(
    "path",
    [
        "/saucer.publishing.v1.PublishingService/Predict",
        "/saucer.publishing.v1.PublishingService/PredictStream",
        "/inference.GRPCInferenceService/ModelInfer",
    ],
)
async def test_a_request_that_comes_a_byte_at_a_time_is_ended_and_others_are_served(
    world: Online, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        monkeypatch.setattr(grpc_server, "MAX_UNARY_S", 3.0)
        monkeypatch.setattr(grpc_server, "MAX_RECEIVE_S", 3.0)
        before = memory_bytes(active)
        dripping = [asyncio.ensure_future(drip(world, account_id, path)) for _ in range(50)]
        for _ in range(5):
            assert await outcome(world, active, jpeg(180)) == "OK"
        for heard in await asyncio.gather(*dripping):
            assert b"deadline" in heard or b"whole within" in heard, heard
        assert memory_bytes(active) - before < MAX_GROWTH_BYTES
        assert await outcome(world, active, jpeg(180)) == "OK"


def requests_of(
    deployment: publishing_pb2.Deployment, images: Iterable[bytes]
) -> Iterator[publishing_pb2.PredictStreamRequest]:
    for image in images:
        yield publishing_pb2.PredictStreamRequest(deployment_id=deployment.deployment_id, image=image)


async def test_a_stream_answers_every_image_in_order_and_goes_on_after_a_bad_one(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        levels = [20 + 5 * number for number in range(40)]
        images = [jpeg(level, 60 + level) for level in levels]
        images[7], images[9] = b"no image", b""
        owner = world.owner(account_id)
        answers = [
            answer async for answer in world.publishing.PredictStream(requests_of(active, images), metadata=owner)
        ]
        assert [answer.request_number for answer in answers] == list(range(1, 41))
        failed = [answer.request_number - 1 for answer in answers if answer.HasField("error")]
        assert failed == [7, 9]
        assert all(answers[number].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] for number in failed)
        good = [number for number in range(40) if number not in failed]
        assert [answers[number].prediction.width for number in good] == [60 + levels[number] for number in good]
        alone = await world.predict(active, images[0])
        assert answers[0].prediction == alone

        stranger = world.owner(await world.account(0))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await anext(aiter(world.publishing.PredictStream(requests_of(active, images[:1]), metadata=stranger)))
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_more_streams_than_an_account_may_have_are_refused_at_once_and_given_back(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")

        async def streamed() -> str:
            call = world.publishing.PredictStream(metadata=world.owner(account_id), timeout=60)
            try:
                await call.write(next(requests_of(active, [jpeg(180)])))
                answer = await call.read()
                assert isinstance(answer, publishing_pb2.PredictStreamResponse)
                await call.done_writing()
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name} {from_rpc(error).reason}"
            return "OK" if answer.HasField("prediction") else grpc_code(answer.error.code)

        found = Counter(await asyncio.gather(*(streamed() for _ in range(CALLERS))))
        allowed = {"OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED TOO_MANY_STREAMS"}
        assert set(found) <= allowed, found
        assert sum(found.values()) == CALLERS > MAX_STREAMS_OF_ACCOUNT
        assert found["OK"] >= 1
        assert await streamed() == "OK"


def grpc_code(number: int) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)
