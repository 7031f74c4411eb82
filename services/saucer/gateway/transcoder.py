"""HTTP and JSON in, gRPC out. Generic: it knows the contracts' descriptors, and nothing of what they mean.

1. Path and verb choose a method (routes.py); path, query and body fill its request (mapping.py).
2. The header `authorization` goes on as metadata; who may do what is decided by the service alone. A body is read only
   of a caller whose token is valid, within a limit of time, and while there is room for it.
3. A unary method answers JSON, a failed one the JSON of its google.rpc.Status with the HTTP status of its code.
4. A method that streams answers server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html):
   a message an event; `id` is the message's `sequence`, and a client that comes back with Last-Event-ID goes on after
   it. A failure before the first message is an HTTP error, a later one an event `error`. At the stream's end comes an
   event `end`; a client that comes back for more then gets 204, at which browsers stop asking.
5. A method that streams its requests is UNIMPLEMENTED here.
6. The header `grpc-timeout` (https://grpc.io/docs/guides/deadlines: `10S`, `500m`) sets the deadline of the call.
"""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from prometheus_client import Counter, Histogram
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from saucer.gateway.mapping import HTTP_STATUS, error_json, fill, to_json
from saucer.gateway.routes import Match, Route, find
from saucer.lib import tracing
from saucer.lib.auth import Verifier
from saucer.lib.byte_budget import ByteBudget, Held, holder_of
from saucer.lib.errors import DeadlineExceededError, DomainError, InvalidArgumentError, UnauthenticatedError
from saucer.lib.grpc_server import MAX_UNARY_S, until
from saucer.lib.grpc_status import ERROR_DOMAIN, to_status

# An image of 20 MiB, in base64, fits. A larger body is 413.
MAX_BODY_BYTES = 32 * 1024 * 1024
# A body is whole so long after it is begun to be read, or the request is 408.
MAX_BODY_S = 60.0
# A body up to this counts as small. Small ones have room of their own, so that large ones cannot keep them out: 1024 at
# once, 512 of one account.
SMALL_BODY_BYTES = 64 * 1024
SMALL_BODIES_BYTES = 1024 * SMALL_BODY_BYTES
# Large bodies that are turned into messages at once: meanwhile each is there about four times over.
CONVERSIONS = 2
# What still comes of a body that is refused is taken and dropped for so long: a connection that is closed over it is
# reset, often before the client has read why.
LINGER_S = 2.0
# More query parameters than this are refused.
MAX_PARAMETERS = 200
# JSON of more than this is read and written in a thread, so that other calls do not wait.
INLINE_BYTES = 64 * 1024
# How long the answer to a streaming call waits for a first message, or for the error that comes in its place.
FIRST_MESSAGE_S = 1.0
# A comment goes out this often, so that proxies keep a silent stream open.
PING_S = 15
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_END = object()

requests_total = Counter(
    "saucer_gateway_requests_total", "HTTP requests by method called and status", ["method", "code"]
)
request_seconds = Histogram("saucer_gateway_request_seconds", "Duration of unary requests", ["method"])

UnaryCall = Callable[..., Awaitable[Message]]
StreamCall = Callable[..., "grpc.aio.UnaryStreamCall[Message, Message]"]


class HttpError(Exception):
    """A refusal that no service made: it has an HTTP status of its own beside its google.rpc.Status."""

    def __init__(self, http_status: int, error: DomainError, *, unread: bool = False, **headers: str) -> None:
        """`unread`: the body is not whole, so the connection cannot be used again."""
        super().__init__(error.message)
        self.http_status = http_status
        self.error = error
        self.unread = unread
        self.headers = headers | ({"Connection": "close"} if unread else {})


class NoSuchRouteError(DomainError):
    """There is no such path."""

    code = "NOT_FOUND"


class WrongVerbError(DomainError):
    """There is the path, with other verbs."""

    code = "UNIMPLEMENTED"


class RequestStreamError(DomainError):
    """A method that HTTP and JSON cannot call."""

    code = "UNIMPLEMENTED"


class Transcoder:
    """An ASGI application over the routes."""

    def __init__(
        self,
        routes: Sequence[Route],
        channels: Mapping[str, grpc.aio.Channel],
        verifier: Verifier,
        body_memory_bytes: int,
    ) -> None:
        """`channels` by name of service. Raises KeyError if a route's service has none.

        Large bodies have `body_memory_bytes` together, each until its call is answered.
        """
        self._routes = routes
        self._verifier = verifier
        self.large_bodies = ByteBudget(body_memory_bytes)
        self.small_bodies = ByteBudget(SMALL_BODIES_BYTES)
        self._conversions = asyncio.Semaphore(CONVERSIONS)
        self._unary: dict[tuple[str, str], UnaryCall] = {}
        self._streams: dict[tuple[str, str], StreamCall] = {}
        self._stopping = asyncio.Event()
        for route in routes:
            self._connect(route, channels[route.service])

    def stop(self) -> None:
        """Ends the streams that are open."""
        self._stopping.set()

    def _connect(self, route: Route, channel: grpc.aio.Channel) -> None:
        codecs: dict[str, Any] = {
            "request_serializer": GetMessageClass(route.method.input_type).SerializeToString,
            "response_deserializer": GetMessageClass(route.method.output_type).FromString,
        }
        key = (route.service, route.grpc_path)
        if route.method.client_streaming:
            return
        if route.method.server_streaming:
            self._streams[key] = channel.unary_stream(route.grpc_path, **codecs)
        else:
            self._unary[key] = channel.unary_unary(route.grpc_path, **codecs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        request = Request(scope, receive)
        name, unread = "unknown", False
        try:
            match = self._match(request)
            name = match.route.method.full_name
            response = await self._answer(request, match)
        except HttpError as error:
            status = to_status(name, error.error)
            body = error_json(status)
            body["error"]["code"] = error.http_status
            response = JSONResponse(body, error.http_status, error.headers)
            unread = error.unread
        except grpc.aio.AioRpcError as error:
            response = _error_response(_status_of(error, match.route.service))
        except ClientDisconnect:
            return
        except Exception as error:  # a fault of ours: INTERNAL, with its trace in the log
            response = _error_response(to_status(name, error))
        requests_total.labels(name, str(response.status_code)).inc()
        if unread:
            await _answer_and_drop(response, receive, send)
        else:
            await response(scope, receive, send)

    def _match(self, request: Request) -> Match:
        raw_path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
        path = raw_path.partition(b"?")[0].decode("ascii", errors="replace")
        found = find(self._routes, request.method, path)
        if isinstance(found, Match):
            return found
        if not found:
            raise HttpError(404, NoSuchRouteError("PATH_UNKNOWN", f"There is nothing at {request.url.path}."))
        verbs = ", ".join(sorted(found))
        wrong = WrongVerbError("VERB_UNKNOWN", f"{request.url.path} takes {verbs}, not {request.method}.")
        raise HttpError(405, wrong, Allow=verbs)

    async def _answer(self, request: Request, match: Match) -> Response:
        if match.route.method.client_streaming:
            raise RequestStreamError(
                "REQUESTS_STREAMED", f"{match.route.method.full_name} takes a stream of requests, by gRPC only."
            )
        with self._room(request) if match.route.body else contextlib.nullcontext():
            return await self._call(request, match)

    def _room(self, request: Request) -> Held:
        """Room for the body of a caller whose token is valid.

        Raises HttpError: it has none, the body is too large, or there is no room now.
        """
        # One that comes in chunks states no length, and may become the largest.
        chunked = "transfer-encoding" in request.headers
        size_bytes = MAX_BODY_BYTES if chunked else int(request.headers.get("content-length", "0"))
        if size_bytes > MAX_BODY_BYTES:
            raise _unread(_too_large(), 413)
        try:
            principal = self._verifier.verify(_token(request), time.time())
            bodies = self.small_bodies if size_bytes <= SMALL_BODY_BYTES else self.large_bodies
            return bodies.hold(holder_of(principal), size_bytes)
        except DomainError as error:
            raise _unread(error) from error

    async def _call(self, request: Request, match: Match) -> Response:
        message = await self._request_message(request, match)
        route = match.route
        metadata = _metadata(request)
        timeout_s = _timeout_s(request)
        parent = request.headers.get(tracing.HEADER)
        if route.method.server_streaming:
            _resume(message, request.headers.get("last-event-id"))
            call = self._streams[route.service, route.grpc_path](message, metadata=metadata, timeout=timeout_s)
            return await self._events(call, route)
        started = time.perf_counter()
        with tracing.span(f"{request.method} {route.method.full_name}", parent=parent, kind=tracing.SERVER):
            answer = await self._unary[route.service, route.grpc_path](
                message, metadata=metadata + tracing.metadata(), timeout=min(timeout_s or MAX_UNARY_S, MAX_UNARY_S)
            )
        request_seconds.labels(route.method.full_name).observe(time.perf_counter() - started)
        return Response(await _encode(answer), media_type="application/json")

    async def _request_message(self, request: Request, match: Match) -> Message:
        try:
            query = parse_qsl(
                request.url.query, keep_blank_values=True, strict_parsing=False, max_num_fields=MAX_PARAMETERS
            )
        except ValueError as error:
            raise InvalidArgumentError(
                "TOO_MANY_PARAMETERS", f"At most {MAX_PARAMETERS} query parameters can be given."
            ) from error
        body = await _read_body(request) if match.route.body else b""
        message: Message = GetMessageClass(match.route.method.input_type)()
        if len(body) > INLINE_BYTES:
            async with self._conversions:
                await asyncio.to_thread(fill, message, match, query, body)
        else:
            fill(message, match, query, body)
        return message

    async def _events(self, call: "grpc.aio.UnaryStreamCall[Message, Message]", route: Route) -> Response:
        messages = aiter(call)
        first = asyncio.ensure_future(anext(messages, _END))
        try:
            await asyncio.wait({first}, timeout=FIRST_MESSAGE_S)
            if first.done() and first.result() is _END:
                return Response(status_code=204)
        except BaseException:
            first.cancel()
            call.cancel()
            raise
        events = self._encoded(call, first, messages, route)
        return EventSourceResponse(events, ping=PING_S, sep="\n")

    async def _encoded(
        self,
        call: "grpc.aio.UnaryStreamCall[Message, Message]",
        first: "asyncio.Future[Any]",
        messages: AsyncIterator[Message],
        route: Route,
    ) -> AsyncIterator[ServerSentEvent]:
        has_sequence = "sequence" in route.method.output_type.fields_by_name
        try:
            async for message in until(self._stopping, _chain(first, messages)):
                identifier = str(getattr(message, "sequence")) if has_sequence else None  # noqa: B009 - not every message has it
                yield ServerSentEvent((await _encode(message)).decode(), id=identifier)
            if not self._stopping.is_set():
                yield ServerSentEvent("{}", event="end")
        except grpc.aio.AioRpcError as error:
            yield ServerSentEvent(json.dumps(error_json(_status_of(error, route.service))), event="error")
        finally:
            call.cancel()


async def _chain(first: "asyncio.Future[Any]", messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
    try:
        message = await first
        if message is _END:
            return
        yield message
        async for following in messages:
            yield following
    finally:
        first.cancel()


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _unread(_too_large(), 413)
    except TimeoutError as error:
        slow = DeadlineExceededError("BODY_TOO_SLOW", f"The body was not whole within {MAX_BODY_S:g} seconds.")
        raise _unread(slow, 408) from error
    return bytes(body)


def _too_large() -> InvalidArgumentError:
    return InvalidArgumentError("BODY_TOO_LARGE", f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _unread(error: DomainError, http_status: int | None = None) -> HttpError:
    code = code_pb2.Code.Value(error.code)
    return HttpError(http_status or HTTP_STATUS[code], error, unread=True, **_challenge(code))


async def _answer_and_drop(response: Response, receive: Receive, send: Send) -> None:
    """Answers, then drops what comes until the client goes away."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body"})


async def _encode(message: Message) -> bytes:
    if message.ByteSize() > INLINE_BYTES:
        return await asyncio.to_thread(to_json, message)
    return to_json(message)


def _metadata(request: Request) -> tuple[tuple[str, str], ...]:
    token = request.headers.get("authorization")
    return (("authorization", token),) if token else ()


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise UnauthenticatedError("TOKEN_MISSING", "Send the header `Authorization: Bearer <token>`.")
    return token


def _timeout_s(request: Request) -> float | None:
    text = request.headers.get("grpc-timeout")
    if text is None:
        return None
    found = _TIMEOUT.fullmatch(text)
    if found is None:
        raise InvalidArgumentError("TIMEOUT_UNREADABLE", f"grpc-timeout: {text!r} is not like 10S or 500m.")
    return int(found[1]) * _UNIT_S[found[2]]


def _resume(message: Message, last_event_id: str | None) -> None:
    """Goes on after the last event that the client has, whatever the parameters say."""
    if not last_event_id or "after_sequence" not in message.DESCRIPTOR.fields_by_name:
        return
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) <= 18):
        raise InvalidArgumentError("EVENT_ID_UNREADABLE", f"last-event-id: {last_event_id[:40]!r} is none of ours.")
    setattr(message, "after_sequence", int(last_event_id))  # noqa: B010 - not every message has it


def _status_of(error: grpc.aio.AioRpcError, service: str) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    code: int = error.code().value[0]
    message = error.details() or ""
    if code == code_pb2.UNAVAILABLE:
        # grpc's own words name addresses inside the platform.
        message = f"The service {service} does not answer now; try again."
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=code_pb2.Code.Name(code), domain=ERROR_DOMAIN))
    return status


def _error_response(status: status_pb2.Status) -> JSONResponse:
    return JSONResponse(error_json(status), HTTP_STATUS[status.code], _challenge(status.code))


def _challenge(code: int) -> dict[str, str]:
    return {"WWW-Authenticate": "Bearer"} if code == code_pb2.UNAUTHENTICATED else {}
