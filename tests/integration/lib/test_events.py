"""From a commit in one service to its effect in another, whatever dies in between: real PostgreSQL and NATS."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import nats.errors
import pytest
from google.protobuf.message import Message
from nats.js import JetStreamContext
from nats.js.api import PubAck, StreamInfo
from nats.js.errors import NotFoundError as NoSuchStreamError

from saucer.lib import consumer as consumer_module
from saucer.lib import outbox
from saucer.lib.clock import PostgresClock
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import Consumer, Handles, claim, list_dead, retry_dead
from saucer.lib.errors import FailedPreconditionError, UnavailableError
from saucer.lib.ids import derived_id, new_id
from saucer.lib.outbox import Relay, enqueue
from saucer.lib.postgres import POOL_SIZE, Database, connect, migrate
from saucer.lib.stream import STREAM, ensure_stream
from saucer.local.servers import NatsServer, PostgresServer
from saucer.task.v1 import events_pb2, task_pb2
from tests.support.events import event, publish, read_events, until
from tests.support.servers import NewDatabase

ACCOUNT = new_id()
ALL = "saucer.task.v1.TaskQueued.>"
Step = Callable[[CloudEvent, events_pb2.TaskQueued], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules with shorter times."""
    for name, value in {"LEASE_S": 0.5, "RENEW_S": 0.1, "RETRY_S": 0.05, "POLL_S": 0.1}.items():
        monkeypatch.setattr(outbox, name, value)
    for name, value in {"RETRY_FIRST_S": 0.02, "RECONNECT_S": 0.05, "MAX_DELIVERIES": 3}.items():
        monkeypatch.setattr(consumer_module, name, value)


@asynccontextmanager
async def opened(url: str, pool_size: int = POOL_SIZE) -> AsyncIterator[Database]:
    database = await connect(url, PostgresClock(), pool_size=pool_size)
    await migrate(database, "saucer.lib")
    try:
        yield database
    finally:
        database.pool.terminate()


@pytest.fixture
async def database(new_database: NewDatabase) -> AsyncIterator[Database]:
    """Of one service; the tests let it send to itself."""
    async with opened(await new_database()) as database:
        yield database


@asynccontextmanager
async def running(*works: Any) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """Relays and consumers, until the block ends; none may end before."""
    tasks = [asyncio.create_task(work.run()) for work in works]
    try:
        yield tasks
        for task in tasks:
            assert not task.done() or task.cancelled(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def commit(database: Database, resource: str, revision: int, account_id: str = ACCOUNT) -> str:
    """A change with its event."""
    event_id = derived_id("TaskQueued", resource, revision)
    message = events_pb2.TaskQueued(task=task_pb2.Task(task_id=resource, revision=revision))
    async with database.transaction() as tx:
        await enqueue(tx, event_id, message, account_id=account_id, work_id=resource, resource_id=resource)
    return event_id


class Effects:
    """A handler: one inbox row for each event, in its transaction, and what a test wants before it."""

    def __init__(self, database: Database, before: Step | None = None) -> None:
        self.database = database
        self.before = before
        self.taken: list[tuple[str, int]] = []
        self.calls = 0

    def consumer(self, jetstream: JetStreamContext) -> Consumer:
        handles = Handles(events_pb2.TaskQueued, self._take)
        return Consumer("reader", self.database, jetstream, {handles.event_type: handles})

    async def _take(self, taken: CloudEvent, message: Message) -> None:
        assert isinstance(message, events_pb2.TaskQueued)
        self.calls += 1
        if self.before is not None:
            await self.before(taken, message)
        async with self.database.transaction() as tx:
            first = await claim(tx, taken.event_id)
        if first:
            self.taken.append((message.task.task_id, message.task.revision))

    async def reach(self, count: int) -> None:
        async def there() -> bool:
            return len(self.taken) >= count

        await until(there)


async def unsent(database: Database) -> int:
    async with database.reading() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM outbox WHERE sent_at IS NULL"))


async def until_all_sent(database: Database) -> None:
    async def all_sent() -> bool:
        return await unsent(database) == 0

    await until(all_sent)


async def dead(database: Database) -> list[asyncpg.Record]:
    async with database.reading() as connection:
        return await list_dead(connection, after_event_id=None, limit=100)


async def stored(jetstream: JetStreamContext) -> int:
    return int((await jetstream.stream_info(STREAM)).state.messages)


class CountingRelay(Relay):
    """Counts what it sends."""

    sent = 0

    async def _send(self, row: asyncpg.Record) -> asyncio.Future[PubAck]:
        self.sent += 1
        return await super()._send(row)


class NeverMarks(CountingRelay):
    """Is about to mark what it has sent, and stays there."""

    async def _mark(self, *_: object) -> None:
        await asyncio.Event().wait()


class FailsOnce(Relay):
    """The first attempt to publish this event fails."""

    def __init__(self, *arguments: Any, event_id: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.fail = event_id

    async def _send(self, row: asyncpg.Record) -> asyncio.Future[PubAck]:
        if str(row["event_id"]) == self.fail:
            self.fail = ""
            raise nats.errors.TimeoutError
        return await super()._send(row)


class LosesPostgresOnce(Relay):
    """PostgreSQL goes as it is told what the stream has lost."""

    lost = False

    async def _unsend(self, last: int, before: datetime) -> int:
        if not self.lost:
            self.lost = True
            raise asyncpg.InterfaceError("lost")
        return await super()._unsend(last, before)


async def test_an_event_is_sent_if_its_change_is_committed_and_only_then(
    database: Database, jetstream: JetStreamContext
) -> None:
    message = events_pb2.TaskQueued(task=task_pb2.Task(task_id="undone"))

    async def undone() -> None:
        async with database.transaction() as tx:
            await enqueue(tx, new_id(), message, account_id=ACCOUNT, work_id=None, resource_id="undone")
            raise KeyError

    with pytest.raises(KeyError):
        await undone()
    sent_id = await commit(database, "done", 1)
    async with running(Relay("task", database, jetstream, replica="a")):
        (sent,) = await read_events(jetstream, ALL, count=1)
    assert sent.event_id == sent_id
    assert sent.source == "/saucer/task"
    assert await stored(jetstream) == 1


async def test_a_relay_that_dies_between_publishing_and_marking_delivers_the_event_once(
    database: Database, jetstream: JetStreamContext
) -> None:
    effects = Effects(database)
    await commit(database, "t", 1)
    dying = NeverMarks("task", database, jetstream, replica="dying")
    async with running(dying):
        await read_events(jetstream, ALL, count=1)
    assert await unsent(database) == 1
    following = CountingRelay("task", database, jetstream, replica="following")
    async with running(following, effects.consumer(jetstream)):
        await effects.reach(1)
        await until_all_sent(database)
    assert (dying.sent, following.sent) == (1, 1)
    assert await stored(jetstream) == 1
    assert (effects.taken, effects.calls) == ([("t", 1)], 1)


async def test_of_two_relays_one_sends_and_the_other_takes_over_when_it_is_gone(
    database: Database, jetstream: JetStreamContext
) -> None:
    relays = [CountingRelay("task", database, jetstream, replica=name) for name in ("a", "b")]
    async with running(*relays) as tasks:
        for number in range(20):
            await commit(database, f"t{number}", 1)
        await read_events(jetstream, ALL, count=20)
        assert sorted(relay.sent for relay in relays) == [0, 20]
        leader = 0 if relays[0].sent else 1
        tasks[leader].cancel()
        await commit(database, "t20", 1)
        await read_events(jetstream, ALL, count=21)
    # What the first had sent and not marked, the second sends again; JetStream knows the ids and keeps each once.
    assert relays[1 - leader].sent >= 1
    assert await stored(jetstream) == 21


async def test_a_relay_that_waits_for_nats_keeps_no_connection_to_the_database(
    new_database: NewDatabase, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_answer, stream_info = asyncio.Event(), asyncio.Event(), jetstream.stream_info

    async def slow(name: str) -> StreamInfo:
        asked.set()
        await may_answer.wait()
        return await stream_info(name)

    async with opened(await new_database(), pool_size=1) as database:
        await commit(database, "t", 1)
        monkeypatch.setattr(jetstream, "stream_info", slow)
        async with running(Relay("task", database, jetstream, replica="r")):
            await asked.wait()
            async with asyncio.timeout(5):
                assert await unsent(database) == 1
            may_answer.set()
            assert len(await read_events(jetstream, ALL, count=1)) == 1


async def test_what_a_stream_has_lost_is_sent_again_though_postgresql_fails_in_between(
    database: Database, jetstream: JetStreamContext
) -> None:
    await commit(database, "t", 1)
    async with running(Relay("task", database, jetstream, replica="r")):
        await until_all_sent(database)
    await jetstream.delete_stream(STREAM)

    async def sent_again() -> bool:
        with suppress(NoSuchStreamError):
            return await stored(jetstream) == 1
        return False

    async with running(LosesPostgresOnce("task", database, jetstream, replica="r")):
        await until(sent_again)


async def test_a_resources_revisions_stay_in_order_though_publishing_fails_in_between(
    database: Database, jetstream: JetStreamContext
) -> None:
    for revision in (1, 2, 3):
        for resource in ("a", "b"):
            await commit(database, resource, revision)
    # Its neighbour in the batch is on its way already, and is sent again with it.
    failing = derived_id("TaskQueued", "b", 2)
    async with running(FailsOnce("task", database, jetstream, replica="r", event_id=failing)):
        events = await read_events(jetstream, ALL, count=6)
    for resource in ("a", "b"):
        seen = [found.event_id for found in events if found.subject.endswith(f".{resource}")]
        assert seen == [derived_id("TaskQueued", resource, revision) for revision in (1, 2, 3)]
    assert await stored(jetstream) == 6


async def test_a_handler_that_fails_for_now_gets_the_event_again(
    database: Database, jetstream: JetStreamContext
) -> None:
    failures = [UnavailableError("PEER_AWAY", "Later."), RuntimeError("a race")]

    async def fail_twice(taken: CloudEvent, message: events_pb2.TaskQueued) -> None:
        if failures:
            raise failures.pop()

    effects = Effects(database, fail_twice)
    await commit(database, "t", 1)
    async with running(Relay("task", database, jetstream, replica="r"), effects.consumer(jetstream)):
        await effects.reach(1)
    assert effects.calls == 3
    assert await dead(database) == []


async def test_a_refused_event_is_dead_and_those_behind_it_are_taken_and_a_retry_takes_it_later(
    database: Database, jetstream: JetStreamContext
) -> None:
    refusing = True

    async def refuse(taken: CloudEvent, message: events_pb2.TaskQueued) -> None:
        if refusing and message.task.task_id == "bad":
            raise FailedPreconditionError("WRONG_STATE", "It is STOPPED.")

    effects = Effects(database, refuse)
    bad_id = await commit(database, "bad", 1)
    await commit(database, "good", 1)
    consumer = effects.consumer(jetstream)
    async with running(Relay("task", database, jetstream, replica="r"), consumer):
        await effects.reach(1)
        (kept,) = await dead(database)
        assert (str(kept["event_id"]), kept["attempts"]) == (bad_id, 1)
        assert "It is STOPPED." in kept["error"]
        with pytest.raises(FailedPreconditionError):
            await retry_dead(database, consumer, bad_id)
        assert len(await dead(database)) == 1
        refusing = False
        await retry_dead(database, consumer, bad_id)
    assert await dead(database) == []
    assert effects.taken == [("good", 1), ("bad", 1)]


async def test_an_event_that_fails_as_often_as_is_allowed_is_dead(
    database: Database, jetstream: JetStreamContext
) -> None:
    async def fail(taken: CloudEvent, message: events_pb2.TaskQueued) -> None:
        raise UnavailableError("PEER_AWAY", "Later.")

    effects = Effects(database, fail)
    await commit(database, "t", 1)
    async with running(Relay("task", database, jetstream, replica="r"), effects.consumer(jetstream)):

        async def buried() -> list[asyncpg.Record]:
            return await dead(database)

        (kept,) = await until(buried)
    assert kept["attempts"] == effects.calls == 3


async def test_bytes_that_are_no_event_of_their_type_are_dead_and_hold_up_nothing(
    database: Database, jetstream: JetStreamContext
) -> None:
    effects = Effects(database)
    good = event(events_pb2.TaskQueued(task=task_pb2.Task(task_id="t", revision=1)), "task", ACCOUNT, "t", "t")
    await jetstream.publish(f"{good.type}.x.y.z", b"no headers")
    bad = CloudEvent(new_id(), good.source, good.type, good.subject, ACCOUNT, good.time, b"\xff{")
    await publish(jetstream, bad)
    await publish(jetstream, good)
    async with running(effects.consumer(jetstream)):
        await effects.reach(1)
        (kept,) = await dead(database)
    assert str(kept["event_id"]) == bad.event_id
    assert effects.taken == [("t", 1)]


async def test_an_event_that_comes_twice_has_its_effect_once(database: Database, jetstream: JetStreamContext) -> None:
    effects = Effects(database)
    sent = event(events_pb2.TaskQueued(task=task_pb2.Task(task_id="t", revision=1)), "task", ACCOUNT, "t", "t")
    # As after JetStream's window for duplicates: the same event under another message id.
    for number in range(3):
        await jetstream.publish(sent.subject, sent.data, headers=sent.headers() | {"Nats-Msg-Id": str(number)})
    await publish(jetstream, event(events_pb2.TaskQueued(task=task_pb2.Task(task_id="u")), "task", ACCOUNT, "u", "u"))
    async with running(effects.consumer(jetstream)):
        await effects.reach(2)
    assert effects.calls == 4
    assert effects.taken == [("t", 1), ("u", 0)]


async def test_a_relay_that_is_stopped_as_it_is_woken_stops(database: Database, jetstream: JetStreamContext) -> None:
    relay = asyncio.create_task(Relay("task", database, jetstream, replica="r").run())
    await asyncio.sleep(0.2)
    database.published.set()
    relay.cancel()
    done, _ = await asyncio.wait({relay}, timeout=3)
    assert done


async def test_a_works_events_are_taken_in_order_and_do_not_hold_up_another_works(
    database: Database, jetstream: JetStreamContext
) -> None:
    other_taken = asyncio.Event()

    async def wait(taken: CloudEvent, message: events_pb2.TaskQueued) -> None:
        if message.task.task_id == "mine" and message.task.revision == 1:
            await other_taken.wait()
        if message.task.task_id == "another":
            other_taken.set()

    effects = Effects(database, wait)
    for revision in (1, 2, 3):
        await commit(database, "mine", revision)
    await commit(database, "another", 1)
    async with running(Relay("task", database, jetstream, replica="r"), effects.consumer(jetstream)):
        await effects.reach(4)
    assert [revision for task, revision in effects.taken if task == "mine"] == [1, 2, 3]
    assert effects.calls == 4


async def test_events_flow_again_after_every_connection_to_postgresql_was_cut(
    database: Database, jetstream: JetStreamContext, postgres: PostgresServer
) -> None:
    effects = Effects(database)
    async with running(Relay("task", database, jetstream, replica="r"), effects.consumer(jetstream)):
        await commit(database, "t", 1)
        await effects.reach(1)
        name = await database.pool.fetchval("SELECT current_database()")
        administrator = await asyncpg.connect(postgres.admin_uri)
        await administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await administrator.close()

        async def committed() -> str | None:
            try:
                return await commit(database, "t", 2)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                return None

        await until(committed)
        await effects.reach(2)
    assert effects.taken == [("t", 1), ("t", 2)]


async def test_events_flow_again_after_nats_was_killed_and_started_again(database: Database, servers_dir: Path) -> None:
    server = NatsServer(servers_dir / f"nats-{new_id()}" / "nats")
    await server.start()
    client = await nats.connect(server.uri, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    jetstream = client.jetstream()
    await ensure_stream(jetstream)
    effects = Effects(database)
    try:
        async with running(Relay("task", database, jetstream, replica="r"), effects.consumer(jetstream)):
            await commit(database, "t", 1)
            await effects.reach(1)
            server.kill()
            await server.wait()
            await commit(database, "t", 2)
            await server.start()
            await effects.reach(2)
            assert await stored(jetstream) == 2
    finally:
        await client.close()
        await server.stop()
    assert effects.taken == [("t", 1), ("t", 2)]


async def test_a_nats_that_lost_its_disk_gets_everything_again(
    database: Database, servers_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "STREAM_CHECK_S", 0.1)
    folder = servers_dir / f"nats-{new_id()}" / "nats"
    server = NatsServer(folder)
    await server.start()
    client = await nats.connect(server.uri, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    jetstream = client.jetstream()
    await ensure_stream(jetstream)
    effects = Effects(database)
    try:
        async with running(Relay("task", database, jetstream, replica="r"), effects.consumer(jetstream)):
            for revision in (1, 2, 3):
                await commit(database, "t", revision)
            await effects.reach(3)
            server.kill()
            await server.wait()
            shutil.rmtree(folder / "jetstream")
            await server.start()
            await commit(database, "t", 4)
            await effects.reach(4)

            async def whole() -> bool:
                return await stored(jetstream) == 4

            await until(whole)
    finally:
        await client.close()
        await server.stop()
    assert effects.taken == [("t", 1), ("t", 2), ("t", 3), ("t", 4)]


async def test_a_nats_that_was_restored_from_an_older_copy_gets_what_came_after_it(
    database: Database, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "STREAM_CHECK_S", 0.1)
    monkeypatch.setattr(outbox, "CLOCK_SKEW", -timedelta(hours=1))
    async with running(Relay("task", database, jetstream, replica="r")):
        await commit(database, "t", 1)
        await until_sent(database)
    async with database.reading() as connection:
        # As after a restore: the row remembers a place that the stream has not reached.
        await connection.execute("UPDATE outbox SET sequence = 1000")
    async with running(Relay("task", database, jetstream, replica="r")):

        async def marked_anew() -> bool:
            async with database.reading() as connection:
                return bool(await connection.fetchval("SELECT sequence < 1000 FROM outbox"))

        await until(marked_anew)


async def until_sent(database: Database) -> None:
    async def sent() -> bool:
        return await unsent(database) == 0

    await until(sent)
