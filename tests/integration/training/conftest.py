"""What tests of training share."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from saucer.lib.clock import ManualClock
from saucer.lib.objects import Objects
from saucer.lib.postgres import connect, migrate
from tests.support.servers import NewDatabase
from tests.support.training_lab import Lab


@pytest.fixture
async def lab(new_database: NewDatabase, tmp_path: Path) -> AsyncIterator[Lab]:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    database = await connect(await new_database(), clock)
    await migrate(database, "saucer.lib", "saucer.training")
    yield Lab(database, clock, Objects(f"file://{tmp_path}"))
    await database.pool.close()
