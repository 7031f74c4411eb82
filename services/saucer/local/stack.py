"""The whole of Saucer on one machine: PostgreSQL, NATS, Triton, every service as its own process, workers, gateway.

1. Keys and tokens: a key pair of the stack's own; services, workers and the administrator get tokens of it.
2. PostgreSQL with a database and role for each service, NATS, Triton: at the same time.
3. All services at the same time: they wait for what they need.
4. The region and spec of this machine, at a price, once.
5. profile.json, by which the command line finds it all.
6. A process that dies is started again, after a pause that grows.
"""

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.lib import auth
from saucer.lib.ids import new_id
from saucer.local.ports import LOOPBACK, choose_ports, release_ports
from saucer.local.process import Server, ServerStartError
from saucer.local.servers import NatsServer, PostgresServer, TritonServer, write_private
from saucer.local.service_process import ServiceProcess
from saucer.local.triton_env import ensure_triton_environment

SERVICES = ("billing", "dataset", "task", "training", "evaluation", "publishing")
REGION_ID = "local"
SPEC_ID = f"cpu-{os.cpu_count() or 1}"
CURRENCY = "EUR"
# For the record of administration.
OFFER_REASON = "this machine"
# 3.60 an hour: a thousandth of a unit a second, easy to recompute.
PRICE_PER_HOUR_MICROS = 3_600_000
KEY_ID = "local"
TOKEN_LIFETIME = timedelta(days=365)
# Between a death and the next start: doubles up to the greatest, forgotten after a healthy while.
RESTART_FIRST_S = 0.5
RESTART_GREATEST_S = 10.0
SUPERVISE_POLL_S = 0.2
TRITON_ROOM = 8
# Less than ServiceProcess.stop_timeout_s: all of a Saucer on one machine stops within ten seconds. The checkpoint of a
# large detector may take longer; then the lease runs out, and the run resumes from the one before.
WORKER_RELEASE_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Layout:
    """Where things lie below the stack's folder."""

    home: Path

    @property
    def profile(self) -> Path:
        return self.home / "profile.json"

    @property
    def scrape_targets(self) -> Path:
        """For Prometheus' file_sd_configs."""
        return self.home / "prometheus-targets.json"

    @property
    def objects(self) -> Path:
        return self.home / "objects"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def private_key(self) -> Path:
        return self.home / "keys" / "private.pem"

    @property
    def public_keys(self) -> Path:
        return self.home / "keys" / "public.json"

    @property
    def revoked(self) -> Path:
        return self.home / "keys" / "revoked.txt"

    def token(self, role: auth.Role) -> Path:
        return self.home / "keys" / f"{role}.token"


@dataclass
class Stack:
    """Starts, supervises and stops everything. One instance at a time in a folder."""

    home: Path
    # The folder of triton-constraints.txt.
    project: Path
    workers: int = 1
    # Of each worker; 0: the machine's, shared out among them.
    worker_threads: int = 0
    say: Say = print
    # Loses durability for speed; for tests.
    fast: bool = False
    triton_folder: Path | None = None
    # Of an OTLP collector; empty: no traces.
    otlp_endpoint: str = ""
    processes: dict[str, ServiceProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Resolved, since its processes work in folders of their own.
        self.home = self.home.resolve()
        self.layout = Layout(self.home)
        self._servers: list[Server] = []
        self._supervisors: list[asyncio.Task[None]] = []
        self._wanted: dict[str, bool] = {}

    @property
    def profile(self) -> dict[str, object]:
        """What the command line and the tests connect with."""
        return {
            "services": {
                name: process.address for name, process in self.processes.items() if process.address is not None
            },
            "gateway": f"http://{LOOPBACK}:{self._ports['gateway-http']}",
            "nats": self.nats.uri,
            "token": self.layout.token(auth.Role.ADMINISTRATOR).read_text(),
            "private_key_file": str(self.layout.private_key),
            "key_id": KEY_ID,
            "revoked_tokens_file": str(self.layout.revoked),
            "region_id": REGION_ID,
            "spec_id": SPEC_ID,
        }

    async def start(self) -> None:
        """Returns when everything serves. Raises ServerStartError, TritonEnvironmentError; nothing runs then."""
        self.layout.home.mkdir(parents=True, exist_ok=True)
        self.layout.logs.mkdir(exist_ok=True)
        self._make_keys()
        self._ports = choose_ports(self.layout.home / "ports.json", self._port_names())
        try:
            await self._start_servers()
            self._describe(await self._databases())
            self.say(f"Starting {', '.join(self.processes)}…")
            await asyncio.gather(*(process.start() for process in self.processes.values()))
            await self._offer()
        except BaseException:
            await self.stop()
            raise
        write_private(self.layout.profile, json.dumps(self.profile, indent=2))
        self.layout.scrape_targets.write_text(json.dumps(self._scrape_targets(), indent=2))
        for name in self.processes:
            self._wanted[name] = True
            self._supervisors.append(asyncio.create_task(self._supervise(name)))

    async def stop(self) -> None:
        """Workers first, so that they can give their runs back; services and Triton; then NATS and PostgreSQL."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        self._supervisors.clear()
        workers = [process for process in self.processes.values() if process.address is None]
        triton = [server for server in self._servers if isinstance(server, TritonServer)]
        services = [process for process in self.processes.values() if process not in workers]
        rest = [server for server in self._servers if server not in triton]
        for together in (workers, [*services, *triton], rest):
            await asyncio.gather(*(server.stop() for server in together))
        release_ports(self._ports.values())

    async def kill(self, name: str) -> None:
        """SIGKILL for one process, which stays down until restart(): for tests of crashes."""
        self._wanted[name] = False
        self.processes[name].kill()
        await self.processes[name].wait()

    async def restart(self, name: str) -> None:
        """Starts a process again that kill() ended."""
        await self.processes[name].start()
        self._wanted[name] = True

    def _scrape_targets(self) -> list[dict[str, object]]:
        return [
            {"targets": [f"{LOOPBACK}:{self._ports[f'{name}-metrics']}"], "labels": {"process": name}}
            for name in self.processes
        ]

    def _port_names(self) -> list[str]:
        names = [*SERVICES, "gateway", *(f"worker-{number}" for number in range(1, self.workers + 1))]
        return [f"{name}-{kind}" for name in names for kind in ("grpc", "metrics")] + ["gateway-http"]

    def _make_keys(self) -> None:
        folder = self.layout.private_key.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        if not self.layout.private_key.exists():
            auth.generate_keys(self.layout.private_key, self.layout.public_keys, KEY_ID)
        self.layout.revoked.touch()
        for role in (auth.Role.SERVICE, auth.Role.WORKER, auth.Role.ADMINISTRATOR):
            token = auth.mint(
                self.layout.private_key.read_bytes(),
                KEY_ID,
                token_id=new_id(),
                subject=f"local-{role}",
                role=role,
                account_id=None,
                now=datetime.now(UTC),
                lifetime=TOKEN_LIFETIME,
            )
            write_private(self.layout.token(role), token)

    async def _start_servers(self) -> None:
        triton_folder = self.triton_folder or self.project / ".venv-triton"
        environment = await asyncio.to_thread(
            ensure_triton_environment, triton_folder, self.project / "triton-constraints.txt", self.say
        )
        self.say("Starting PostgreSQL, NATS and Triton…")
        self.postgres = PostgresServer(self.home / "postgres", fast=self.fast)
        self.nats = NatsServer(self.home / "nats")
        self.triton = TritonServer(self.home / "triton", self.layout.models, environment)
        self._servers = [self.postgres, self.nats, self.triton]
        await asyncio.gather(*(server.start() for server in self._servers))

    async def _databases(self) -> dict[str, str]:
        return {name: await self.postgres.database(name) for name in SERVICES}

    def _describe(self, databases: dict[str, str]) -> None:
        """Every process with its settings."""
        addresses = {f"{name}_address": self._address(name, "grpc") for name in SERVICES}
        store: dict[str, object] = {"object_store_url": f"file://{self.layout.objects}"}
        caller: dict[str, object] = {"token_file": self.layout.token(auth.Role.SERVICE)}
        machine: dict[str, object] = {"region_id": REGION_ID, "spec_id": SPEC_ID}
        own: dict[str, dict[str, object]] = {
            "billing": {},
            "dataset": {**store, "work_folder": self.home / "dataset" / "work"},
            "task": {**_pick(addresses, "dataset", "billing"), **caller},
            "training": {**store},
            "evaluation": {**store},
            "publishing": {
                **_pick(addresses, "billing"),
                **caller,
                **store,
                **machine,
                "triton_address": self.triton.grpc_address,
                "triton_control_key": self.triton.control_key,
                "triton_repository": self.layout.models,
                "room": TRITON_ROOM,
                "work_folder": self.home / "publishing" / "work",
            },
        }
        for name in SERVICES:
            settings = {**own[name], "database_url": databases[name]}
            self._add(name, f"saucer.{name}.main", {**self._server_settings(name), **settings})
        gateway = {"http_listen": self._address("gateway", "http"), **addresses}
        self._add("gateway", "saucer.gateway.main", {**self._server_settings("gateway"), **gateway})
        for number in range(1, self.workers + 1):
            name = f"worker-{number}"
            worker: dict[str, object] = {
                **_pick(addresses, "training"),
                **store,
                **machine,
                "token_file": self.layout.token(auth.Role.WORKER),
                "worker_id": name,
                "work_folder": self.home / name / "work",
                "release_s": WORKER_RELEASE_S,
            }
            if self.worker_threads or self.workers > 1:
                worker["threads"] = self.worker_threads or max(1, len(os.sched_getaffinity(0)) // self.workers)
            self._add(name, "saucer.worker.main", worker)

    def _server_settings(self, name: str) -> dict[str, object]:
        return {
            "listen": self._address(name, "grpc"),
            "nats_url": self.nats.uri_of(name),
            "public_keys_file": self.layout.public_keys,
            "revoked_tokens_file": self.layout.revoked,
        }

    def _add(self, name: str, module: str, settings: dict[str, object]) -> None:
        metrics_port = self._ports[f"{name}-metrics"]
        usual = {
            "log_format": "text",
            "metrics_listen": f"{LOOPBACK}:{metrics_port}",
            "otlp_endpoint": self.otlp_endpoint,
        }
        self.processes[name] = ServiceProcess(
            self.home / name, module, {**usual, **settings}, metrics_port=metrics_port
        )

    def _address(self, name: str, kind: str) -> str:
        return f"{LOOPBACK}:{self._ports[f'{name}-{kind}']}"

    async def _offer(self) -> None:
        """This machine's region and spec; they may be there already, by another name or at another price by now."""
        metadata = (("authorization", f"Bearer {self.layout.token(auth.Role.ADMINISTRATOR).read_text()}"),)
        async with grpc.aio.insecure_channel(self._address("billing", "grpc")) as channel:
            billing = billing_pb2_grpc.BillingServiceStub(channel)
            region = billing_pb2.CreateRegionRequest(
                request_id=new_id(), region_id=REGION_ID, display_name="This machine", reason=OFFER_REASON
            )
            spec = billing_pb2.CreateSpecRequest(
                request_id=new_id(),
                region_id=REGION_ID,
                spec_id=SPEC_ID,
                display_name=f"{os.cpu_count()} processor cores of this machine",
                gpus=0,
                cpu_cores=os.cpu_count() or 1,
                max_count=1,
                price_per_hour_micros=PRICE_PER_HOUR_MICROS,
                currency=CURRENCY,
                reason=OFFER_REASON,
            )
            calls: list[tuple[Any, Any]] = [(billing.CreateRegion, region), (billing.CreateSpec, spec)]
            for call, request in calls:
                try:
                    await call(request, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                        raise

    async def _supervise(self, name: str) -> None:
        process, pause_s = self.processes[name], RESTART_FIRST_S
        while True:
            await asyncio.sleep(SUPERVISE_POLL_S)
            if process.running or not self._wanted[name]:
                continue
            self.say(f"{name} has ended with {await process.wait()}; starting it again in {pause_s:.1f} s.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESTART_GREATEST_S)
            with suppress(ServerStartError):
                await process.start()
                pause_s = RESTART_FIRST_S


def _pick(addresses: dict[str, str], *names: str) -> dict[str, object]:
    return {f"{name}_address": addresses[f"{name}_address"] for name in names}
