"""event_p99_ms: from a commit in one service to the committed effect in another, at EVENTS_PER_S.

Ours: outbox row → relay → JetStream → consumer → transaction with an inbox row. Reference: an insert that commits by
itself → publish → push subscription → an insert that commits by itself → acknowledgement. Both with the same body,
PostgreSQL on disk with fsync, and a NATS that acknowledges what is on disk. Events start at fixed times, whether or
not those before have arrived, so a side that falls behind shows it.

Run as a program, this is one side of one of the two: `python -m tests.bench._events ROLE POSTGRES_URL NATS_URL`. It
obeys lines on standard input, each a number of events, and answers each with a line of JSON: times by event id, on the
machine's monotonic clock, which all its processes share.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import nats
from google.protobuf.message import Message
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StorageType

from saucer.lib import telemetry
from saucer.lib.clock import PostgresClock
from saucer.lib.cloudevent import CloudEvent, to_json
from saucer.lib.consumer import Consumer, Handles, claim
from saucer.lib.ids import new_id
from saucer.lib.outbox import Relay, enqueue
from saucer.lib.postgres import POOL_SIZE, Database, connect, migrate
from saucer.lib.stream import ensure_stream
from saucer.local.servers import NatsServer, PostgresServer
from saucer.task.v1 import events_pb2, task_pb2
from tests.bench.harness import Row, Say, compare, percentile

EVENTS_PER_S = 300
ROUND_S = 4
EVENTS = EVENTS_PER_S * ROUND_S
# Tasks that the events tell of, each in turn, and the accounts that have them.
TASKS = 1_000
ACCOUNTS = 100
ARRIVE_S = 30.0
LINE_BYTES = 2**24
BARE_STREAM, BARE_SUBJECT = "BENCH", "bench.event"

Times = dict[str, float]
Answer = Callable[[int], Awaitable[Times]]


def _tasks() -> list[task_pb2.Task]:
    account_ids = [new_id() for _ in range(ACCOUNTS)]
    task_ids = [new_id() for _ in range(TASKS)]
    return [
        task_pb2.Task(
            task_id=task_id, account_id=account_ids[number % ACCOUNTS], hold_id=f"{task_id}-1", start_number=1
        )
        for number, task_id in enumerate(task_ids)
    ]


async def _at_a_steady_rate(count: int, send: Callable[[int], Awaitable[None]]) -> None:
    begin = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(max(0.0, begin + number / EVENTS_PER_S - time.monotonic()))
            group.create_task(send(number))  # type: ignore[arg-type] # every send is a coroutine function


async def _jetstream(url: str) -> JetStreamContext:
    return (await nats.connect(url)).jetstream()


async def _publisher(database_url: str, nats_url: str) -> Answer:
    database = await _database(database_url)
    jetstream = await _jetstream(nats_url)
    await ensure_stream(jetstream)
    tasks = _tasks()
    relay = asyncio.ensure_future(Relay("bench", database, jetstream, replica="bench").run())

    async def answer(count: int) -> Times:
        committed: Times = {}

        async def send(number: int) -> None:
            event_id = new_id()
            task = tasks[number % TASKS]
            message = events_pb2.TaskQueued(task=task)
            async with database.transaction() as tx:
                await enqueue(
                    tx, event_id, message, account_id=task.account_id, work_id=task.task_id, resource_id=task.task_id
                )
            committed[event_id] = time.monotonic()

        assert not relay.done()
        await _at_a_steady_rate(count, send)
        return committed

    return answer


async def _consumer(database_url: str, nats_url: str) -> Answer:
    database = await _database(database_url)
    jetstream = await _jetstream(nats_url)
    arrivals = _Arrivals()

    async def take(event: CloudEvent, message: Message) -> None:
        async with database.transaction() as tx:
            await claim(tx, event.event_id)
        arrivals.add(event.event_id)

    handles = Handles(events_pb2.TaskQueued, take)
    consumer = Consumer("bench-reader", database, jetstream, {handles.event_type: handles})
    arrivals.keep(asyncio.ensure_future(consumer.run()))
    return arrivals.wait


async def _bare_publisher(database_url: str, nats_url: str) -> Answer:
    pool = await _bare_pool(database_url)
    jetstream = await _jetstream(nats_url)
    await jetstream.add_stream(name=BARE_STREAM, subjects=[BARE_SUBJECT], storage=StorageType.FILE)
    tasks = _tasks()

    async def answer(count: int) -> Times:
        committed: Times = {}

        async def send(number: int) -> None:
            event_id = new_id()
            body = to_json(events_pb2.TaskQueued(task=tasks[number % TASKS]))
            await pool.execute("INSERT INTO event (event_id, data) VALUES ($1, $2)", event_id, body.decode())
            committed[event_id] = time.monotonic()
            await jetstream.publish(BARE_SUBJECT, body, headers={"id": event_id})

        await _at_a_steady_rate(count, send)
        return committed

    return answer


async def _bare_consumer(database_url: str, nats_url: str) -> Answer:
    pool = await _bare_pool(database_url)
    jetstream = await _jetstream(nats_url)
    arrivals = _Arrivals()

    async def take(message: Msg) -> None:
        assert message.headers is not None
        event_id = message.headers["id"]
        await pool.execute("INSERT INTO event (event_id, data) VALUES ($1, $2)", event_id, message.data.decode())
        arrivals.add(event_id)
        await message.ack()

    await jetstream.subscribe(
        BARE_SUBJECT, durable="bare", cb=take, manual_ack=True, config=ConsumerConfig(max_ack_pending=EVENTS)
    )
    return arrivals.wait


async def _database(url: str) -> Database:
    database = await connect(url, PostgresClock())
    await migrate(database, "saucer.lib")
    return database


async def _bare_pool(url: str) -> "asyncpg.Pool[asyncpg.Record]":
    pool = await asyncpg.create_pool(url, min_size=1, max_size=POOL_SIZE)
    await pool.execute("CREATE TABLE event (event_id uuid PRIMARY KEY, data text NOT NULL)")
    return pool


class _Arrivals:
    """When each event's effect was committed, since the last answer."""

    def __init__(self) -> None:
        self._times: Times = {}
        self._arrived = asyncio.Event()
        self._work: list[asyncio.Future[None]] = []

    def keep(self, work: asyncio.Future[None]) -> None:
        """Holds on to what runs in the background."""
        self._work.append(work)

    def add(self, event_id: str) -> None:
        self._times.setdefault(event_id, time.monotonic())
        self._arrived.set()

    async def wait(self, count: int) -> Times:
        """Raises TimeoutError if so many do not come in time."""
        async with asyncio.timeout(ROUND_S + ARRIVE_S):
            while len(self._times) < count:
                self._arrived.clear()
                await self._arrived.wait()
        times, self._times = self._times, {}
        return times


_ROLES = {
    "publisher": _publisher,
    "consumer": _consumer,
    "bare-publisher": _bare_publisher,
    "bare-consumer": _bare_consumer,
}


async def _obey(role: str, database_url: str, nats_url: str) -> None:
    telemetry.configure_logging(role, json_lines=False, level="WARNING")
    answer = await _ROLES[role](database_url, nats_url)
    print(json.dumps({}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await answer(int(line))), flush=True)


class _Side:
    """One of the programs, as the benchmark holds it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, role: str, database_url: str, nats_url: str) -> AsyncIterator["_Side"]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench._events", role, database_url, nats_url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        side = cls(process)
        try:
            await side.answer()  # it is ready
            yield side
        finally:
            process.kill()
            await process.wait()

    def order(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n".encode())

    async def answer(self) -> Times:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("One side of the benchmark has ended; its trace is above.")
        times: Times = json.loads(line)
        return times


async def _p99_ms(publisher: _Side, consumer: _Side, count: int = EVENTS) -> float:
    for side in (publisher, consumer):
        side.order(count)
    committed, taken = await asyncio.gather(publisher.answer(), consumer.answer())
    return percentile([1000 * (taken[event_id] - at) for event_id, at in committed.items()], 0.99)


async def measure(folder: Path, say: Say) -> Row:
    """`folder` takes the servers' data; it should lie on a disk."""
    postgres, broker = PostgresServer(folder / "postgres"), NatsServer(folder / "nats")
    async with contextlib.AsyncExitStack() as stack:
        for server in (postgres, broker):
            await server.start()
            stack.push_async_callback(server.stop)

        async def side(role: str) -> _Side:
            url = await postgres.database(role.replace("-", "_"))
            return await stack.enter_async_context(_Side.start(role, url, broker.uri))

        ours = (await side("publisher"), await side("consumer"))
        bare = (await side("bare-publisher"), await side("bare-consumer"))
        for pair in (ours, bare):
            await _p99_ms(*pair, count=EVENTS_PER_S)  # opens connections
        return await compare(
            "event_p99_ms",
            "ms",
            "<= 5",
            ours=lambda: _p99_ms(*ours),
            reference=lambda: _p99_ms(*bare),
            say=say,
        )


if __name__ == "__main__":
    asyncio.run(_obey(*sys.argv[1:]))
