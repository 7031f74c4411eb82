"""Where Saucer is and who asks: the profile, the token, and a stub for each service.

A profile is a JSON file, written by `saucer up`:

    {"services": {"billing": "host:port", "dataset": …, "task": …, "training": …, "evaluation": …, "publishing": …,
                  "gateway": "host:port of its gRPC"},
     "token": "…", "account_id": "…", "private_key_file": "…", "key_id": "…", "region_id": "…", "spec_id": "…",
     "tls": {"ca_file": "…", "certificate_file": "…", "key_file": "…"}}

All but `services` may be missing. A relative path is relative to the profile's folder; account, region and spec are
defaults of their options. What else stands in it is not looked at.
"""

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc

from saucer.billing.v1 import billing_pb2_grpc
from saucer.cli.errors import CliError, domain_error
from saucer.dataset.v1 import dataset_pb2_grpc
from saucer.evaluation.v1 import evaluation_pb2_grpc
from saucer.gateway.v1 import gateway_pb2_grpc
from saucer.lib.errors import UnavailableError
from saucer.lib.grpc_client import CHANNEL_OPTIONS
from saucer.lib.tls import Identity
from saucer.lib.v1 import calls_pb2_grpc, dead_events_pb2_grpc
from saucer.publishing.v1 import publishing_pb2_grpc
from saucer.task.v1 import task_pb2_grpc
from saucer.training.v1 import training_pb2_grpc

DEFAULT_PROFILE = Path(".saucer/local/profile.json")
# A unary call without an answer by then fails.
TIMEOUT_S = 60.0
# A stream that breaks off is opened again, so often in a row without a word from it.
MAX_RECONNECTS = 30
RECONNECT_S = 1.0

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Profile:
    """One Saucer, as one user sees it."""

    services: dict[str, str]
    token: str | None = None
    account_id: str | None = None
    private_key_file: Path | None = None
    key_id: str | None = None
    region_id: str | None = None
    spec_id: str | None = None
    # Of a Saucer whose ports have TLS.
    identity: Identity | None = None


def read_profile(file: Path) -> Profile:
    """Raises CliError if it is missing or not a profile."""
    try:
        content = json.loads(file.read_text())
        key, tls = content.get("private_key_file"), content.get("tls")
        return Profile(
            {str(name): str(address) for name, address in content["services"].items()},
            content.get("token"),
            content.get("account_id"),
            file.parent / key if key else None,
            content.get("key_id"),
            content.get("region_id"),
            content.get("spec_id"),
            Identity(*(file.parent / tls[name] for name in ("ca_file", "certificate_file", "key_file")))
            if tls
            else None,
        )
    except FileNotFoundError as error:
        raise CliError(
            f"There is no profile {file}. `saucer up` writes one; or name another with --profile or SAUCER_PROFILE."
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CliError(f"The profile {file} cannot be read: {error!r}.") from error


def account_of_token(token: str) -> str | None:
    """The account that a token says it is of; None for the platform's roles. Not verified: services do that."""
    try:
        body = token.split(".")[1]
        account = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))).get("account")
    except (IndexError, ValueError, binascii.Error, AttributeError):
        return None
    return account if isinstance(account, str) else None


@dataclass
class Connection:
    """Stubs of every service, each on a channel made when first used. close() closes them."""

    profile: Profile
    token: str | None
    # Of an administrator's call; "" leaves it to the token.
    account_id: str
    _channels: dict[str, grpc.Channel] = field(default_factory=dict)

    def required_account(self) -> str:
        """The account that is meant. Raises CliError if none is named and the token has none."""
        account_id = self.account_id or account_of_token(self.token or "")
        if account_id is None:
            raise CliError("Which account? Name one with --account, from `saucer account list`.")
        return account_id

    @cached_property
    def billing(self) -> billing_pb2_grpc.BillingServiceStub:
        """Accounts, prices, statements."""
        return billing_pb2_grpc.BillingServiceStub(self._channel("billing"))

    @cached_property
    def dataset(self) -> dataset_pb2_grpc.DatasetServiceStub:
        """Uploads, imports, versions."""
        return dataset_pb2_grpc.DatasetServiceStub(self._channel("dataset"))

    @cached_property
    def task(self) -> task_pb2_grpc.TaskServiceStub:
        """Tasks."""
        return task_pb2_grpc.TaskServiceStub(self._channel("task"))

    @cached_property
    def training(self) -> training_pb2_grpc.TrainingServiceStub:
        """Runs and models."""
        return training_pb2_grpc.TrainingServiceStub(self._channel("training"))

    @cached_property
    def evaluation(self) -> evaluation_pb2_grpc.EvaluationServiceStub:
        """Scores."""
        return evaluation_pb2_grpc.EvaluationServiceStub(self._channel("evaluation"))

    @cached_property
    def publishing(self) -> publishing_pb2_grpc.PublishingServiceStub:
        """Deployments."""
        return publishing_pb2_grpc.PublishingServiceStub(self._channel("publishing"))

    @cached_property
    def events(self) -> gateway_pb2_grpc.EventServiceStub:
        """The event stream."""
        return gateway_pb2_grpc.EventServiceStub(self._channel("gateway"))

    def dead_events(self, service: str) -> dead_events_pb2_grpc.DeadEventServiceStub:
        """What one service could not consume."""
        return dead_events_pb2_grpc.DeadEventServiceStub(self._channel(service))

    def calls(self, service: str) -> calls_pb2_grpc.CallServiceStub:
        """Who did what in one service."""
        return calls_pb2_grpc.CallServiceStub(self._channel(service))

    def _channel(self, service: str) -> grpc.Channel:
        if service not in self.profile.services:
            raise CliError(f"The profile names no address of {service}.")
        if service not in self._channels:
            self._channels[service] = self._open(self.profile.services[service])
        return grpc.intercept_channel(self._channels[service], _Bearer(self.token))

    def _open(self, address: str) -> grpc.Channel:
        if self.profile.identity is None:
            return grpc.insecure_channel(address, CHANNEL_OPTIONS)
        try:
            return grpc.secure_channel(address, self.profile.identity.channel_credentials(), CHANNEL_OPTIONS)
        except OSError as error:
            raise CliError(f"The profile's TLS files cannot be read: {error}.") from error

    def close(self) -> None:
        """Ends what is still open."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends the token with each call, and bounds those that do not stream."""

    def __init__(self, token: str | None) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        return continuation(self._details(client_call_details, TIMEOUT_S), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        return continuation(self._details(client_call_details, None), request)

    def intercept_stream_stream(self, continuation: Callable[..., Any], client_call_details: Any, requests: Any) -> Any:
        return continuation(self._details(client_call_details, None), requests)

    def _details(self, details: Any, timeout: float | None) -> _Details:
        return _Details(
            details.method,
            details.timeout or timeout,
            (*(details.metadata or ()), *self._metadata),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


class Stream(Protocol[R_co]):
    """A streaming call."""

    def __iter__(self) -> Iterator[R_co]: ...

    def cancel(self) -> Any: ...


@contextmanager
def streaming(call: Stream[R_co]) -> Iterator[Iterable[R_co]]:
    """The messages of a streaming call, cancelled when the block ends, however it ends."""
    try:
        yield call
    finally:
        call.cancel()


def follow(open_stream: Callable[[R_co | None], Stream[R_co]]) -> Iterator[R_co]:
    """The messages of a stream that is opened again where it was, while its service restarts.

    Args:
        open_stream: makes the call, given the last message that came; None: the first time.

    Raises:
        grpc.RpcError: any failure but UNAVAILABLE; that too, if the service never answered, or is gone for too long.
    """
    last: R_co | None = None
    failures, answered = 0, False
    while True:
        try:
            with streaming(open_stream(last)) as messages:
                for message in messages:
                    last, failures, answered = message, 0, True
                    yield message
            return
        except grpc.RpcError as error:
            failure = domain_error(error)
            answered = answered or failure.reason == "STOPPING"
            if not isinstance(failure, UnavailableError) or not answered or failures >= MAX_RECONNECTS:
                raise
        failures += 1
        time.sleep(RECONNECT_S)
