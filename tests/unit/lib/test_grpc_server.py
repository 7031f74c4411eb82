"""The interceptor, over a real connection: refusals, rules, deadlines, and what a caller is told of a fault."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from saucer.lib import auth, grpc_server
from saucer.lib.auth import Role
from saucer.lib.errors import FailedPreconditionError, NotFoundError
from saucer.lib.grpc_client import CHANNEL_OPTIONS
from saucer.lib.grpc_server import Context, Server, Servicer
from saucer.lib.grpc_status import to_status
from saucer.lib.ids import new_id
from saucer.lib.records import Recorder
from saucer.lib.v1 import dead_events_pb2, dead_events_pb2_grpc

SECRET = "the password is swordfish"


class DeadEvents(dead_events_pb2_grpc.DeadEventServiceServicer):
    """Does to a call what the test wants."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.never = False
        self.pause_s = 0.0
        self.cancelled = asyncio.Event()
        self.calls = 0

    async def ListDeadEvents(  # noqa: N802
        self, request: dead_events_pb2.ListDeadEventsRequest, context: Context
    ) -> dead_events_pb2.ListDeadEventsResponse:
        self.calls += 1
        await asyncio.sleep(self.pause_s)
        if self.error is not None:
            raise self.error
        if self.never:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return dead_events_pb2.ListDeadEventsResponse(next_page_token=auth.current().role)

    async def RetryDeadEvent(  # noqa: N802
        self, request: dead_events_pb2.RetryDeadEventRequest, context: Context
    ) -> dead_events_pb2.DeadEvent:
        self.calls += 1
        await asyncio.sleep(self.pause_s)
        if self.error is not None:
            raise self.error
        return dead_events_pb2.DeadEvent()


class Told(Recorder):
    """Keeps in memory what it is told, and how many calls were done by then."""

    def __init__(self, servicer: DeadEvents) -> None:
        self.told: list[str] = []
        self.error: Exception | None = None
        self._servicer = servicer

    async def asked(self, call_id: str, principal: auth.Principal, method: str, request: Message) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(f"{principal.subject} asked for {method.rpartition('/')[2]}, {self._servicer.calls} done")

    async def answered(self, call_id: str, outcome: str, response: Message | None = None) -> None:
        self.told.append(f"{outcome}, {self._servicer.calls} done")


class Serving:
    """A server with one servicer, and calls to it."""

    def __init__(self, folder: Path, limits_s: Mapping[str, float] | None = None) -> None:
        self._private, public = folder / "private.pem", folder / "public.json"
        auth.generate_keys(self._private, public, "k")
        self.servicer = DeadEvents()
        descriptor = dead_events_pb2.DESCRIPTOR.services_by_name["DeadEventService"]
        register = dead_events_pb2_grpc.add_DeadEventServiceServicer_to_server
        self.recorder = Told(self.servicer)
        self.server = Server(
            "127.0.0.1:0",
            auth.Verifier(public),
            [Servicer(self.servicer, register, descriptor, limits_s=limits_s or {})],
            recorder=self.recorder,
        )
        self.channel = grpc.aio.insecure_channel(self.server.address)
        self.stub = dead_events_pb2_grpc.DeadEventServiceStub(self.channel)

    def metadata(self, role: Role = Role.ADMINISTRATOR) -> tuple[tuple[str, str], ...]:
        token = auth.mint(
            self._private.read_bytes(),
            "k",
            token_id=new_id(),
            subject="s",
            role=role,
            account_id=new_id() if role in auth.ACCOUNT_ROLES else None,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )
        return (("authorization", f"Bearer {token}"),)

    async def list(self, role: Role = Role.ADMINISTRATOR) -> dead_events_pb2.ListDeadEventsResponse:
        return await self.stub.ListDeadEvents(dead_events_pb2.ListDeadEventsRequest(), metadata=self.metadata(role))

    async def refusal(self) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await self.list()
        return refusal.value


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    serving = Serving(tmp_path)
    await serving.server.start()
    yield serving
    await serving.channel.close()
    await serving.server.stop()


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    (status,) = (value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin")
    assert isinstance(status, bytes)
    found = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(status).details[0].Unpack(found)
    return found


async def test_a_handler_knows_who_calls(serving: Serving) -> None:
    assert (await serving.list()).next_page_token == Role.ADMINISTRATOR


async def test_no_token_and_a_role_that_may_not_are_refused_before_the_handler(serving: Serving) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await serving.stub.ListDeadEvents(dead_events_pb2.ListDeadEventsRequest())
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert info(refusal.value).reason == "TOKEN_MISSING"
    for role in Role:
        if role is not Role.ADMINISTRATOR:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await serving.list(role)
            assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert serving.servicer.calls == 0


async def test_a_field_that_breaks_its_rule_is_named_before_the_handler(serving: Serving) -> None:
    request = dead_events_pb2.RetryDeadEventRequest(event_id="no uuid")
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await serving.stub.RetryDeadEvent(request, metadata=serving.metadata())
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "event_id" in info(refusal.value).metadata
    assert serving.servicer.calls == 0


async def test_a_domain_error_arrives_with_its_reason_and_metadata(serving: Serving) -> None:
    serving.servicer.error = FailedPreconditionError("WRONG_STATE", "It is STOPPED.", state="STOPPED")
    error = await serving.refusal()
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "It is STOPPED.")
    assert (info(error).reason, dict(info(error).metadata)) == ("WRONG_STATE", {"state": "STOPPED"})


async def test_a_fault_is_internal_and_tells_nothing_but_an_id(serving: Serving) -> None:
    serving.servicer.error = RuntimeError(SECRET)
    error = await serving.refusal()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "its log has it under" in (error.details() or "")
    assert "swordfish" not in f"{error.details()} {error.debug_error_string()} {error.trailing_metadata()}"


async def test_a_call_that_takes_longer_than_the_limit_is_ended_and_its_handler_with_it(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "MAX_UNARY_S", 0.05)
    serving.servicer.never = True
    error = await serving.refusal()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(serving.servicer.cancelled.wait(), 5)


async def test_a_method_with_a_limit_of_its_own_may_take_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_server, "MAX_UNARY_S", 0.05)
    serving = Serving(tmp_path, {"ListDeadEvents": 60.0})
    await serving.server.start()
    serving.servicer.pause_s = 0.3
    await serving.list()
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await serving.stub.RetryDeadEvent(
            dead_events_pb2.RetryDeadEventRequest(event_id=new_id()), metadata=serving.metadata()
        )
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await serving.channel.close()
    await serving.server.stop()


async def test_a_callers_deadline_ends_the_handler(serving: Serving) -> None:
    serving.servicer.never = True
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await serving.stub.ListDeadEvents(
            dead_events_pb2.ListDeadEventsRequest(), metadata=serving.metadata(), timeout=0.2
        )
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(serving.servicer.cancelled.wait(), 5)


async def test_a_call_in_which_nothing_is_said_is_not_ended_for_the_pings_of_our_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both thirty times as often; gRPC pings once a second at most.
    ours = dict(CHANNEL_OPTIONS)
    ours["grpc.keepalive_time_ms"] = int(ours["grpc.keepalive_time_ms"]) // 30
    monkeypatch.setattr(grpc_server, "MIN_PING_INTERVAL_MS", grpc_server.MIN_PING_INTERVAL_MS // 30)
    serving = Serving(tmp_path)
    await serving.server.start()
    serving.servicer.never = True
    # Else gRPC pings less often after the second.
    options = [*ours.items(), ("grpc.http2.max_pings_without_data", 0)]
    async with grpc.aio.insecure_channel(serving.server.address, options=options) as channel:
        stub = dead_events_pb2_grpc.DeadEventServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as end:
            await stub.ListDeadEvents(dead_events_pb2.ListDeadEventsRequest(), metadata=serving.metadata(), timeout=6)
    # An ended call would have been repeated.
    assert (end.value.code(), serving.servicer.calls) == (grpc.StatusCode.DEADLINE_EXCEEDED, 1)
    await serving.channel.close()
    await serving.server.stop()


async def test_health_is_open_to_all_and_a_taken_port_is_told(serving: Serving) -> None:
    with pytest.raises((OSError, RuntimeError)):
        Server(serving.server.address, auth.Verifier(Path("none")), [])


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        socket.gaierror(-2, "Name or service not known"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.DiskFullError("could not extend file"),
        asyncpg.AdminShutdownError("terminating connection"),
    ],
)
def test_a_database_that_is_away_is_unavailable(error: Exception) -> None:
    assert to_status("/m", error).code == code_pb2.UNAVAILABLE


@pytest.mark.parametrize(
    "error", [asyncpg.DeadlockDetectedError("deadlock detected"), asyncpg.SerializationError("could not serialize")]
)
def test_a_call_that_was_undone_for_another_is_unavailable_so_that_it_is_repeated(error: Exception) -> None:
    status = to_status("/m", error)
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (status.code, info.reason) == (code_pb2.UNAVAILABLE, "CONCURRENT_CALL")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file"), asyncpg.DataError("bad"), KeyError("x")])
def test_what_is_no_database_that_is_away_is_internal(error: Exception) -> None:
    assert to_status("/m", error).code == code_pb2.INTERNAL


async def test_a_call_that_changes_something_is_recorded_before_and_after_it_is_done_and_one_that_may_not_is_not(
    serving: Serving,
) -> None:
    request = dead_events_pb2.RetryDeadEventRequest(event_id=new_id())
    await serving.stub.RetryDeadEvent(request, metadata=serving.metadata())
    await serving.list()
    with pytest.raises(grpc.aio.AioRpcError):
        await serving.stub.RetryDeadEvent(request, metadata=serving.metadata(Role.OWNER))
    assert serving.recorder.told == ["s asked for RetryDeadEvent, 0 done", "OK, 1 done"]


async def test_a_call_that_changes_something_and_fails_is_recorded_with_its_code(serving: Serving) -> None:
    serving.servicer.error = NotFoundError("event", "e")
    with pytest.raises(grpc.aio.AioRpcError):
        await serving.stub.RetryDeadEvent(
            dead_events_pb2.RetryDeadEventRequest(event_id=new_id()), metadata=serving.metadata()
        )
    assert serving.recorder.told == ["s asked for RetryDeadEvent, 0 done", "NOT_FOUND, 1 done"]


async def test_what_cannot_be_recorded_is_not_done(serving: Serving) -> None:
    serving.recorder.error = OSError("gone")
    with pytest.raises(grpc.aio.AioRpcError):
        await serving.stub.RetryDeadEvent(
            dead_events_pb2.RetryDeadEventRequest(event_id=new_id()), metadata=serving.metadata()
        )
    assert serving.servicer.calls == 0
