"""Migrations of a real database, by one replica and by two at once."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from saucer.lib import postgres
from saucer.lib.clock import ManualClock
from saucer.lib.postgres import connect, migrate
from tests.support.servers import NewDatabase

_CLOCK = ManualClock(datetime(2026, 11, 1, tzinfo=UTC))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose schema folder is empty, and statements that are cancelled after a second."""
    monkeypatch.setattr(postgres, "COMMAND_TIMEOUT_S", 1.0)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Of its own name: Python remembers what it has imported.
    folder = tmp_path / f"migrated_{tmp_path.name}"
    (folder / "schema").mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder


async def test_a_migration_may_take_longer_than_other_statements_and_a_second_replica_waits_for_it(
    package: Path, new_database: NewDatabase
) -> None:
    (package / "schema" / "0001_slow.sql").write_text("CREATE TABLE made (id int); SELECT pg_sleep(2.5);")
    url = await new_database()
    databases = [await connect(url, _CLOCK) for _ in range(2)]
    await asyncio.gather(*(migrate(database, package.name) for database in databases))
    async with databases[0].reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM migration") == 1
        assert await connection.fetchval("SELECT count(*) FROM made") == 0
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(2.5)")
    for database in databases:
        database.pool.terminate()


async def test_a_migration_waits_no_longer_for_a_table_than_other_statements_that_would_queue_behind_it(
    package: Path, new_database: NewDatabase
) -> None:
    database = await connect(await new_database(), _CLOCK)
    (package / "schema" / "0001_made.sql").write_text("CREATE TABLE made (id int);")
    await migrate(database, package.name)
    (package / "schema" / "0002_more.sql").write_text("ALTER TABLE made ADD COLUMN more int;")
    async with database.transaction() as tx:
        await tx.connection.execute("SELECT FROM made")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await migrate(database, package.name)
    await migrate(database, package.name)
    database.pool.terminate()
