"""What comes from outside, as bad as it gets: typed errors, bounded memory, and others are served."""

import asyncio
import io
import os
import struct
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeAlias

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from saucer.lib import grpc_receiving, grpc_server
from saucer.lib.grpc_client import from_rpc
from saucer.publishing import endpoint
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import Online, jpeg, serving_processes
from tests.support.events import until
from tests.support.http2 import begun
from tests.support.memory import MIB, forget_peak, peak_bytes

CALLERS = 1000
# Of a request that is as large as it may be.
LARGE_BYTES = 23 * MIB
# Images in flight, and what the runtime keeps of them; far below a thousand decoded photographs.
MAX_GROWTH_BYTES = 300 * MIB
# What is refused is not decoded, anywhere.
MAX_REFUSED_BYTES = 60 * MIB
# The largest image that is decoded has 64,000,000 pixels: 192 MB, and what its decoder needs beside them.
MAX_DECODED_BYTES = 600 * MIB
# Of one refusal, on average, while a thousand are made.
AT_ONCE_S = 0.5
# From the end of those who hold all that an account may until others are let in.
FREE_AGAIN_S = 60.0
Stream: TypeAlias = (
    "grpc.aio.StreamStreamCall[publishing_pb2.PredictStreamRequest, publishing_pb2.PredictStreamResponse]"
)
Ask = Callable[[Online, publishing_pb2.Deployment, bytes], Awaitable[str]]


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG whose header states a size, and whose pixels are what one likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    """A header, and no pixels (RFC 9649)."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides


def bmp(width: int, height: int) -> bytes:
    """A header, and no pixels."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def baseline_jpeg(width: int, height: int) -> bytes:
    """A frame header, and no pixels (ITU-T T.81, annex B)."""
    return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\0"


def written(kind: str, width: int, height: int, **options: object) -> bytes:
    """A whole image of one colour: few bytes for its pixels."""
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), (120, 130, 140)).save(encoded, kind, **options)
    return encoded.getvalue()


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each takes its decoder a pass over the whole image."""
    image = written("JPEG", width, height, progressive=True)
    return image[:-2] + image[image.rindex(b"\xff\xda") : -2] * scans + image[-2:]


@contextmanager
def bounded_memory(growth_bytes: int, *deployments: publishing_pb2.Deployment) -> Iterator[None]:
    """At no moment has this process, in which publishing runs, with those that serve, that much more than before."""
    serving = [number for deployment in deployments for number in serving_processes(deployment.deployment_id)]
    processes = [os.getpid(), *serving]
    before = sum(map(forget_peak, processes))
    yield
    grown = sum(map(peak_bytes, processes)) - before
    assert grown < growth_bytes, f"{grown / MIB:.0f} MiB more"


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
            await stub.ModelInfer(request, metadata=world.owner(deployment.account_id), timeout=120)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {from_rpc(error).reason}"
        return "OK"


@pytest.mark.parametrize("ask", [outcome, kserve_outcome])
async def test_hostile_images_are_refused_by_name_and_bounded_in_memory(world: Online, ask: Ask) -> None:
    async with world.serving():
        active = await world.active()
        whole = jpeg(180, 640, 480)
        noise = np.random.default_rng(1).integers(0, 255, 200_000, np.uint8).tobytes()
        refused = {
            "a PNG bomb": png(60_000, 60_000, b"\0" * 60_001),
            "a WebP bomb": webp(2**24, 2**24),
            "a BMP bomb": bmp(60_000, 60_000),
            "a BMP bomb from the top": bmp(60_000, -60_000),
            "a JPEG bomb": baseline_jpeg(65_500, 65_500),
            "a strip of a million pixels that has too many": png(1_000_000, 65, b"\0"),
            "sides that overflow": png(2**31 - 1, 2**31 - 1, b"\0"),
            "no sides": png(0, 0, b""),
            "a header of twenty thousand segments": whole[:2] + b"\xff\xe1\0\2" * 19_900 + whole[2:],
            "a JPEG of three thousand scans": many_scans(8000, 8000, 3000),
            "a header alone": whole[:20],
            "a cut header": png(10, 10, b"")[:20],
            "another format": b"GIF89a" + noise,
            "noise": noise,
            "a start and noise": b"\xff\xd8\xff" + noise,
        }
        # What can be decoded in part, or is as large or as wide as is allowed.
        allowed = {
            "half a JPEG": whole[: len(whole) // 2],
            "a strip": png(1_000_000, 1, b"\0" * 1_000_001),
            "a column": png(1, 1_000_000, b"\0\0" * 1_000_000),
            "a large PNG without pixels": png(8000, 8000, b"\0"),
            "a large WebP without pixels": webp(8000, 8000),
            "a large BMP without pixels": bmp(8000, 8000),
            "a large JPEG without pixels": baseline_jpeg(8000, 8000),
            "a large PNG": written("PNG", 8000, 8000),
            "a large WebP": written("WEBP", 8000, 8000, lossless=True, method=0),
            "a large JPEG, for which its decoder keeps all coefficients": written("JPEG", 8000, 8000, progressive=True),
        }
        with bounded_memory(MAX_REFUSED_BYTES, active):
            for name, image in refused.items():
                assert await ask(world, active, image) == "INVALID_ARGUMENT IMAGE_REFUSED", name
        for name, image in allowed.items():
            with bounded_memory(MAX_DECODED_BYTES, active):
                assert await ask(world, active, image) in {"OK", "INVALID_ARGUMENT IMAGE_REFUSED"}, name
                assert await ask(world, active, whole) == "OK", "others are served on"
        assert (await world.get(active.deployment_id)).state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE


@pytest.mark.parametrize("ask", [outcome, kserve_outcome])
async def test_a_thousand_callers_at_once_are_answered_or_refused_at_once_in_bounded_memory_and_others_are_served(
    world: Online, ask: Ask
) -> None:
    async with world.serving():
        account_id, other_id = await world.account(), await world.account()
        created = await world.create(account_id, await world.model(account_id))
        others = await world.create(other_id, await world.model(other_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        other = await world.until_state(others, "ACTIVE", "FAILED")
        image = jpeg(180, 1000, 800)
        refused_s = ending_s("TOO_MANY_REQUESTS")
        with bounded_memory(MAX_GROWTH_BYTES, active, other):
            crowd = asyncio.gather(*(ask(world, active, image) for _ in range(CALLERS)))
            meanwhile: Counter[str] = Counter()
            while not crowd.done():
                meanwhile[await ask(world, other, image)] += 1
            found = Counter(await crowd)
        reasons = {f"RESOURCE_EXHAUSTED {reason}" for reason in ("TOO_MANY_REQUESTS", "NO_ROOM_FOR_REQUEST")}
        assert set(found) <= {"OK", *reasons}, found
        assert found["OK"] >= 32
        assert sum(found.values()) == CALLERS
        print(f"{found}; meanwhile another account's: {meanwhile}")
        assert set(meanwhile) == {"OK"}
        assert await ask(world, active, image) == "OK"
        refusals, seconds = (now - before for now, before in zip(ending_s("TOO_MANY_REQUESTS"), refused_s, strict=True))
        # Of those for which there was room.
        assert refusals == found["RESOURCE_EXHAUSTED TOO_MANY_REQUESTS"]
        assert seconds <= refusals * AT_ONCE_S


def ending_s(reason: str) -> tuple[float, float]:
    """Requests that ended so by now, and how long publishing had them, in seconds."""
    (metric,) = endpoint.request_seconds.collect()
    of_reason = [sample for sample in metric.samples if sample.labels.get("outcome") == reason]
    found = {sample.name.rpartition("_")[2]: sample.value for sample in of_reason if "le" not in sample.labels}
    return found.get("count", 0.0), found.get("sum", 0.0)


async def drip(world: Online, account_id: str, path: str) -> bytes:
    """A call whose request is promised and then comes a byte at a time; what the server says when it ends the call."""
    async with begun(world.address, path, world.owner(account_id), LARGE_BYTES) as call, asyncio.timeout(60):
        while not call.ended.is_set():
            await call.send(1)
            await asyncio.sleep(0.2)
        return call.heard


PATHS = (
    "/saucer.publishing.v1.PublishingService/Predict",
    "/saucer.publishing.v1.PublishingService/PredictStream",
    "/inference.GRPCInferenceService/ModelInfer",
)


def most_of(path: str) -> int:
    """Requests of one account that are received at once."""
    return 10 if path.endswith("Stream") else 21


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_that_comes_a_byte_at_a_time_is_ended_and_others_are_served(
    world: Online, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with world.serving():
        active = await world.active()
        monkeypatch.setattr(grpc_server, "MAX_UNARY_S", 6.0)
        monkeypatch.setattr(grpc_receiving, "MAX_RECEIVE_S", 6.0)
        with bounded_memory(MAX_GROWTH_BYTES, active):
            dripper_id = await world.account(0)
            dripping = [asyncio.ensure_future(drip(world, dripper_id, path)) for _ in range(50)]
            for _ in range(5):
                assert await outcome(world, active, jpeg(180)) == "OK"
            ends = await asyncio.gather(*dripping)
            slow = [heard for heard in ends if b"deadline" in heard or b"whole within" in heard]
            assert len(slow) == most_of(path)
            # The others were refused at once.
            assert sum(b"received at once" in heard for heard in ends) == 50 - most_of(path)
        assert await outcome(world, active, jpeg(180)) == "OK"


@pytest.mark.parametrize("path", PATHS)
async def test_a_thousand_requests_that_stop_in_the_middle_hold_a_bounded_memory_and_others_are_served(
    world: Online, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # They are to stay until the others were served, however long that takes.
    monkeypatch.setattr(grpc_server, "MAX_UNARY_S", 600.0)
    monkeypatch.setattr(grpc_receiving, "MAX_RECEIVE_S", 600.0)
    async with world.serving():
        account_id, other_id = await world.account(), await world.account()
        created = await world.create(other_id, await world.model(other_id))
        other = await world.until_state(created, "ACTIVE", "FAILED")
        image = jpeg(180, 1000, 800)
        most = most_of(path)
        with bounded_memory(most * LARGE_BYTES + MAX_GROWTH_BYTES, other):
            async with AsyncExitStack() as stack:
                metadata = world.owner(account_id)
                begins = [begun(world.address, path, metadata, LARGE_BYTES + 1) for _ in range(CALLERS)]
                calls = [await stack.enter_async_context(begin) for begin in begins]
                sending = asyncio.gather(*(call.send(LARGE_BYTES) for call in calls))
                asked: Counter[str] = Counter()
                while not sending.done() or not asked:
                    asked[await outcome(world, other, image)] += 1
                assert set(asked) == {"OK"}
                assert sum(not call.ended.is_set() for call in calls) == most
                assert set(await asyncio.gather(*(outcome(world, other, image) for _ in range(16)))) == {"OK"}
                batch = world.publishing.PredictStream(
                    requests_of(other, [image] * 20), metadata=world.owner(other_id), timeout=20
                )
                assert [answer.HasField("prediction") async for answer in batch] == [True] * 20

        async def all_are_let_in() -> bool:
            async with AsyncExitStack() as stack:
                begins = [begun(world.address, path, world.owner(account_id), LARGE_BYTES + 1) for _ in range(most)]
                calls = [await stack.enter_async_context(begin) for begin in begins]
                await asyncio.gather(*(call.send(LARGE_BYTES // 4) for call in calls))
                return not any(call.ended.is_set() for call in calls)

        # What they held is there again, as soon as their end is seen.
        await until(all_are_let_in, timeout_s=FREE_AGAIN_S)


def requests_of(
    deployment: publishing_pb2.Deployment, images: Iterable[bytes]
) -> Iterator[publishing_pb2.PredictStreamRequest]:
    for image in images:
        yield publishing_pb2.PredictStreamRequest(deployment_id=deployment.deployment_id, image=image)


async def test_a_stream_answers_every_image_in_order_and_goes_on_after_a_bad_one(world: Online) -> None:
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
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


async def test_more_streams_than_an_account_may_have_are_refused_and_given_back(
    world: Online, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 3
    monkeypatch.setattr(grpc_server, "MAX_STREAMS_OF_ACCOUNT", most)
    async with world.serving():
        active = await world.active()
        account_id = active.account_id

        async def opened() -> Stream:
            """Answered once; more may be sent."""
            call: Stream = world.publishing.PredictStream(metadata=world.owner(account_id), timeout=120)
            await call.write(next(requests_of(active, [jpeg(180)])))
            answer = await call.read()
            assert isinstance(answer, publishing_pb2.PredictStreamResponse)
            assert answer.HasField("prediction")
            return call

        first, *others = [await opened() for _ in range(most)]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await opened()
        assert from_rpc(refusal.value).reason == "TOO_MANY_STREAMS"
        await first.done_writing()
        assert await first.read() is grpc.aio.EOF

        async def another() -> Any:
            try:
                return await opened()
            except grpc.aio.AioRpcError:
                return None

        others.append(await until(another))
        for call in others:
            call.cancel()
