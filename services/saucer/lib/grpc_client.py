"""Calls to other services: a token on each, a deadline on each, retries where nothing was begun, typed errors back."""

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from saucer.lib import errors, tracing
from saucer.lib.grpc_server import MAX_MESSAGE_BYTES
from saucer.lib.tls import Identity

DEFAULT_TIMEOUT_S = 10.0
# UNAVAILABLE only: the call did not reach a handler, or the handler said that it may be repeated.
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
# Of every channel, with asyncio or without.
CHANNEL_OPTIONS: Sequence[tuple[str, str | int]] = (
    ("grpc.service_config", json.dumps(RETRIES)),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response")

_ERRORS: dict[grpc.StatusCode, type[errors.DomainError]] = {
    grpc.StatusCode[kind.code]: kind
    for kind in (
        errors.InvalidArgumentError,
        errors.AlreadyExistsError,
        errors.FailedPreconditionError,
        errors.PermissionDeniedError,
        errors.UnauthenticatedError,
        errors.ResourceExhaustedError,
        errors.DataLossError,
        errors.UnavailableError,
    )
}


class RpcFailure(Protocol):
    """What a failed call says of itself, with asyncio or without."""

    def code(self) -> grpc.StatusCode:
        """Its status."""

    def details(self) -> str | None:
        """Its sentence."""

    def trailing_metadata(self) -> Any:
        """Pairs of key and value; grpc and grpc.aio type them differently."""


class TokenFile:
    """A token in a file, read anew for each call, so that it can be replaced while the process runs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The authorization header."""
        return (("authorization", f"Bearer {self._file.read_text().strip()}"),)


def channel(address: str, identity: Identity | None = None) -> grpc.aio.Channel:
    """A channel to host:port that connects when used, and again when lost; with an identity, over mutual TLS."""
    if identity is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, identity.channel_credentials(), options=CHANNEL_OPTIONS)


async def call(
    method: Callable[..., Awaitable[Response]],
    request: Message,
    token: TokenFile,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Response:
    """Makes a unary call. Raises the DomainError that the other side raised; UnavailableError if it did not answer."""
    try:
        return await method(request, metadata=token.metadata() + tracing.metadata(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error


def from_rpc(error: RpcFailure) -> errors.DomainError:
    """The typed error of a failed call."""
    code = error.code()
    reason, metadata = code.name, {}
    for info in _error_infos(error):
        reason, metadata = info.reason, dict(info.metadata)
    message = error.details() or code.name
    if code is grpc.StatusCode.NOT_FOUND:
        return errors.NotFoundError(reason.removesuffix("_NOT_FOUND").lower(), metadata.get("id", ""))
    kind = _ERRORS.get(
        code, errors.UnavailableError if code is grpc.StatusCode.DEADLINE_EXCEEDED else errors.DomainError
    )
    return kind(reason, message, **metadata)


def _error_infos(error: RpcFailure) -> list[error_details_pb2.ErrorInfo]:
    infos = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    infos.append(info)
    return infos
