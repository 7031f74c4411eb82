"""Imports whose service, child process or object store goes away in the middle."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.dataset.v1 import dataset_pb2
from saucer.local.servers import NatsServer
from tests.integration.dataset.client import Client, archive_of, client, coco_files
from tests.integration.dataset.conftest import NewAccount, RunDataset
from tests.support.events import read_events, until
from tests.support.servers import NewDatabase
from tests.support.services import Tokens

IMAGES = 60
CLAIM_S = 2.0
# Longer than any wait for an end.
LONG_CLAIM_S = 300.0


@dataclass(frozen=True)
class Replica:
    """Dataset in a process of its own."""

    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel


@dataclass(frozen=True)
class Replicas:
    """Starts processes of dataset on one database, store and work folder."""

    database_url: str
    nats_url: str
    tokens: Tokens
    store: Path
    work: Path

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Replica]:
        settings = {
            "LISTEN": "127.0.0.1:0",
            "DATABASE_URL": self.database_url,
            "NATS_URL": self.nats_url,
            "PUBLIC_KEYS_FILE": self.tokens.public_keys_file,
            "OBJECT_STORE_URL": f"file://{self.store}",
            "WORK_FOLDER": self.work,
            "IMPORT_CLAIM_S": CLAIM_S,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "saucer.dataset.main",
            env=os.environ | {f"SAUCER_{name}": str(value) for name, value in settings.items()},
            stderr=asyncio.subprocess.PIPE,
        )
        log = asyncio.Queue[str]()
        reading = asyncio.create_task(_read_log(process, log))
        try:
            async with grpc.aio.insecure_channel(await log.get()) as channel:
                yield Replica(process, channel)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            await reading


async def _read_log(process: asyncio.subprocess.Process, addresses: asyncio.Queue[str]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        entry = json.loads(line)
        if entry["event"] == "serving":
            await addresses.put(entry["address"])


@pytest.fixture
async def replicas(
    new_database: NewDatabase,
    nats: NatsServer,
    jetstream: JetStreamContext,
    tokens: Tokens,
    store: Path,
    tmp_path: Path,
) -> Replicas:
    return Replicas(await new_database(), nats.uri, tokens, store, tmp_path / "work")


async def importing(caller: Client, import_id: str) -> bool:
    return (await caller.get_import(import_id)).state == dataset_pb2.IMPORT_STATE_IMPORTING


def import_processes() -> dict[int, int]:
    """Every import's process that lives, with its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit() and b"saucer.dataset.import_child" in (entry / "cmdline").read_bytes():
                status = dict(
                    line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line
                )
                if not status["State"].startswith("Z"):
                    found[int(entry.name)] = int(status["PPid"])
    return found


def children_of(pid: int) -> list[int]:
    """Import processes that a service has started."""
    return [child for child, parent in import_processes().items() if parent == pid]


async def one_child(pid: int) -> int:
    async def found() -> int | None:
        return next(iter(children_of(pid)), None)

    return await until(found)


async def check_one_version(caller: Client, jetstream: JetStreamContext, work: dataset_pb2.Import) -> None:
    assert work.state == dataset_pb2.IMPORT_STATE_SUCCEEDED, work
    (version,) = (await caller.versions()).dataset_versions
    assert version.dataset_version_id == work.dataset_version_id
    stored = {file.name for file in (caller.store / version.image_prefix).iterdir()}
    assert stored == {entry["file_name"] for entry in caller.manifest(version)["images"]}
    assert version.statistics.images == IMAGES
    for name in ("DatasetVersionCreated", "ImportEnded"):
        await read_events(jetstream, f"saucer.dataset.v1.{name}.{caller.account_id}.>", count=1)
        stream = await jetstream.stream_info("SAUCER", subjects_filter=f"saucer.dataset.v1.{name}.>")
        assert sum((stream.state.subjects or {}).values()) == 1


async def test_an_import_whose_service_is_killed_is_finished_once_by_the_next(
    replicas: Replicas, new_account: NewAccount, jetstream: JetStreamContext, tokens: Tokens, store: Path
) -> None:
    async with replicas() as first:
        account_id = await new_account()
        caller = client(first.channel, tokens, account_id, store)
        work = await caller.start(upload_id=await caller.upload(archive_of(coco_files(IMAGES, side=300))))
        child = await one_child(first.process.pid)
        assert await importing(caller, work.import_id)
        first.process.send_signal(signal.SIGKILL)
        await first.process.wait()

    async def gone() -> bool:
        return child not in import_processes()

    assert await until(gone), "the child ends with its service"
    async with replicas() as second:
        caller = client(second.channel, tokens, account_id, store)
        await check_one_version(caller, jetstream, await caller.end(work.import_id))

        async def swept() -> bool:
            return not list((replicas.work / "imports").iterdir())

        assert await until(swept), "what the killed one left behind is removed"


async def test_an_import_whose_service_is_stopped_is_taken_up_at_once(
    run_dataset: RunDataset,
    new_database: NewDatabase,
    new_account: NewAccount,
    jetstream: JetStreamContext,
    tokens: Tokens,
    store: Path,
) -> None:
    database_url = await new_database()
    async with run_dataset(database_url=database_url, import_claim_s=LONG_CLAIM_S) as service:
        account_id = await new_account()
        caller = client(service.channel, tokens, account_id, store)
        work = await caller.start(upload_id=await caller.upload(archive_of(coco_files(IMAGES, side=300))))
        await one_child(os.getpid())
        assert await importing(caller, work.import_id)
    assert children_of(os.getpid()) == []
    async with run_dataset(database_url=database_url, import_claim_s=LONG_CLAIM_S) as service:
        caller = client(service.channel, tokens, account_id, store)
        await check_one_version(caller, jetstream, await caller.end(work.import_id, timeout_s=120))


async def test_an_import_whose_child_dies_once_is_tried_again(dataset: Client, jetstream: JetStreamContext) -> None:
    work = await dataset.start(upload_id=await dataset.upload(archive_of(coco_files(IMAGES, side=300))))
    os.kill(await one_child(os.getpid()), signal.SIGKILL)
    await check_one_version(dataset, jetstream, await dataset.end(work.import_id))


async def test_an_import_whose_child_dies_each_time_fails_with_a_reason(dataset: Client) -> None:
    work = await dataset.start(upload_id=await dataset.upload(archive_of(coco_files(IMAGES, side=300))))
    first = await one_child(os.getpid())
    os.kill(first, signal.SIGKILL)

    async def second() -> int | None:
        return next((pid for pid in children_of(os.getpid()) if pid != first), None)

    os.kill(await until(second), signal.SIGKILL)
    ended = await dataset.end(work.import_id)
    assert (ended.state, ended.error_reason) == (dataset_pb2.IMPORT_STATE_FAILED, "IMPORT_CRASHED")
    assert not (await dataset.versions()).dataset_versions


async def test_an_import_that_takes_too_long_is_ended_with_a_reason(
    run_dataset: RunDataset, new_account: NewAccount, tokens: Tokens, store: Path
) -> None:
    async with run_dataset(import_time_limit_s=0.05) as service:
        caller = client(service.channel, tokens, await new_account(), store)
        ended = await caller.import_bytes(archive_of(coco_files(3)))
        assert (ended.state, ended.error_reason) == (dataset_pb2.IMPORT_STATE_FAILED, "IMPORT_TIMED_OUT")
        assert children_of(os.getpid()) == []


async def test_two_replicas_do_each_import_once(
    replicas: Replicas, new_account: NewAccount, jetstream: JetStreamContext, tokens: Tokens, store: Path
) -> None:
    async with replicas() as first, replicas() as second:
        account_id = await new_account()
        callers = [client(replica.channel, tokens, account_id, store) for replica in (first, second)]
        uploads = [await callers[0].upload(archive_of(coco_files(10, seed=seed))) for seed in range(6)]
        works = [await callers[n % 2].start(upload_id=upload) for n, upload in enumerate(uploads)]
        ended = [await callers[0].end(work.import_id) for work in works]
        assert {work.state for work in ended} == {dataset_pb2.IMPORT_STATE_SUCCEEDED}
        versions = (await callers[1].versions()).dataset_versions
        assert len({version.dataset_version_id for version in versions}) == 6
        await read_events(jetstream, f"saucer.dataset.v1.ImportEnded.{account_id}.>", count=6)
        stream = await jetstream.stream_info("SAUCER", subjects_filter="saucer.dataset.v1.DatasetVersionCreated.>")
        assert sum((stream.state.subjects or {}).values()) == 6


async def test_an_import_waits_while_the_object_store_is_away_and_then_succeeds(
    dataset: Client, store: Path, jetstream: JetStreamContext
) -> None:
    upload_id = await dataset.upload(archive_of(coco_files(IMAGES)))
    # The system's folder is moved, and a file lies in its place: reading fails, as on a broken mount.
    system, aside = store / "system", store / "aside"
    system.rename(aside)
    system.write_text("in the way")
    work = await dataset.start(upload_id=upload_id)

    async def given_back() -> bool:
        found = await dataset.get_import(work.import_id)
        return found.state == dataset_pb2.IMPORT_STATE_QUEUED and found.revision > work.revision

    assert await until(given_back)
    system.unlink()
    aside.rename(system)
    await check_one_version(dataset, jetstream, await dataset.end(work.import_id))
