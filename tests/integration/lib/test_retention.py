"""What is old is forgotten, what is not stays: on a real database."""

from datetime import UTC, datetime, timedelta

import pytest

from saucer.lib import retention
from saucer.lib.clock import ManualClock
from saucer.lib.consumer import claim
from saucer.lib.ids import new_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database, connect, migrate
from saucer.task.v1 import events_pb2
from tests.support.servers import NewDatabase

KEEP_DAYS = 30


async def count(database: Database, table: str) -> int:
    async with database.reading() as connection:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def test_sent_events_go_with_the_stream_and_unsent_ones_never(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    clock = ManualClock(datetime(2026, 11, 1, tzinfo=UTC))
    database = await connect(await new_database(), clock)
    await migrate(database, "saucer.lib")
    async with database.transaction() as tx:
        for _ in range(6):
            await enqueue(tx, new_id(), events_pb2.TaskQueued(), account_id="a", work_id=None, resource_id=new_id())
            await claim(tx, new_id())
        await tx.connection.execute(
            "UPDATE outbox SET sent_at = $1 WHERE position <= (SELECT min(position) + 4 FROM outbox)", tx.now
        )
    rules = retention.usual(KEEP_DAYS, KEEP_DAYS)
    clock.advance(timedelta(days=KEEP_DAYS))
    await retention.forget("test", database, rules)
    assert (await count(database, "outbox"), await count(database, "inbox")) == (6, 6)
    clock.advance(timedelta(seconds=1))
    await retention.forget("test", database, rules)
    assert (await count(database, "outbox"), await count(database, "inbox")) == (1, 6)
    clock.advance(retention.INBOX_LONGER)
    await retention.forget("test", database, rules)
    assert (await count(database, "outbox"), await count(database, "inbox")) == (1, 0)
    database.pool.terminate()
