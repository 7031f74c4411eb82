"""Requests that stop in the middle, over real connections: what they hold, who is refused, and that it comes back."""

from __future__ import annotations  # some of grpc's classes are generic only for type checkers

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from saucer.lib import auth, grpc_receiving, grpc_server
from saucer.lib.auth import Role
from saucer.lib.errors import InvalidArgumentError
from saucer.lib.grpc_client import CHANNEL_OPTIONS, from_rpc
from saucer.lib.grpc_server import MAX_MESSAGE_BYTES, Context, Server, Servicer
from saucer.lib.ids import new_id
from saucer.publishing.v1 import publishing_pb2, publishing_pb2_grpc
from tests.support.events import until
from tests.support.http2 import Call, begun
from tests.support.memory import MIB, forget_peak, peak_bytes
from tests.support.services import Metadata

SERVICE = "/saucer.publishing.v1.PublishingService/"
# Eight calls, four of one account; four streams, two of one account.
RECEIVING_BYTES = 12 * MAX_MESSAGE_BYTES
STALLED_BYTES = 23 * MIB
CALLERS = 200
# What connections, their buffers and refusals take beside what is received.
BESIDES_BYTES = 150 * MIB


class Publishing(publishing_pb2_grpc.PublishingServiceServicer):
    """Answers at once, unless it is to ask for nothing."""

    def __init__(self) -> None:
        self.asks = asyncio.Event()
        self.asks.set()

    async def GetDeployment(  # noqa: N802
        self, request: publishing_pb2.GetDeploymentRequest, context: Context
    ) -> publishing_pb2.Deployment:
        return publishing_pb2.Deployment()

    async def Predict(  # noqa: N802
        self, request: publishing_pb2.PredictRequest, context: Context
    ) -> publishing_pb2.PredictResponse:
        await asyncio.sleep(0.02)
        return publishing_pb2.PredictResponse(width=len(request.image))

    async def PredictStream(  # noqa: N802
        self, requests: AsyncIterator[publishing_pb2.PredictStreamRequest | InvalidArgumentError], context: Context
    ) -> AsyncIterator[publishing_pb2.PredictStreamResponse]:
        await self.asks.wait()
        async for _ in requests:
            yield publishing_pb2.PredictStreamResponse()


class Serving:
    """A server, and its callers."""

    def __init__(self, folder: Path) -> None:
        self._private, public = folder / "private.pem", folder / "public.json"
        auth.generate_keys(self._private, public, "k")
        descriptor = publishing_pb2.DESCRIPTOR.services_by_name["PublishingService"]
        register = publishing_pb2_grpc.add_PublishingServiceServicer_to_server
        self.publishing = Publishing()  # type: ignore[abstract]  # what is not called is not written
        servicer = Servicer(self.publishing, register, descriptor)
        self.server = Server("127.0.0.1:0", auth.Verifier(public), [servicer], receiving_bytes=RECEIVING_BYTES)
        self.channel = grpc.aio.insecure_channel(self.server.address, options=CHANNEL_OPTIONS)
        self.stub = publishing_pb2_grpc.PublishingServiceStub(self.channel)

    def viewer(self, account_id: str) -> Metadata:
        token = auth.mint(
            self._private.read_bytes(),
            "k",
            token_id=new_id(),
            subject="s",
            role=Role.VIEWER,
            account_id=account_id,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )
        return (("authorization", f"Bearer {token}"),)

    async def predict(self, caller: Metadata, size_bytes: int = 100_000) -> str:
        request = publishing_pb2.PredictRequest(deployment_id=new_id(), image=b"x" * size_bytes)
        try:
            await self.stub.Predict(request, metadata=caller, timeout=20)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {from_rpc(error).reason}"
        return "OK"

    async def predict_stream(self, caller: Metadata, images: int = 5) -> int:
        def requests() -> Iterator[publishing_pb2.PredictStreamRequest]:
            for _ in range(images):
                yield publishing_pb2.PredictStreamRequest(deployment_id=new_id(), image=b"x" * 100_000)

        return len([answer async for answer in self.stub.PredictStream(requests(), metadata=caller, timeout=20)])

    @asynccontextmanager
    async def stalled(self, method: str, caller: Metadata, calls: int) -> AsyncIterator[list[Call]]:
        """So many calls that each stop a MiB before their request is whole, or are ended before."""
        path = method if method.startswith("/") else SERVICE + method
        async with AsyncExitStack() as stack:
            begins = [begun(self.server.address, path, caller, STALLED_BYTES + MIB) for _ in range(calls)]
            found = [await stack.enter_async_context(call) for call in begins]
            async with asyncio.timeout(30):
                await asyncio.gather(*(call.send(STALLED_BYTES) for call in found))
            yield found


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    serving = Serving(tmp_path)
    await serving.server.start()
    yield serving
    await serving.channel.close()
    await serving.server.stop()


@contextmanager
def bounded_memory(growth_bytes: int) -> Iterator[None]:
    before = forget_peak(os.getpid())
    yield
    grown = peak_bytes(os.getpid()) - before
    assert grown < growth_bytes, f"{grown / MIB:.0f} MiB more"


def open_of(calls: list[Call]) -> int:
    return sum(not call.ended.is_set() for call in calls)


async def is_open(calls: list[Call], count: int) -> bool:
    return open_of(calls) == count


async def test_calls_that_stop_in_the_middle_hold_a_bounded_memory_and_others_are_served(serving: Serving) -> None:
    greedy, greedy_too, other = (serving.viewer(new_id()) for _ in range(3))
    with bounded_memory(8 * MAX_MESSAGE_BYTES + BESIDES_BYTES):
        started_s = time.monotonic()
        async with serving.stalled("Predict", greedy, CALLERS) as calls:
            assert open_of(calls) == 4
            refused = [call.heard for call in calls if call.ended.is_set()]
            assert all(b"of requests can be received at once" in heard for heard in refused)
            assert await serving.predict(greedy) == "RESOURCE_EXHAUSTED NO_ROOM_FOR_REQUEST"
            # Four more fit, two of them of the next.
            assert [await serving.predict(other) for _ in range(20)] == ["OK"] * 20
            assert await serving.predict(other, 20 * MIB) == "OK"
            assert await serving.predict_stream(other) == 5
            async with serving.stalled("Predict", greedy_too, CALLERS) as more:
                assert open_of(more) == 2
                assert await serving.predict(greedy_too) == "RESOURCE_EXHAUSTED NO_ROOM_FOR_REQUEST"
                assert await serving.predict(other) == "OK", "there is some for one more"
                # What is small needs no room, and streams have their own.
                for caller in (greedy, other):
                    request = publishing_pb2.GetDeploymentRequest(deployment_id=new_id())
                    await serving.stub.GetDeployment(request, metadata=caller)
                    assert await serving.predict_stream(caller) == 5
        assert time.monotonic() - started_s < 30

    # It came back: of what is all free, one account gets half.
    async def half_is_free() -> bool:
        async with serving.stalled("Predict", greedy, 10) as calls:
            return open_of(calls) == 4

    await until(half_is_free)
    for caller in (other, greedy_too, serving.viewer(new_id())):
        assert await serving.predict(caller) == "OK"


async def test_streams_that_stop_in_the_middle_hold_a_bounded_memory_and_calls_are_served(serving: Serving) -> None:
    greedy, other = serving.viewer(new_id()), serving.viewer(new_id())
    with bounded_memory(2 * MAX_MESSAGE_BYTES + BESIDES_BYTES):
        async with serving.stalled("PredictStream", greedy, CALLERS) as calls:
            assert open_of(calls) == 2
            assert await serving.predict(greedy) == "OK"
            assert await serving.predict_stream(other) == 5

    async def half_is_free() -> bool:
        async with serving.stalled("PredictStream", greedy, 10) as calls:
            return open_of(calls) == 2

    await until(half_is_free)
    assert await serving.predict_stream(other) == 5


async def test_a_small_call_that_does_not_come_with_its_headers_takes_room_too(serving: Serving) -> None:
    greedy = serving.viewer(new_id())
    async with serving.stalled("GetDeployment", greedy, 20) as calls:
        await until(lambda: is_open(calls, 4))
        assert await serving.predict(greedy) == "RESOURCE_EXHAUSTED NO_ROOM_FOR_REQUEST"
        await serving.stub.GetDeployment(
            publishing_pb2.GetDeploymentRequest(deployment_id=new_id()), metadata=greedy, timeout=5
        )


@pytest.mark.parametrize("method", ["Predict", "PredictStream", "GetDeployment"])
async def test_nothing_is_received_of_a_stranger(serving: Serving, method: str) -> None:
    with bounded_memory(BESIDES_BYTES):
        async with serving.stalled(method, (("authorization", "Bearer x"),), CALLERS) as calls:
            assert open_of(calls) == 0


async def test_open_methods_hold_little_of_strangers_and_go_on(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    health: Any = health_pb2_grpc.HealthStub(serving.channel)
    monkeypatch.setattr(grpc_receiving, "MAX_RECEIVE_S", 2.0)
    async with (
        serving.stalled("/grpc.health.v1.Health/Check", (), 5) as checks,
        serving.stalled("/grpc.health.v1.Health/Watch", (), 5) as watches,
        serving.stalled("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", (), 20) as reflections,
    ):
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        assert open_of(reflections) <= grpc_server.MAX_REFLECTIONS
        await until(lambda: is_open([*checks, *watches, *reflections], 0))
    watching = health.Watch(health_pb2.HealthCheckRequest())
    assert (await anext(aiter(watching))).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()


async def test_what_is_not_asked_for_is_not_taken(serving: Serving) -> None:
    serving.publishing.asks.clear()
    with bounded_memory(MAX_MESSAGE_BYTES):
        async with AsyncExitStack() as stack:
            greedy, other = new_id(), new_id()
            for account_id in (greedy, greedy, other):
                begin = begun(
                    serving.server.address, SERVICE + "PredictStream", serving.viewer(account_id), STALLED_BYTES
                )
                call = await stack.enter_async_context(begin)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(1):
                        await call.send(STALLED_BYTES)


async def test_a_request_that_is_no_message_is_refused_as_such(serving: Serving) -> None:
    caller = serving.viewer(new_id())
    for method in ("Predict", "GetDeployment"):
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = serving.channel.unary_unary(SERVICE + method)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(b"\xff\xff", metadata=caller)
        assert (refusal.value.code().name, from_rpc(refusal.value).reason) == ("INVALID_ARGUMENT", "REQUEST_UNREADABLE")
