"""Wires the gateway, top to bottom."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping, Sequence

import structlog
import uvicorn
from google.protobuf.descriptor import ServiceDescriptor
from pydantic import Field
from starlette.applications import Starlette

from saucer.billing.v1 import billing_pb2
from saucer.dataset.v1 import dataset_pb2
from saucer.evaluation.v1 import evaluation_pb2
from saucer.gateway import rpc
from saucer.gateway.app import Health, application
from saucer.gateway.routes import routes_of
from saucer.gateway.transcoder import Transcoder
from saucer.gateway.v1 import gateway_pb2
from saucer.lib.auth import Verifier
from saucer.lib.config import ServerSettings
from saucer.lib.run import Process, run
from saucer.lib.tls import Identity
from saucer.lib.v1 import calls_pb2, dead_events_pb2
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2

# Requests in progress at a stop have this long to end.
STOP_GRACE_S = 4
BACKLOG = 1024
# What each of them serves besides.
_USUAL = (
    dead_events_pb2.DESCRIPTOR.services_by_name["DeadEventService"],
    calls_pb2.DESCRIPTOR.services_by_name["CallService"],
)
# What can be called over HTTP, by the service that serves it. Calls of workers and of services alone have no rules.
CONTRACTS: Mapping[str, Sequence[ServiceDescriptor]] = {
    "billing": (billing_pb2.DESCRIPTOR.services_by_name["BillingService"], *_USUAL),
    "dataset": (dataset_pb2.DESCRIPTOR.services_by_name["DatasetService"], *_USUAL),
    "task": (task_pb2.DESCRIPTOR.services_by_name["TaskService"], *_USUAL),
    "training": (training_pb2.DESCRIPTOR.services_by_name["TrainingService"], *_USUAL),
    "evaluation": (evaluation_pb2.DESCRIPTOR.services_by_name["EvaluationService"], *_USUAL),
    "publishing": (publishing_pb2.DESCRIPTOR.services_by_name["PublishingService"], *_USUAL),
    "gateway": (gateway_pb2.DESCRIPTOR.services_by_name["EventService"],),
}

log = structlog.get_logger()


class GatewaySettings(ServerSettings):
    """The gateway has no database and no token: it calls with its caller's, which the public keys verify."""

    # host:port of HTTP.
    http_listen: str
    # host:port of each service.
    billing_address: str
    dataset_address: str
    task_address: str
    training_address: str
    evaluation_address: str
    publishing_address: str
    # For bodies above 64 KiB that are being received or answered (byte_budget.py shares it out); one that does not fit
    # is 429. The largest has 32 MiB.
    body_memory_bytes: int = Field(default=256 * 2**20, ge=64 * 2**20)


async def wire(process: Process, settings: GatewaySettings) -> None:
    """Events over gRPC, and every service over HTTP."""
    jetstream = await process.jetstream(settings)
    server = await process.serve(settings, [rpc.servicer(jetstream)])
    addresses = {
        "billing": settings.billing_address,
        "dataset": settings.dataset_address,
        "task": settings.task_address,
        "training": settings.training_address,
        "evaluation": settings.evaluation_address,
        "publishing": settings.publishing_address,
        "gateway": server.address,
    }
    channels = {name: process.channel(address) for name, address in addresses.items()}
    verifier = Verifier(settings.public_keys_file, settings.revoked_tokens_file)
    transcoder = Transcoder(routes_of(CONTRACTS), channels, verifier, settings.body_memory_bytes)
    _serve_http(process, settings.http_listen, transcoder, Health(channels))


def _serve_http(process: Process, listen: str, transcoder: Transcoder, health: Health) -> None:
    """HTTPS where the process has an identity; browsers have none to show. Raises OSError if the port is taken."""
    bound = bind(listen)
    server = _Server(application(transcoder, health), process.identity)
    ended = asyncio.Event()

    async def serve() -> None:
        try:
            await server.serve([bound])
        finally:
            ended.set()

    async def stop() -> None:
        health.stopping = True
        transcoder.stop()
        server.should_exit = True
        await ended.wait()

    process.background("http", serve())
    process.stack.push_async_callback(stop)
    log.info("serving_http", address=":".join(map(str, bound.getsockname()[:2])))


def bind(listen: str) -> socket.socket:
    """Takes host:port; port 0 takes a free one. Raises OSError if the port is taken."""
    host, _, port = listen.rpartition(":")
    family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    bound.setblocking(False)
    return bound


class _Server(uvicorn.Server):
    def __init__(self, app: Starlette, identity: Identity | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                backlog=BACKLOG,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=STOP_GRACE_S,
                ssl_certfile=identity.certificate_file if identity is not None else None,
                ssl_keyfile=identity.key_file if identity is not None else None,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes none: lib.run heeds signals, and stops this server with the rest of the process."""
        yield


def main() -> None:
    """Runs until it is told to stop."""
    run("gateway", GatewaySettings, wire)


if __name__ == "__main__":
    main()
