"""Dataset as it runs, with a file:// store of the test's own."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.dataset.main import DatasetSettings, wire
from saucer.lib.ids import new_id
from tests.integration.dataset.client import Client, client
from tests.support.events import event, publish, read_events
from tests.support.servers import NewDatabase
from tests.support.services import Running, ServiceRunner, Tokens

RunDataset = Callable[..., AbstractAsyncContextManager[Running]]


class NewAccount(Protocol):
    """Makes an account known to dataset; unless told otherwise, waits until its store is proven."""

    async def __call__(self, *, proven: bool = True) -> str: ...


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def run_dataset(run_service: ServiceRunner, store: Path, tmp_path: Path) -> RunDataset:
    def start(**settings: Any) -> AbstractAsyncContextManager[Running]:
        usual = {"object_store_url": f"file://{store}", "work_folder": tmp_path / "work"}
        return run_service("dataset", DatasetSettings, wire, **(usual | settings))

    return start


@pytest.fixture
def new_account(jetstream: JetStreamContext) -> NewAccount:
    async def create(*, proven: bool = True) -> str:
        account_id = new_id()
        created = billing_events.AccountCreated(account=billing_pb2.Account(account_id=account_id))
        await publish(jetstream, event(created, "billing", account_id, None, account_id))
        if proven:
            await read_events(jetstream, f"saucer.dataset.v1.AccountStoreProven.{account_id}.>", count=1)
        return account_id

    return create


@pytest.fixture
async def database_url(new_database: NewDatabase) -> str:
    return await new_database()


@pytest.fixture
async def running(run_dataset: RunDataset, database_url: str) -> AsyncIterator[Running]:
    async with run_dataset(database_url=database_url) as service:
        yield service


@pytest.fixture
async def dataset(running: Running, tokens: Tokens, new_account: NewAccount, store: Path) -> Client:
    """A client of an account whose store is proven."""
    return client(running.channel, tokens, await new_account(), store)
