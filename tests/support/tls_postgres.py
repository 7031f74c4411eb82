"""The system's PostgreSQL with mutual TLS: the wheel's is built without. Skips where the system has none."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from saucer.lib.tls import Identity
from saucer.local.ports import choose_port
from saucer.local.servers import _let_pass, ensure_database

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
# As deploy/README.md tells: only TLS, and the certificate's common name has to be the role's.
ACCESS = "hostssl all all all scram-sha-256 clientcert=verify-full\n"
SUPERUSER_PASSWORD = "superuser"
START_S = 20
# PostgreSQL does not run as root.
USER = "nobody" if os.geteuid() == 0 else None
AS_USER: dict[str, Any] = {"user": USER, "group": "nogroup", "extra_groups": []} if USER is not None else {}


@dataclass(frozen=True)
class TlsPostgres:
    """It runs."""

    port: int

    def uri(self, role: str, password: str, database: str) -> str:
        return f"postgresql://{role}:{password}@localhost:{self.port}/{database}"


@asynccontextmanager
async def tls_postgres(folder: Path, identity: Identity) -> AsyncIterator[TlsPostgres]:
    """With a role and a database `billing`, made before TLS alone is answered."""
    if not PROGRAMS:
        pytest.skip("the system has no PostgreSQL of its own, and the wheel's has no TLS")
    data, password = _prepare(folder)
    initdb = PROGRAMS[-1].with_name("initdb")
    await _run(initdb, f"--pgdata={data}", "--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "-N")
    port = choose_port()
    served = TlsPostgres(port)
    for source, name in (
        (identity.ca_file, "ca.crt"),
        (identity.certificate_file, "server.crt"),
        (identity.key_file, "server.key"),
    ):
        shutil.copy(source, data / name)
        (data / name).chmod(0o600)
        if USER is not None:
            shutil.chown(data / name, USER)
    process = await asyncio.create_subprocess_exec(
        PROGRAMS[-1],
        "-D",
        data,
        *(f"--port={port}", "--listen_addresses=localhost", "--unix_socket_directories=", "--fsync=off"),
        *("--ssl=on", "--ssl_ca_file=ca.crt", "--ssl_min_protocol_version=TLSv1.3"),
        stderr=(folder / "log").open("wb"),
        **AS_USER,
    )
    try:
        await _ready(served, folder)
        await ensure_database(served.uri("postgres", SUPERUSER_PASSWORD, "postgres"), "billing", "secret")
        (data / "pg_hba.conf").write_text(ACCESS)
        process.send_signal(signal.SIGHUP)
        yield served
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


def _prepare(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    password = folder / "password"
    password.write_text(SUPERUSER_PASSWORD)
    if USER is not None:
        _let_pass(password)
        for path in (folder, password):
            shutil.chown(path, USER)
    return folder / "data", password


async def _ready(served: TlsPostgres, folder: Path) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                uri = served.uri("postgres", SUPERUSER_PASSWORD, "postgres")
                await (await asyncpg.connect(uri)).close()
            except (OSError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.1)
            else:
                return


async def _run(program: Path, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        program, *arguments, **AS_USER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
