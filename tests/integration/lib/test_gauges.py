"""Gauges that are read from a real database."""

from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, Gauge

from saucer.lib.clock import ManualClock
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import bury
from saucer.lib.gauges import Reading, _usual, read_once
from saucer.lib.ids import new_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Connection, connect, migrate
from saucer.task.v1 import events_pb2
from tests.support.servers import NewDatabase


async def test_dead_events_are_counted_and_the_oldest_unsent_event_is_dated(new_database: NewDatabase) -> None:
    clock = ManualClock(datetime(2026, 11, 1, tzinfo=UTC))
    database = await connect(await new_database(), clock)
    await migrate(database, "saucer.lib")
    dead, age = _usual("watched")

    async def figures() -> tuple[float, float]:
        await read_once(database, [dead, age])
        return dead.gauge.labels("watched")._value.get(), age.gauge.labels("watched")._value.get()

    assert await figures() == (0, 0)
    account_id = new_id()
    buried = CloudEvent(new_id(), "/saucer/task", "t", "s", account_id, clock.time, b"{}")
    async with database.transaction() as tx:
        await enqueue(tx, new_id(), events_pb2.TaskQueued(), account_id=account_id, work_id=None, resource_id=new_id())
        await bury(tx, "watched", buried, "refused", 1)
    clock.advance(timedelta(seconds=90))
    assert await figures() == (1, 90)
    async with database.reading() as connection:
        await connection.execute("UPDATE outbox SET sent_at = $1", clock.time)
        await connection.execute("UPDATE dead_event SET retried_at = $1", clock.time)
    assert await figures() == (0, 0)
    database.pool.terminate()


async def test_a_value_that_is_gone_is_no_longer_exported(new_database: NewDatabase) -> None:
    database = await connect(await new_database(), ManualClock(datetime(2026, 11, 1, tzinfo=UTC)))
    registry = CollectorRegistry()
    gauge = Gauge("queued", "By spec", ["spec"], registry=registry)
    values: dict[tuple[str, ...], float] = {("cpu",): 1.0, ("gpu",): 2.0}

    async def read(connection: Connection, now: datetime) -> dict[tuple[str, ...], float]:
        return values

    await read_once(database, [Reading(gauge, read)])
    assert registry.get_sample_value("queued", {"spec": "gpu"}) == 2
    del values["gpu",]
    await read_once(database, [Reading(gauge, read)])
    assert registry.get_sample_value("queued", {"spec": "cpu"}) == 1
    assert registry.get_sample_value("queued", {"spec": "gpu"}) is None
    database.pool.terminate()
