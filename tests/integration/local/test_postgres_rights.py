"""deploy/postgres/10-databases.sh, run: each service's role enters its own database, and may do nothing else."""

from __future__ import annotations  # asyncpg's classes are generic only for type checkers

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from saucer.local.servers import PostgresServer
from saucer.local.stack import SERVICES
from tests.support.servers import ROOT


@pytest.fixture(scope="module")
async def prepared(servers_dir: Path) -> AsyncIterator[PostgresServer]:
    server = PostgresServer(servers_dir / "rights" / "postgres", fast=True)
    await server.start()
    passwords = {f"POSTGRES_PASSWORD_{name.upper()}": f"of-{name}" for name in SERVICES}
    environment = {
        "PATH": f"{server.programs}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.ports["sql"]),
        "PGPASSWORD": str(urlsplit(server.admin_uri).password),
        "POSTGRES_USER": "postgres",
    }
    script = await asyncio.create_subprocess_exec(
        ROOT / "deploy" / "postgres" / "10-databases.sh", env=environment | passwords
    )
    assert await script.wait() == 0
    yield server
    await server.stop()


async def entered(server: PostgresServer, role: str, database: str) -> asyncpg.Connection[asyncpg.Record]:
    return await asyncpg.connect(server.uri(database, role, f"of-{role}"))


@pytest.mark.parametrize(("role", "database"), list(itertools.product(SERVICES, (*SERVICES, "postgres", "template1"))))
async def test_a_role_enters_its_own_database_alone(prepared: PostgresServer, role: str, database: str) -> None:
    if role == database:
        connection = await entered(prepared, role, database)
        await connection.execute("CREATE TABLE t (n int)")
        await connection.close()
    else:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await entered(prepared, role, database)


@pytest.mark.parametrize("role", SERVICES)
async def test_a_role_makes_no_databases_and_no_roles(prepared: PostgresServer, role: str) -> None:
    connection = await entered(prepared, role, role)
    for statement in ("CREATE DATABASE d", "CREATE ROLE r", "ALTER SYSTEM SET fsync = off"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()
