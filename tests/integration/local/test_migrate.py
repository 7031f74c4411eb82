"""A service's database is migrated by an argument of its command line, before the new version is rolled out."""

import asyncio
import sys

import asyncpg
import pytest

from tests.support.servers import NewDatabase
from tests.support.services import Tokens


async def test_the_argument_migrate_migrates_and_ends(
    new_database: NewDatabase, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await new_database()
    settings = {
        "listen": "127.0.0.1:0",
        "nats_url": "nats://nowhere:1",
        "public_keys_file": tokens.public_keys_file,
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
