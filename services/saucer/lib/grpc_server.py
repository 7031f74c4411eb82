"""A gRPC server: one interceptor that authenticates, checks, limits, measures and turns errors into wire form, once.

1. Access stands in the protos, on each method; a method without one stops the start.
2. The role is checked before anything is looked up, so a refusal is the same whether the id exists or not.
3. Requests are read only then, within a limit of time, and while there is room for them: memory is bounded, whoever
   sends whatever.
4. Requests are checked by the rules in the protos (protovalidate) before a handler sees them.
5. A call that changes something is recorded before it is done: who, what, with which token (records.py).
6. DomainErrors become google.rpc.Status with ErrorInfo; anything else is INTERNAL with a fixed sentence, and the log
   has the trace under the id that the caller is given.
"""

from __future__ import annotations  # some of grpc's classes are generic only for type checkers

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import grpc
import protovalidate
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter, Gauge, Histogram

from saucer.lib import auth, tracing
from saucer.lib.byte_budget import ByteBudget, holder_of
from saucer.lib.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from saucer.lib.grpc_receiving import WhenLate, in_time, only, refuse_late, timely
from saucer.lib.grpc_status import to_status
from saucer.lib.ids import new_id
from saucer.lib.records import Recorder, is_recorded
from saucer.lib.tls import Identity
from saucer.lib.v1 import access_pb2

# A unary call without a deadline of its own, or with a later one, is ended after this, or after its Servicer's limit.
MAX_UNARY_S = 120.0
# Streams open at once in a process; one more is RESOURCE_EXHAUSTED. Streams cancelled by clients leak memory in
# grpc.aio (grpc #43360), so they are bounded.
MAX_STREAMS = 1000
# Of them, those of one account: likewise.
MAX_STREAMS_OF_ACCOUNT = 200
MAX_MESSAGE_BYTES = 24 * 1024 * 1024
# While a request is awaited it may come to have MAX_MESSAGE_BYTES: of no other length gRPC tells before it is whole. So
# each that carries bytes takes that much room before it is awaited, and then what it has, until its call ends. Room for
# 42 unary calls that are being received, 21 of one account, and for 21 streams of requests, 10 of one account, which
# keep theirs to their end; four of them are as many images as one deployment takes at once. A request without bytes
# takes room once it is late: so without room there is as much as a network brings in SMALL_REQUEST_S.
RECEIVING_BYTES = 1536 * 1024 * 1024
# In a process none of whose requests carries bytes: eight calls, four of one account or platform token.
SMALL_RECEIVING_BYTES = 288 * 1024 * 1024
# The share of streams of requests; they cannot keep other calls out.
STREAMS_SHARE = 3
# Streams of reflection, which needs no token, at once.
MAX_REFLECTIONS = 4
# Pings that come more often, while nothing is sent, end the connection. Without a word gRPC takes five minutes, and our
# channels' pings would end every stream that is silent for two.
MIN_PING_INTERVAL_MS = 10_000
# So much of a request comes with its headers, before it is asked for. By gRPC's default, 64 KiB, an image waits 0.15 ms
# for a window. Of 100 calls that nobody reads this is 25 MB.
AHEAD_BYTES = 256 * 1024
# Calls in progress at a stop have this long to end.
STOP_GRACE_S = 5.0

log = structlog.get_logger()
calls_total = Counter("saucer_grpc_calls_total", "Calls by outcome", ["method", "code"])
# For health checks that must be cheap.
serving = Gauge("saucer_serving", "1 while the gRPC server takes calls")
call_seconds = Histogram("saucer_grpc_call_seconds", "Duration of unary calls", ["method"])

Handler = Callable[..., Any]
T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True)
class Servicer:
    """An implementation with what registers and describes it."""

    implementation: object
    register: Callable[[Any, grpc.aio.Server], None]
    descriptor: ServiceDescriptor
    # For contracts that are not ours and so state no access: one for all methods.
    access: int | None = None
    # Of methods that may take longer than MAX_UNARY_S, by name.
    limits_s: Mapping[str, float] = field(default_factory=dict)


def access_of(servicers: Sequence[Servicer]) -> dict[str, int]:
    """Access by full method path. Raises ValueError naming a method that states none."""
    result: dict[str, int] = {}
    for servicer in servicers:
        for method in servicer.descriptor.methods:
            access = servicer.access or method.GetOptions().Extensions[access_pb2.access]
            if access == access_pb2.ACCESS_UNSPECIFIED:
                raise ValueError(f"{method.full_name} states no access.")
            result[f"/{servicer.descriptor.full_name}/{method.name}"] = access
    return result


def recorded_of(servicers: Sequence[Servicer]) -> frozenset[str]:
    """Full paths of methods whose calls are recorded."""
    access = access_of(servicers)
    methods = {
        f"/{servicer.descriptor.full_name}/{method.name}": method
        for servicer in servicers
        for method in servicer.descriptor.methods
    }
    return frozenset(path for path, method in methods.items() if is_recorded(method, access[path]))


def limits_of(servicers: Sequence[Servicer]) -> dict[str, float]:
    """Seconds that unary calls may take, by full path of those methods that have a limit of their own."""
    return {
        f"/{servicer.descriptor.full_name}/{name}": limit_s
        for servicer in servicers
        for name, limit_s in servicer.limits_s.items()
    }


def bulky_of(servicers: Sequence[Servicer]) -> frozenset[str]:
    """Full paths of methods whose requests carry bytes, and so may take long to come."""
    return frozenset(
        f"/{servicer.descriptor.full_name}/{method.name}"
        for servicer in servicers
        for method in servicer.descriptor.methods
        if any(field.type == field.TYPE_BYTES for field in method.input_type.fields)
    )


class Server:
    """One listening server of one process."""

    def __init__(
        self,
        listen: str,
        verifier: auth.Verifier,
        servicers: Sequence[Servicer],
        identity: Identity | None = None,
        recorder: Recorder | None = None,
        receiving_bytes: int = RECEIVING_BYTES,
    ) -> None:
        """`listen` is host:port; port 0 takes a free one. Raises OSError if the port is taken.

        With an identity callers need a certificate of its authority. Without a recorder no call is recorded. Requests
        that are being received have `receiving_bytes`, or SMALL_RECEIVING_BYTES where none carries bytes.
        """
        recorded = recorded_of(servicers) if recorder is not None else frozenset()
        bulky = bulky_of(servicers)
        self._interceptor = _Interceptor(
            verifier,
            access_of(servicers),
            recorded,
            bulky,
            limits_of(servicers),
            recorder,
            receiving_bytes if bulky else SMALL_RECEIVING_BYTES,
        )
        self._server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                # With its probes of the network gRPC comes to take 16 MiB of a stream before a message is asked for: on
                # loopback 100 calls that nobody read held 1.6 GB. Without them it takes AHEAD_BYTES, and a message that
                # is asked for may come whole at once all the same.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", AHEAD_BYTES),
                ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
            ],
        )
        for servicer in servicers:
            servicer.register(servicer.implementation, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = [servicer.descriptor.full_name for servicer in servicers]
        reflection.enable_server_reflection([*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        if identity is None:
            port = self._server.add_insecure_port(listen)
        else:
            port = self._server.add_secure_port(listen, identity.server_credentials())
        if port == 0:
            raise OSError(f"Cannot listen on {listen}; is another process there?")
        self.address = f"{listen.rsplit(':', 1)[0]}:{port}"

    async def start(self) -> None:
        """Serves, and says so to health checks."""
        await self._server.start()
        for name in ["", *self._names]:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        serving.set(1)

    async def stop(self) -> None:
        """Not serving at once; calls in progress get STOP_GRACE_S, streams end at once."""
        serving.set(0)
        await self._health.enter_graceful_shutdown()
        self._interceptor.stopping.set()
        await self._server.stop(STOP_GRACE_S)


class _Interceptor(grpc.aio.ServerInterceptor):
    def __init__(
        self,
        verifier: auth.Verifier,
        access: Mapping[str, int],
        recorded: Collection[str],
        bulky: Collection[str],
        limits_s: Mapping[str, float],
        recorder: Recorder | None,
        receiving_bytes: int,
    ) -> None:
        self._calls_room = ByteBudget(receiving_bytes - receiving_bytes // STREAMS_SHARE)
        self._streams_room = ByteBudget(receiving_bytes // STREAMS_SHARE)
        self._reflections = 0
        self._verifier = verifier
        self._bulky = bulky
        self._limits_s = limits_s
        self._access = access
        self._recorded = recorded
        self._recorder = recorder
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._streams = 0
        self._streams_of_account: collections.Counter[str] = collections.Counter()
        self.stopping = asyncio.Event()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # unknown
            wrap = self._wrap if method in self._access else self._wrap_open
            wrapped = self._wrapped[method] = wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """On the wire one request is a stream of one. Taken as that, each is read here.

        gRPC itself would read it of whoever sends, and wait for the rest of it for ever. It costs a twentieth of a
        call.
        """
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **_codecs(handler))
        if handler.unary_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream, takes_stream=False), **_codecs(handler)
            )
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.stream_stream, takes_stream=True), **_codecs(handler)
            )
        raise TypeError(f"{method} answers a stream with one message, which no method of ours does.")

    def _wrap_open(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """Health and reflection, which need no token, and so get no room."""
        call: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream

        async def request_of(context: Context) -> Message:
            try:
                with WhenLate(refuse_late):
                    return await only(context)
            except Exception as error:  # in wire form, whatever it is
                await self._refuse(method, context, error)

        async def answer(_: object, context: Context) -> object:
            return await call(await request_of(context), context)

        async def follow(_: object, context: Context) -> None:
            await call(await request_of(context), context)

        async def reflect(_: object, context: Context) -> AsyncIterator[object]:
            self._reflections += 1
            try:
                if self._reflections > MAX_REFLECTIONS:
                    raise ResourceExhaustedError("TOO_MANY_STREAMS", "Too many streams are open; try again later.")
                async for response in call(timely(context), context):
                    yield response
            except Exception as error:  # likewise
                await self._refuse(method, context, error)
            finally:
                self._reflections -= 1

        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(answer, **_codecs(handler))
        return grpc.stream_stream_rpc_method_handler(follow if handler.unary_stream else reflect, **_codecs(handler))

    def _authorize(self, method: str, context: Context) -> str:
        """Who shares room with the caller. Raises UnauthenticatedError, PermissionDeniedError."""
        access = self._access[method]
        if access == access_pb2.ACCESS_PUBLIC:
            return ""
        token = _bearer(context)
        principal = self._verifier.verify(token, time.time())
        if principal.role not in auth.ALLOWED[access]:
            raise PermissionDeniedError(
                "ROLE_NOT_ALLOWED", f"The role {principal.role} may not call {method}.", method=method
            )
        auth.set_current(principal)
        return holder_of(principal)

    async def _received(self, method: str, context: Context, holder: str, room: contextlib.ExitStack) -> Message:
        """The request of a call that has one, with room for it. Raises ResourceExhaustedError, InvalidArgumentError."""
        if method in self._bulky:
            held = room.enter_context(self._calls_room.hold(holder, MAX_MESSAGE_BYTES))
            request = await only(context)
            held.shrink(request.ByteSize())
            return request
        with WhenLate(lambda: room.enter_context(self._calls_room.hold(holder, MAX_MESSAGE_BYTES))):
            return await only(context)

    def _unary(self, method: str, call: Handler) -> Handler:
        count_ok = calls_total.labels(method, "OK")
        seconds = call_seconds.labels(method)
        if self._recorder is not None and method in self._recorded:
            call = _recorded(method, call, self._recorder)

        async def answer(_: object, context: Context) -> object:
            started = time.perf_counter()
            try:
                holder = self._authorize(method, context)
                remaining = context.time_remaining()
                limit_s = self._limits_s.get(method, MAX_UNARY_S)
                async with asyncio.timeout(min(remaining, limit_s) if remaining is not None else limit_s):
                    with contextlib.ExitStack() as room:
                        request = await self._received(method, context, holder, room)
                        check(request)
                        response: Message = await call(request, context)
            except Exception as error:  # in wire form, whatever it is
                await self._refuse(method, context, error)
            count_ok.inc()
            seconds.observe(time.perf_counter() - started)
            return response

        # Workers call every second; what they do is traced by their run.
        if self._access[method] == access_pb2.ACCESS_WORKER:
            return answer

        async def handle(_: object, context: Context) -> object:
            with tracing.span(method.removeprefix("/"), parent=_traceparent(context), kind=tracing.SERVER):
                return await answer(None, context)

        return handle

    def _stream(self, method: str, call: Handler, *, takes_stream: bool) -> Handler:
        async def handle(_: object, context: Context) -> AsyncIterator[object]:
            self._streams += 1
            account_id = ""
            room = contextlib.ExitStack()
            try:
                holder = self._authorize(method, context)
                if self._streams > MAX_STREAMS:
                    raise ResourceExhaustedError("TOO_MANY_STREAMS", "Too many streams are open; try again later.")
                account_id = self._open_stream()
                if takes_stream:
                    room.enter_context(self._streams_room.hold(holder, MAX_MESSAGE_BYTES))
                    responses = call(self._each(method, context), context)
                else:
                    with contextlib.ExitStack() as meanwhile:
                        request = await in_time(self._received(method, context, holder, meanwhile))
                    check(request)
                    responses = call(request, context)
                async for response in until(self.stopping, responses):
                    yield response
                if self.stopping.is_set():
                    # Not the end of what is streamed: a client goes on where it was, with the next process.
                    raise UnavailableError("STOPPING", "The service is stopping; call again.")
            except Exception as error:  # likewise
                await self._refuse(method, context, error)
            else:
                calls_total.labels(method, "OK").inc()
            finally:
                room.close()
                self._streams -= 1
                self._close_stream(account_id)

        return handle

    async def _each(self, method: str, context: Context) -> AsyncIterator[Message | InvalidArgumentError]:
        """The requests of a stream, with an InvalidArgumentError in the place of one that breaks a rule.

        Whether that ends the stream is the handler's to say. The token is looked at for each: it may have ended.
        """
        async for request in timely(context):
            self._authorize(method, context)
            try:
                check(request)
            except InvalidArgumentError as error:
                yield error
            else:
                yield request

    def _open_stream(self) -> str:
        """Counts one of the caller's account; whose it is, "" for nobody's. Raises ResourceExhaustedError."""
        account_id = auth.current().account_id or ""
        if account_id:
            if self._streams_of_account[account_id] >= MAX_STREAMS_OF_ACCOUNT:
                raise ResourceExhaustedError(
                    "TOO_MANY_STREAMS", f"The account has {MAX_STREAMS_OF_ACCOUNT} streams open; close one first."
                )
            self._streams_of_account[account_id] += 1
        return account_id

    def _close_stream(self, account_id: str) -> None:
        if account_id:
            self._streams_of_account[account_id] -= 1
            if not self._streams_of_account[account_id]:
                del self._streams_of_account[account_id]

    async def _refuse(self, method: str, context: Context, error: Exception) -> NoReturn:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        status = to_status(method, error)
        calls_total.labels(method, code_pb2.Code.Name(status.code)).inc()
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(_STATUS_CODES[status.code], status.message)


async def until(stopping: asyncio.Event, responses: AsyncIterator[T]) -> AsyncIterator[T]:
    """The responses, ended early when the server stops: a stream that is followed has no end of its own.

    A handler is cancelled and closed when its client goes away, so that what it holds is given back at once.
    """
    stop = asyncio.ensure_future(stopping.wait())
    following: asyncio.Future[T | object] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(responses, _END))
            await asyncio.wait({stop, following}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            response = following.result()
            if response is _END:
                return
            yield cast(T, response)
    finally:
        stop.cancel()
        if following is not None and not following.done():
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        if isinstance(responses, AsyncGenerator):
            await responses.aclose()


_END = object()
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _recorded(method: str, call: Handler, recorder: Recorder) -> Handler:
    async def handle(request: Message, context: Context) -> Message:
        call_id = new_id()
        await recorder.asked(call_id, auth.current(), method, request)
        try:
            response: Message = await call(request, context)
        except Exception as error:  # its outcome is recorded, whatever it is
            await recorder.answered(call_id, code_pb2.Code.Name(to_status(method, error).code))
            raise
        await recorder.answered(call_id, "OK", response)
        return response

    return handle


def _codecs(handler: grpc.RpcMethodHandler[Any, Any]) -> dict[str, Any]:
    return {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}


def _traceparent(context: Context) -> str | None:
    return next((str(value) for key, value in context.invocation_metadata() or () if key == tracing.HEADER), None)


def _bearer(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            scheme, _, token = str(value).partition(" ")
            if scheme.lower() == "bearer":
                return token
    raise UnauthenticatedError("TOKEN_MISSING", "Send the metadata `authorization: Bearer <token>`.")


def check(request: Message) -> None:
    """Raises InvalidArgumentError naming every field that breaks a rule of its proto."""
    violations = protovalidate.collect_violations(request)
    if violations:
        found = [(_path(violation.proto), violation.proto.message) for violation in violations]
        raise InvalidArgumentError(
            "FIELD_INVALID",
            "; ".join(f"{path}: {rule}" for path, rule in found),
            **dict(found),
        )


def _path(violation: Any) -> str:
    return ".".join(element.field_name for element in violation.field.elements) or "request"
