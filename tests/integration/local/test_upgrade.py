"""Code from before the newest change of a schema serves on the new schema: an upgrade migrates while the old runs."""

import asyncio
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import asyncpg
import grpc
import pytest

from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.lib import auth
from saucer.lib.clock import PostgresClock
from saucer.lib.ids import new_id
from saucer.lib.postgres import connect, migrate
from saucer.local.process import choose_ports
from saucer.local.servers import NatsServer
from saucer.local.service_process import ServiceProcess
from tests.integration.local.test_backup import connected
from tests.support.events import read_events
from tests.support.servers import ROOT, NewDatabase
from tests.support.services import Tokens


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture
def former_code(tmp_path: Path) -> Path:
    """The commit before the newest one that touched a schema."""
    newest = git("log", "-1", "--format=%H", "--", ":(glob)services/saucer/*/schema/*.sql").decode().strip()
    archive = git("archive", f"{newest}~1", "services") if newest else b""
    if not archive:
        pytest.skip("the clone has no commit before the newest change of a schema")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path / "former", filter="data")
    return tmp_path / "former" / "services"


async def test_the_former_code_serves_on_the_new_schema(
    former_code: Path,
    new_database: NewDatabase,
    nats: NatsServer,
    tokens: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(former_code))
    ports = choose_ports(
        tmp_path / "ports.json",
        tuple(f"{name}-{kind}" for name in ("billing", "dataset") for kind in ("grpc", "metrics")),
    )
    own: dict[str, dict[str, object]] = {
        "billing": {},
        "dataset": {"object_store_url": f"file://{tmp_path / 'objects'}", "work_folder": tmp_path / "work"},
    }
    processes = []
    for name, more in own.items():
        url = await new_database()
        database = await connect(url, PostgresClock())
        await migrate(database, "saucer.lib", f"saucer.{name}")
        database.pool.terminate()
        settings = {
            "listen": f"127.0.0.1:{ports[f'{name}-grpc']}",
            "metrics_listen": f"127.0.0.1:{ports[f'{name}-metrics']}",
            "nats_url": nats.uri,
            "public_keys_file": tokens.public_keys_file,
            "token_file": tokens.file(auth.Role.SERVICE),
            "database_url": url,
            **more,
        }
        processes.append(
            ServiceProcess(tmp_path / name, f"saucer.{name}.main", settings, metrics_port=ports[f"{name}-metrics"])
        )
    await asyncio.gather(*(process.start() for process in processes))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['billing-grpc']}") as channel:
            account = await billing_pb2_grpc.BillingServiceStub(channel).CreateAccount(
                billing_pb2.CreateAccountRequest(request_id=new_id(), display_name="A", currency="EUR"),
                metadata=tokens.metadata(auth.Role.ADMINISTRATOR),
            )
        async with connected(nats.uri) as jetstream:
            # billing's event, and what dataset makes of it.
            assert await read_events(jetstream, f"saucer.dataset.v1.*.{account.account_id}.>", count=1)
    finally:
        await asyncio.gather(*(process.stop() for process in processes))


async def test_the_argument_migrate_migrates_and_ends(
    new_database: NewDatabase, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await new_database()
    settings = {
        "listen": "127.0.0.1:0",
        "nats_url": "nats://nowhere:1",
        "public_keys_file": tokens.public_keys_file,
        "token_file": tokens.file(auth.Role.SERVICE),
        "database_url": url,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"SAUCER_{name.upper()}", str(value))
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "saucer.billing.main", "migrate")
    assert await asyncio.wait_for(process.wait(), timeout=30) == 0
    connection = await asyncpg.connect(url)
    applied = {row["name"] for row in await connection.fetch("SELECT name FROM migration")}
    await connection.close()
    assert {"saucer.lib/001_plumbing.sql", "saucer.billing/001_ledger.sql"} <= applied
