"""deploy/BACKUP.md, done: a copy of PostgreSQL is restored beside an empty NATS, and everything goes on."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
from nats.js import JetStreamContext

from saucer.billing.main import wire
from saucer.lib.config import ServiceSettings
from saucer.lib.ids import new_id
from saucer.local.servers import NatsServer, PostgresServer, _system_user
from saucer.training.v1 import events_pb2 as training_events
from tests.integration.billing.test_billing import HOLD_MICROS, Client, resolved, run_event
from tests.support.events import publish, read_events, until
from tests.support.services import ServiceRunner, Tokens


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(url)
    yield client.jetstream()
    await client.close()


async def copy_of(server: PostgresServer, folder: Path) -> PostgresServer:
    """What pg_basebackup makes of a running server: all databases of one moment, with their roles."""
    process = await asyncio.create_subprocess_exec(
        server.programs / "pg_basebackup",
        f"--dbname={server.admin_uri}",
        f"--pgdata={folder / 'data'}",
        "--checkpoint=fast",
        "--wal-method=stream",
    )
    assert await process.wait() == 0
    return PostgresServer(folder, fast=True)


def take_over(server: PostgresServer, former: PostgresServer) -> None:
    """Passwords are no part of the copy of the data, and files belong to who copied them."""
    shutil.copy(former.data_dir / "passwords.json", server.data_dir)
    if os.geteuid() == 0:
        user = _system_user("saucer-postgres")
        for path in [server.data_dir / "data", *(server.data_dir / "data").rglob("*")]:
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


async def test_a_restored_copy_goes_on_beside_an_empty_nats(servers_dir: Path, tokens: Tokens) -> None:
    first, broker = (
        PostgresServer(servers_dir / "first" / "postgres", fast=True),
        NatsServer(servers_dir / "first" / "nats"),
    )
    await asyncio.gather(first.start(), broker.start())
    work_id, later_id = new_id(), new_id()
    runner = ServiceRunner(lambda: first.database("billing"), broker.uri, tokens)
    async with runner("billing", ServiceSettings, wire) as running:
        billing = Client(running, tokens)
        await billing.offer()
        account_id = await billing.account(2 * HOLD_MICROS)
        await billing.hold(account_id, work_id)
        async with connected(broker.uri) as jetstream:
            await read_events(jetstream, f"saucer.billing.v1.*.{account_id}.>", count=3)
        second = await copy_of(first, servers_dir / "second" / "postgres")
        # Happens after the copy, and is lost with the machine.
        await billing.hold(account_id, later_id)
    await asyncio.gather(first.stop(), broker.stop())

    take_over(second, first)
    empty = NatsServer(servers_dir / "second" / "nats")
    await asyncio.gather(second.start(), empty.start())
    runner = ServiceRunner(lambda: second.database("billing"), empty.uri, tokens)
    async with runner("billing", ServiceSettings, wire) as running, connected(empty.uri) as jetstream:
        billing = Client(running, tokens)
        assert await billing.balance(account_id) == (HOLD_MICROS, HOLD_MICROS)
        refilled = await read_events(jetstream, f"saucer.billing.v1.*.{account_id}.>", count=3)
        assert {found.type.rpartition(".")[2] for found in refilled} == {
            "AccountCreated",
            "AccountToppedUp",
            "HoldGranted",
        }
        # The work of before ends, and what was lost is asked for again.
        await publish(jetstream, run_event(training_events.RunEnded, account_id, work_id, 0))
        await until(lambda: resolved(billing, account_id, work_id))
        await billing.hold(account_id, later_id)
        assert await billing.balance(account_id) == (HOLD_MICROS, HOLD_MICROS)
        audit = await billing.audit()
        assert audit.clean, audit.findings
    await asyncio.gather(second.stop(), empty.stop())
