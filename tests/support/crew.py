"""Workers as processes, with the tests' own engine, on one training service or several of its replicas."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import asyncpg
import grpc
import pytest
from nats.js import JetStreamContext

from saucer.lib.auth import Role
from saucer.lib.ids import new_id
from saucer.local.ports import choose_port
from saucer.local.servers import NatsServer
from saucer.training.main import TrainingSettings, wire
from tests.support.engine import JOURNAL
from tests.support.events import publish
from tests.support.servers import NewDatabase
from tests.support.services import Running, ServiceRunner, Tokens
from tests.support.shapes import write_shapes
from tests.support.training import SPEC, Start, object_store, store_shapes

# Of a training process, from its start.
SERVES_S = 60.0


@dataclass
class Crew:
    """Training's replicas, on one database, and what workers need to know of them."""

    replicas: Sequence[Running]
    object_store_url: str
    database: asyncpg.Connection[asyncpg.Record]
    jetstream: JetStreamContext
    tokens: Tokens
    folder: Path
    # On a data set that is there.
    start: Start

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    async def queue(self, account_id: str, *, iterations: int, region_id: str) -> Start:
        """A run of so many iterations of the engine."""
        start = replace(self.start, account_id=account_id, task_id=new_id(), epochs=iterations, region_id=region_id)
        await publish(self.jetstream, start.queued())
        return start

    async def worker(
        self, name: str, region_id: str, replica: int = 0, address: str = "", *engine: str
    ) -> asyncio.subprocess.Process:
        """A real worker process. `address`: of something before the replica; `engine`: see tests.support.engine."""
        settings = {
            "SAUCER_TRAINING_ADDRESS": address or self.replicas[replica].address,
            "SAUCER_OBJECT_STORE_URL": self.object_store_url,
            "SAUCER_TOKEN_FILE": str(self.tokens.file(Role.WORKER)),
            "SAUCER_REGION_ID": region_id,
            "SAUCER_SPEC_ID": SPEC,
            "SAUCER_WORKER_ID": name,
            "SAUCER_WORK_FOLDER": str(self.folder / name),
            "SAUCER_LOG_FORMAT": "text",
            "SAUCER_LOG_LEVEL": "WARNING",
            JOURNAL: str(self.journal),
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SAUCER_")}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.engine", "worker", *engine), env=environment | settings
        )

    @contextlib.asynccontextmanager
    async def workers(self, *places: tuple[str, str, int]) -> AsyncIterator[list[asyncio.subprocess.Process]]:
        """By name, region and replica; killed at the end."""
        processes = [await self.worker(*place) for place in places]
        try:
            yield processes
        finally:
            for process in processes:
                await kill(process)

    async def exists(self, start: Start) -> bool:
        """Whether training has heard of it."""
        return bool(await self.database.fetchval("SELECT true FROM run WHERE run_id = $1", start.run_id))

    async def run(self, start: Start) -> asyncpg.Record:
        """Its row."""
        row = await self.database.fetchrow("SELECT * FROM run WHERE run_id = $1", start.run_id)
        assert row is not None
        return row

    async def ended(self, number: int) -> bool:
        """Whether so many runs are at rest."""
        return bool(await self.database.fetchval("SELECT count(*) = $1 FROM run WHERE state = 'ENDED'", number))


async def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL; its child ends with it."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@dataclass
class TrainingProcesses:
    """Training as processes on one database, each at an address that it has again when it is started again."""

    settings: dict[str, object]
    # Runs one of them.
    module: str
    running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    _ports: dict[str, int] = field(default_factory=dict)

    async def start(self, name: str) -> Running:
        """Until it serves."""
        if name not in self._ports:
            self._ports[name] = choose_port()
        address = f"127.0.0.1:{self._ports[name]}"
        settings = self.settings | {"listen": address, "log_level": "ERROR"}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SAUCER_")}
        self.running[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self.module),
            env=environment | {f"SAUCER_{key.upper()}": str(value) for key, value in settings.items()},
        )
        channel = grpc.aio.insecure_channel(address)
        await asyncio.wait_for(channel.channel_ready(), SERVES_S)
        return Running(address, channel)

    async def kill(self, name: str) -> None:
        """SIGKILL."""
        await kill(self.running.pop(name))


@pytest.fixture
async def crew_of_processes(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
    nats: NatsServer,
    jetstream: JetStreamContext,
    tokens: Tokens,
    tmp_path: Path,
) -> AsyncIterator[tuple[Crew, TrainingProcesses]]:
    """Two replicas, "first" and "second", that are processes; of another module if it is the fixture's parameter."""
    url, objects = object_store(tmp_path)
    (tmp_path / "journal").mkdir()
    database_url = await new_database()
    settings: dict[str, object] = {
        "object_store_url": url,
        "database_url": database_url,
        "nats_url": nats.uri,
        "public_keys_file": tokens.public_keys_file,
    }
    processes = TrainingProcesses(settings, getattr(request, "param", "saucer.training.main"))
    database = None
    try:
        replicas = [await processes.start(name) for name in ("first", "second")]
        start = await store_shapes(objects, write_shapes(tmp_path / "shapes", train=1, validation=1, test=1))
        database = await asyncpg.connect(database_url)
        yield Crew(replicas, url, database, jetstream, tokens, tmp_path, start), processes
        for replica in replicas:
            await replica.channel.close()
    finally:
        for name in list(processes.running):
            await processes.kill(name)
        if database is not None:
            await database.close()


@pytest.fixture
async def crew(
    run_service: ServiceRunner, new_database: NewDatabase, jetstream: JetStreamContext, tokens: Tokens, tmp_path: Path
) -> AsyncIterator[Crew]:
    """Two replicas."""
    url, objects = object_store(tmp_path)
    (tmp_path / "journal").mkdir()
    database_url = await new_database()
    settings = {"object_store_url": url, "database_url": database_url}
    async with (
        run_service("training", TrainingSettings, wire, **settings) as first,
        run_service("training", TrainingSettings, wire, **settings) as second,
    ):
        start = await store_shapes(objects, write_shapes(tmp_path / "shapes", train=1, validation=1, test=1))
        database = await asyncpg.connect(database_url)
        yield Crew([first, second], url, database, jetstream, tokens, tmp_path, start)
        await database.close()
