"""Every service with a part in money, in one process, on real PostgreSQL and NATS, with one clock that the test moves.

What is played: data (every version is its account's), workers (who lease, beat and finish over training's use cases)
and Triton (whose checks are told to publishing's use cases). A worker is heard of, and a deployment checked, once a
step, so that leases and gaps between checks are as long as a step.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import nats as nats_client
import pytest
from google.protobuf.message import Message
from nats.js import JetStreamContext

from saucer.billing import consumers as billing_consumers
from saucer.billing import rpc as billing_rpc
from saucer.billing.service import Billing
from saucer.dataset.v1 import dataset_pb2
from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.clock import ManualClock
from saucer.lib.cloudevent import CloudEvent, parse_headers
from saucer.lib.consumer import Consumer, Handles
from saucer.lib.grpc_client import TokenFile
from saucer.lib.objects import Objects
from saucer.lib.outbox import Relay
from saucer.lib.postgres import Database, connect, migrate
from saucer.lib.run import by_type
from saucer.lib.stream import STREAM
from saucer.publishing import consumers as publishing_consumers
from saucer.publishing.domain import Triton
from saucer.publishing.peers import Peers as PublishingPeers
from saucer.publishing.service import Deployments
from saucer.task import consumers as task_consumers
from saucer.task import scenes
from saucer.task.peers import Peers as TaskPeers
from saucer.task.service import Tasks
from saucer.training import consumers as training_consumers
from saucer.training.bell import Bell
from saucer.training.service import Training
from tests.support.ledger import START
from tests.support.servers import NewDatabase

POLL_S = 0.005
POOL = 8
_SPLITS = ("train", "validation", "test")


@dataclass
class Part:
    """A service: its database, and what runs in the background."""

    name: str
    database: Database
    jetstream: JetStreamContext
    handlers: Sequence[Handles]
    running: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        consumer = Consumer(self.name, self.database, self.jetstream, by_type(self.handlers))
        relay = Relay(self.name, self.database, self.jetstream, replica=self.name)
        self.running = [asyncio.create_task(consumer.run()), asyncio.create_task(relay.run())]

    async def kill(self) -> None:
        """In the midst of whatever it does; what it holds open is undone."""
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


@dataclass
class Platform:
    """The four services, and the clock of all of them."""

    clock: ManualClock
    jetstream: JetStreamContext
    parts: list[Part]
    billing: Billing
    tasks: Tasks
    training: Training
    deployments: Deployments

    async def settle(self) -> None:
        """Until every event is sent and consumed."""
        quiet = 0
        while quiet < 2:
            quiet = quiet + 1 if await self._is_quiet() else 0
            await asyncio.sleep(POLL_S)

    async def _is_quiet(self) -> bool:
        for part in self.parts:
            async with part.database.reading() as connection:
                if await connection.fetchval("SELECT EXISTS (SELECT FROM outbox WHERE sent_at IS NULL)"):
                    return False
        for part in self.parts:
            info = await self.jetstream.consumer_info(STREAM, part.name)
            if info.num_pending or info.num_ack_pending:
                return False
        return True

    async def sweep(self) -> None:
        """What the services do by themselves every few seconds."""
        await self.billing.sweep_once()
        await self.tasks.sweep_once()
        await self.training.sweep(expire=True)
        await self.deployments.sweep_once(limits=True)

    async def dead_events(self) -> int:
        dead = 0
        for part in self.parts:
            async with part.database.reading() as connection:
                dead += await connection.fetchval("SELECT count(*) FROM dead_event")
        return dead

    async def events(self) -> AsyncIterator[CloudEvent]:
        """The whole stream, from its first event on."""
        last = (await self.jetstream.stream_info(STREAM)).state.last_seq
        subscription = await self.jetstream.subscribe("saucer.>", stream=STREAM, ordered_consumer=True)
        try:
            while True:
                message = await subscription.next_msg(timeout=10)
                yield parse_headers(message.headers, message.data)
                if message.metadata.sequence.stream == last:
                    return
        finally:
            await subscription.unsubscribe()


class _Local:
    """A stub that calls a servicer of the same process; errors pass through as they are."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._servicer, name)

        async def call(request: Message, **_: object) -> Message:
            answer: Message = await method(request, None)
            return answer

        return call


class Data:
    """Has every version; `owners` says whose it is."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}

    async def GetDatasetVersion(  # noqa: N802
        self, request: dataset_pb2.GetDatasetVersionRequest, context: object
    ) -> dataset_pb2.DatasetVersion:
        splits = [dataset_pb2.SplitStatistics(split=name, images=60, boxes=180) for name in _SPLITS]
        statistics = dataset_pb2.DatasetStatistics(
            images=180, splits=splits, median_width=640, median_height=480, median_box_share=0.05
        )
        return dataset_pb2.DatasetVersion(
            dataset_version_id=request.dataset_version_id,
            account_id=self.owners[request.dataset_version_id],
            manifest_key="system/m.json",
            manifest_sha256="0" * 64,
            image_prefix="system/images",
            classes=["cup", "plate"],
            statistics=statistics,
        )


def lengthen(monkeypatch: pytest.MonkeyPatch, step: timedelta) -> None:
    """Leases, stalls and gaps as long as a step of the simulation, so that a beat a step is enough."""
    step_ms = step // timedelta(milliseconds=1)
    monkeypatch.setattr("saucer.training.charging.LEASE_MS", step_ms)
    monkeypatch.setattr("saucer.training.domain.LEASE_MS", step_ms)
    monkeypatch.setattr("saucer.training.charging.STALL_MS", step_ms)
    monkeypatch.setattr("saucer.training.domain.STALL_LOST", 2 * step)
    monkeypatch.setattr("saucer.training.domain.FINISH_LIMIT", 2 * step)
    monkeypatch.setattr("saucer.publishing.lifecycle.PROBE_GAP_LIMIT", step)
    # What a killed service had not acknowledged comes again soon, in real time.
    monkeypatch.setattr("saucer.lib.consumer.ACK_WAIT_S", 1.0)


@asynccontextmanager
async def platform(
    new_database: NewDatabase, nats_url: str, folder: Path, token_file: Path, data: Data, *tritons: Triton
) -> AsyncIterator[Platform]:
    set_current(Principal("tester", Role.ADMINISTRATOR, None, "t", float("inf")))
    clock = ManualClock(START)
    async with AsyncExitStack() as stack, grpc.aio.insecure_channel("127.0.0.1:1") as nobody:
        client = await nats_client.connect(nats_url)
        stack.push_async_callback(client.close)
        jetstream: JetStreamContext = client.jetstream()

        async def database(package: str) -> Database:
            made = await connect(await new_database(), clock, pool_size=POOL)
            stack.push_async_callback(made.pool.close)
            await migrate(made, "saucer.lib", package)
            return made

        databases: Mapping[str, Database] = {
            name: await database(f"saucer.{name}") for name in ("billing", "task", "training", "publishing")
        }
        billing = Billing(databases["billing"])
        money = _Local(billing_rpc.servicer(billing).implementation)
        token = TokenFile(token_file)
        task_peers, publishing_peers = TaskPeers(nobody, nobody, token), PublishingPeers(nobody, token)
        task_peers._billing = publishing_peers._billing = money  # type: ignore[assignment]
        task_peers._dataset = _Local(data)  # type: ignore[assignment]
        tasks = Tasks(databases["task"], task_peers, scenes.load())
        training = Training(databases["training"], Objects(f"file://{folder}"), Bell())
        deployments = Deployments(databases["publishing"], publishing_peers)
        for triton in tritons:
            await deployments.tritons.register(triton)
            await deployments.tritons.report(triton.triton_id, live=True)
        handlers = {
            "billing": billing_consumers.handlers(billing),
            "task": task_consumers.handlers(tasks),
            "training": training_consumers.handlers(training),
            "publishing": publishing_consumers.handlers(deployments),
        }
        parts = [Part(name, databases[name], jetstream, handlers[name]) for name in databases]
        for part in parts:
            part.start()
            stack.push_async_callback(part.kill)
        yield Platform(clock, jetstream, parts, billing, tasks, training, deployments)
