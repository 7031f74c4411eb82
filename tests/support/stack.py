"""One whole Saucer for the session: every service its own process, real PostgreSQL, NATS, Triton and MMDetection."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from saucer.dataset.v1 import dataset_pb2
from saucer.local.stack import Stack
from saucer.task.v1 import task_pb2
from tests.support.child import THREADS
from tests.support.collector import collecting
from tests.support.disk import own_disk
from tests.support.saucer_client import HOLD_MICROS, Account, Saucer
from tests.support.shapes import write_shapes

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Data:
    """A dataset version with the account that has it."""

    account: Account
    dataset_version_id: str
    folder: Path


@dataclass(frozen=True)
class Trained:
    """A task that has succeeded, with its model and evaluation."""

    data: Data
    task: task_pb2.Task


@pytest.fixture(scope="session")
async def saucer(servers_dir: Path) -> AsyncIterator[Saucer]:
    home = servers_dir / "stack"
    # Of their own, so that a test can fill them.
    with own_disk(home / "postgres"), own_disk(home / "nats"):
        async with collecting() as collector:
            stack = Stack(home, PROJECT, fast=True, worker_threads=THREADS, otlp_endpoint=collector.endpoint)
            await stack.start()
            client = Saucer(stack, collector)
            yield client
            await client.close()
            await stack.stop()


@pytest.fixture(scope="session")
def shapes_folder(servers_dir: Path) -> Path:
    folder = servers_dir / "shapes"
    write_shapes(folder, train=60, validation=20, test=20)
    (folder / "annotations").mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.json").rename(folder / "annotations" / f"{split}.json")
    return folder


@pytest.fixture(scope="session")
async def data(saucer: Saucer, shapes_folder: Path) -> Data:
    account = await saucer.account(100 * HOLD_MICROS)
    imported = await saucer.import_folder(account, shapes_folder)
    assert imported.state == dataset_pb2.IMPORT_STATE_SUCCEEDED, imported
    return Data(account, imported.dataset_version_id, shapes_folder)


@pytest.fixture(scope="session")
async def trained(saucer: Saucer, data: Data) -> Trained:
    created = await saucer.create_task(data.account, saucer.form(data.dataset_version_id, epochs=8))
    task = await saucer.task_ends(data.account, created.task_id)
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED, task
    return Trained(data, task)
