"""A process of Saucer itself, as a child of the stack: `python -m saucer.<service>.main` with its settings."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from saucer.lib import grpc_client
from saucer.lib.config import TlsSettings
from saucer.local.process import Server, http_status

HEALTH_TIMEOUT_S = 2.0


class ServiceProcess(Server):
    """One service, worker or gateway. Its ports are the stack's, since its peers are told them too."""

    port_names = ()
    stop_signal = signal.SIGTERM
    start_timeout_s = 60.0
    stop_timeout_s = 7.0

    def __init__(self, data_dir: Path, module: str, settings: Mapping[str, object], *, metrics_port: int) -> None:
        """`settings` are the process's SAUCER_* variables, by their lower-case names; `listen` is a gRPC address."""
        self.name = data_dir.name
        super().__init__(data_dir)
        self._module = module
        self._settings = settings
        self._metrics_port = metrics_port

    @property
    def address(self) -> str | None:
        """host:port of its gRPC server; None for a worker."""
        listen = self._settings.get("listen")
        return str(listen) if listen is not None else None

    def _command(self) -> list[str]:
        return [sys.executable, "-m", self._module]

    def _environment(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("SAUCER_")}
        own = {f"SAUCER_{name.upper()}": str(value) for name, value in self._settings.items()}
        return others | own | {"PYTHONUNBUFFERED": "1"}

    async def _ready(self) -> bool:
        if self.address is None:
            return await http_status(self._metrics_port, "/metrics") == 200
        return await healthy(self.address)


async def healthy(address: str) -> bool:
    """Whether a gRPC server says that it serves; asked with the TLS identity of this process's own settings, if any."""
    async with grpc_client.channel(address, TlsSettings().identity) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(  # type: ignore[attr-defined] # the stubs lack it
                health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
