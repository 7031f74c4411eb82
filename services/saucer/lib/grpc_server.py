"""A gRPC server: one interceptor that authenticates, checks, limits, measures and turns errors into wire form, once.

1. Access stands in the protos, on each method; a method without one stops the start.
2. The role is checked before anything is looked up, so a refusal is the same whether the id exists or not.
3. Requests that carry bytes are read only then, and within a limit of time.
4. Requests are checked by the rules in the protos (protovalidate) before a handler sees them.
5. A call that changes something is recorded before it is done: who, what, with which token (records.py).
6. DomainErrors become google.rpc.Status with ErrorInfo; anything else is INTERNAL with a fixed sentence, and the log
   has the trace under the id that the caller is given.
"""

from __future__ import annotations  # some of grpc's classes are generic only for type checkers

import asyncio
import collections
import errno
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import asyncpg
import grpc
import protovalidate
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter, Gauge, Histogram

from saucer.lib import auth, tracing
from saucer.lib.errors import (
    DeadlineExceededError,
    DomainError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
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
# A request of a stream is whole so long after it is waited for, or the stream ends; that of a unary call is, within
# MAX_UNARY_S.
MAX_RECEIVE_S = 60.0
MAX_MESSAGE_BYTES = 24 * 1024 * 1024
# Pings that come more often, while nothing is sent, end the connection. Without a word gRPC takes five minutes, and our
# channels' pings would end every stream that is silent for two.
MIN_PING_INTERVAL_MS = 10_000
ERROR_DOMAIN = "saucer"
# Calls in progress at a stop have this long to end.
STOP_GRACE_S = 5.0

log = structlog.get_logger()
calls_total = Counter("saucer_grpc_calls_total", "Calls by outcome", ["method", "code"])
# For health checks that must be cheap.
serving = Gauge("saucer_serving", "1 while the gRPC server takes calls")
call_seconds = Histogram("saucer_grpc_call_seconds", "Duration of unary calls", ["method"])

Handler = Callable[..., Any]
# One request that grpc has read, or those that are still to be read.
_Given: TypeAlias = "Message | AsyncIterator[Message]"
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
    ) -> None:
        """`listen` is host:port; port 0 takes a free one. Raises OSError if the port is taken.

        With an identity callers need a certificate of its authority. Without a recorder no call is recorded.
        """
        recorded = recorded_of(servicers) if recorder is not None else frozenset()
        self._interceptor = _Interceptor(
            verifier, access_of(servicers), recorded, bulky_of(servicers), limits_of(servicers), recorder
        )
        self._server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
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
    ) -> None:
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
            if handler is None or method not in self._access:
                return handler  # unknown, or health and reflection, which are open
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary and method in self._bulky:
            # On the wire one request is a stream of one. Taken as that, it is read here: of a caller that may call at
            # all, and within a limit, where grpc would wait for the rest of it for ever. It costs a tenth of a call.
            return grpc.stream_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **codecs)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **codecs)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), **codecs)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, handler.stream_stream), **codecs)
        raise TypeError(f"{method} answers a stream with one message, which no method of ours does.")

    def _authorize(self, method: str, context: Context) -> None:
        access = self._access[method]
        if access == access_pb2.ACCESS_PUBLIC:
            return
        token = _bearer(context)
        principal = self._verifier.verify(token, time.time())
        if principal.role not in auth.ALLOWED[access]:
            raise PermissionDeniedError(
                "ROLE_NOT_ALLOWED", f"The role {principal.role} may not call {method}.", method=method
            )
        auth.set_current(principal)

    def _unary(self, method: str, call: Handler) -> Handler:
        count_ok = calls_total.labels(method, "OK")
        seconds = call_seconds.labels(method)
        if self._recorder is not None and method in self._recorded:
            call = _recorded(method, call, self._recorder)

        async def answer(given: _Given, context: Context) -> object:
            started = time.perf_counter()
            try:
                self._authorize(method, context)
                remaining = context.time_remaining()
                limit_s = self._limits_s.get(method, MAX_UNARY_S)
                async with asyncio.timeout(min(remaining, limit_s) if remaining is not None else limit_s):
                    request = given if isinstance(given, Message) else await _only(given)
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

        async def handle(given: _Given, context: Context) -> object:
            with tracing.span(method.removeprefix("/"), parent=_traceparent(context), kind=tracing.SERVER):
                return await answer(given, context)

        return handle

    def _stream(self, method: str, call: Handler) -> Handler:
        async def handle(given: _Given, context: Context) -> AsyncIterator[object]:
            self._streams += 1
            account_id = ""
            try:
                self._authorize(method, context)
                if isinstance(given, Message):
                    check(given)
                    received: object = given
                else:
                    received = self._each(method, given, context)
                if self._streams > MAX_STREAMS:
                    raise ResourceExhaustedError("TOO_MANY_STREAMS", "Too many streams are open; try again later.")
                account_id = self._open_stream()
                async for response in until(self.stopping, call(received, context)):
                    yield response
                if self.stopping.is_set():
                    # Not the end of what is streamed: a client goes on where it was, with the next process.
                    raise UnavailableError("STOPPING", "The service is stopping; call again.")
            except Exception as error:  # likewise
                await self._refuse(method, context, error)
            else:
                calls_total.labels(method, "OK").inc()
            finally:
                self._streams -= 1
                self._close_stream(account_id)

        return handle

    async def _each(
        self, method: str, requests: AsyncIterator[Message], context: Context
    ) -> AsyncIterator[Message | InvalidArgumentError]:
        """The requests of a stream, with an InvalidArgumentError in the place of one that breaks a rule.

        Whether that ends the stream is the handler's to say. The token is looked at for each: it may have ended.
        """
        while (request := await _in_time(anext(requests, None))) is not None:
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
# A server that is lost, that is stopping, or that has no room or connection left; nothing was committed.
_DATABASE_AWAY = (
    ConnectionError,
    # The name of a server whose container or pod is gone.
    socket.gaierror,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
)
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


async def _only(requests: AsyncIterator[Message]) -> Message:
    """The request of a call that has one."""
    try:
        return await requests.__anext__()
    except StopAsyncIteration as error:
        raise InvalidArgumentError("REQUEST_MISSING", "The call ended before its request was whole.") from error


async def _in_time(receiving: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(MAX_RECEIVE_S):
            return await receiving
    except TimeoutError as error:
        raise DeadlineExceededError(
            "REQUEST_TOO_SLOW", f"The request was not whole within {MAX_RECEIVE_S:g} seconds."
        ) from error


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


def to_status(method: str, error: Exception) -> status_pb2.Status:
    """google.rpc.Status (https://google.aip.dev/193) of an error."""
    if isinstance(error, DomainError):
        status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message)
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
        _add(status, info)
        if error.reason == "FIELD_INVALID":
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=field, description=rule)
                for field, rule in error.metadata.items()
            ]
            _add(status, error_details_pb2.BadRequest(field_violations=fields))
        return status
    if isinstance(error, TimeoutError):
        return status_pb2.Status(code=code_pb2.DEADLINE_EXCEEDED, message="The call took longer than its deadline.")
    if _is_database_away(error):
        log.warning("database_unavailable", method=method, error=repr(error))
        return to_status(method, UnavailableError("DATABASE_UNAVAILABLE", "The service cannot store now; try again."))
    trace_id = tracing.trace_id() or new_id()
    log.error("call_failed", method=method, trace_id=trace_id, exc_info=error)
    return status_pb2.Status(
        code=code_pb2.INTERNAL, message=f"Something went wrong in Saucer; its log has it under {trace_id}."
    )


def _is_database_away(error: Exception) -> bool:
    if isinstance(error, asyncpg.DataError):
        return False
    unreachable = isinstance(error, OSError) and error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}
    return unreachable or isinstance(error, _DATABASE_AWAY)


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
