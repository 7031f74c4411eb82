"""Events in: one durable consumer a service, one event of a task or deployment at a time, acknowledged after its effect
is committed.

1. A handler calls one use case, which opens its own transaction and commits before the acknowledgement: a crash between
   the two delivers the event again.
2. Snapshots with revisions and counters make most effects idempotent; claim() guards the others.
3. What may pass later (a database that restarts, a peer that does not answer) is delivered again after a delay.
4. What is unreadable or refused, or fails MAX_DELIVERIES times, is kept in dead_event and terminated: nothing is lost,
   and nothing stands in the way of the events behind it.
5. Works do not wait for each other: what is causally linked lies within one. Another replica takes from the same
   durable consumer, so that handlers are safe beside each other anyway.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import asyncpg
import nats.errors
import structlog
from google.protobuf.message import Message
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError
from prometheus_client import Counter, Histogram

from saucer.lib import tracing
from saucer.lib.cloudevent import CloudEvent, UnreadableEventError, from_json, parse_headers
from saucer.lib.errors import DomainError, NotFoundError, UnavailableError
from saucer.lib.postgres import Connection, Database, Transaction
from saucer.lib.stream import STREAM, USUAL, StreamShape, ensure_stream

# Events in this process; no more are fetched.
MAX_HELD = 100
# Of those, handled at once, each of another work; the pool has to serve calls besides.
AT_ONCE = 4
FETCH_TIMEOUT_S = 5.0
# An event whose handler takes longer is delivered again, also to another replica.
ACK_WAIT_S = 60.0
# Then it is dead, and waits for an operator.
MAX_DELIVERIES = 10
# Doubles with each delivery up to the greatest.
RETRY_FIRST_S = 0.2
RETRY_GREATEST_S = 30.0
RECONNECT_S = 1.0

log = structlog.get_logger()
events_total = Counter("saucer_events_total", "Events by what became of them", ["service", "type", "outcome"])
event_lag = Histogram(
    "saucer_event_lag_seconds",
    "From an event's creation to its effect",
    ["service"],
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)

Handler = Callable[[CloudEvent, Message], Awaitable[None]]


@dataclass(frozen=True)
class Handles:
    """An event type with what is to be called for it."""

    message: type[Message]
    handler: Handler

    @property
    def event_type(self) -> str:
        """CloudEvents type: the full name of the message."""
        return self.message.DESCRIPTOR.full_name


async def claim(tx: Transaction, event_id: str) -> bool:
    """True the first time; False if the effect of this event is already committed."""
    taken = await tx.connection.fetchval(
        "INSERT INTO inbox (event_id, taken_at) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true", event_id, tx.now
    )
    return bool(taken)


class _Lanes:
    """Takes messages: each work's in order, AT_ONCE works at a time, each as soon as its turn comes.

    A work is a task or deployment; what an account's events are of none is a work of its own.
    """

    def __init__(self, take: Callable[[Msg], Awaitable[None]]) -> None:
        self._take = take
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._lanes: dict[str, deque[Msg]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    async def room(self) -> int:
        """How many more may be added; waits for the first. Raises what taking a message raised."""
        while self._held >= MAX_HELD and self._failure is None:
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        return MAX_HELD - self._held

    def add(self, message: Msg) -> None:
        """To be taken after those of its work that were added before."""
        self._held += 1
        # A subject ends in account, work and resource.
        work = ".".join(message.subject.split(".")[-3:-1])
        lane = self._lanes.setdefault(work, deque())
        lane.append(message)
        if len(lane) == 1:
            task = asyncio.create_task(self._go_through(work, lane))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Lets go of all; what is not acknowledged is delivered again."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _go_through(self, work: str, lane: deque[Msg]) -> None:
        while lane:
            async with self._turns:
                await self._take(lane[0])
            lane.popleft()
            self._held -= 1
            self._changed.set()
        del self._lanes[work]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._changed.set()


class Consumer:
    """Hands a service's events to their handlers."""

    def __init__(
        self,
        service: str,
        database: Database,
        jetstream: JetStreamContext,
        handlers: Mapping[str, Handles],
        *,
        shape: StreamShape = USUAL,
    ) -> None:
        self._service = service
        self._database = database
        self._jetstream = jetstream
        self._handlers = handlers
        self._shape = shape

    async def run(self) -> None:
        """Until cancelled. What was not acknowledged then is delivered again."""
        while True:
            try:
                await self._consume(await self._subscribe())
            except (OSError, nats.errors.Error, JetStreamError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("consumer_interrupted", error=repr(error))
                await asyncio.sleep(RECONNECT_S)

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        await ensure_stream(self._jetstream, self._shape)
        # add_consumer brings an existing one up to date; pull_subscribe alone would keep old settings without a word.
        await self._jetstream.add_consumer(
            STREAM,
            ConsumerConfig(
                durable_name=self._service,
                deliver_policy=DeliverPolicy.ALL,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT_S,
                filter_subjects=[f"{event_type}.>" for event_type in sorted(self._handlers)],
                max_ack_pending=MAX_HELD * 10,
            ),
        )
        return await self._jetstream.pull_subscribe_bind(self._service, STREAM)

    async def _consume(self, subscription: JetStreamContext.PullSubscription) -> None:
        lanes = _Lanes(self._take)
        try:
            while True:
                room = await lanes.room()
                try:
                    messages = await subscription.fetch(room, FETCH_TIMEOUT_S)
                except TimeoutError:  # nats-py raises its own, and asyncio's
                    messages = []
                _heed_cancellation()
                for message in messages:
                    lanes.add(message)
        finally:
            await lanes.close()

    async def _take(self, message: Msg) -> None:
        attempts = message.metadata.num_delivered or 1
        try:
            event = parse_headers(message.headers, message.data)
        except UnreadableEventError as error:
            log.error("event_without_attributes", subject=message.subject, error=str(error))
            await message.term()
            return
        try:
            await self.handle(event)
        except Exception as error:  # whatever a handler meets: tried again, then kept
            await self._failed(message, event, attempts, error)
        else:
            await message.ack()
            events_total.labels(self._service, event.type, "taken").inc()
            if attempts == 1:
                event_lag.labels(self._service).observe(
                    max(0.0, message.metadata.timestamp.timestamp() - event.time.timestamp())
                )

    async def handle(self, event: CloudEvent) -> None:
        """Parses the body and calls the handler. Raises what either raises."""
        handles = self._handlers[event.type]
        parts = event.subject.removeprefix(f"{event.type}.").split(".")
        ids = dict(zip(("account_id", "work_id", "resource_id"), parts, strict=False))
        with (
            structlog.contextvars.bound_contextvars(**ids),
            tracing.span(event.type, parent=event.traceparent, kind=tracing.CONSUMER, attributes=ids),
        ):
            await handles.handler(event, from_json(event.data, handles.message()))

    async def _failed(self, message: Msg, event: CloudEvent, attempts: int, error: Exception) -> None:
        if attempts < MAX_DELIVERIES and not _is_final(error):
            events_total.labels(self._service, event.type, "delayed").inc()
            log.warning("event_delayed", event_id=event.event_id, type=event.type, attempts=attempts, error=repr(error))
            await message.nak(min(RETRY_FIRST_S * 2 ** (attempts - 1), RETRY_GREATEST_S))
            return
        log.error("event_dead", event_id=event.event_id, type=event.type, attempts=attempts, exc_info=error)
        async with self._database.transaction() as tx:
            await bury(tx, self._service, event, repr(error), attempts)
        await message.term()
        events_total.labels(self._service, event.type, "dead").inc()


def _heed_cancellation() -> None:
    """Raises what nats-py may have swallowed: Python 3.11's wait_for loses a cancellation that meets a result."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _is_final(error: Exception) -> bool:
    """True for what cannot be otherwise the next time. Anything unforeseen may be a race, and is tried again."""
    if isinstance(error, UnreadableEventError):
        return True
    return isinstance(error, DomainError) and not isinstance(error, UnavailableError)


async def bury(tx: Transaction, service: str, event: CloudEvent, error: str, attempts: int) -> None:
    """Keeps an event that could not be taken."""
    await tx.connection.execute(
        """
        INSERT INTO dead_event (event_id, consumer, type, subject, headers, body, error, attempts, dead_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (event_id) DO UPDATE
        SET error = excluded.error, attempts = excluded.attempts, dead_at = excluded.dead_at, retried_at = NULL
        """,
        event.event_id,
        service,
        event.type,
        event.subject,
        json.dumps(event.headers()),
        event.data.decode(errors="replace"),
        error,
        attempts,
        tx.now,
    )


async def list_dead(connection: Connection, *, after_event_id: str | None, limit: int) -> list[asyncpg.Record]:
    """Those not retried with success, oldest id first."""
    return await connection.fetch(
        """
        SELECT event_id, consumer, type, subject, headers, body, error, attempts, dead_at FROM dead_event
        WHERE retried_at IS NULL AND ($1::uuid IS NULL OR event_id > $1) ORDER BY event_id LIMIT $2
        """,
        after_event_id,
        limit,
    )


async def retry_dead(database: Database, consumer: Consumer, event_id: str) -> asyncpg.Record:
    """Handles a dead event again. Raises NotFoundError, or what its handler raises: it stays dead then."""
    async with database.reading() as connection:
        row = await connection.fetchrow(
            """
            SELECT event_id, consumer, type, subject, headers, body, error, attempts, dead_at FROM dead_event
            WHERE event_id = $1 AND retried_at IS NULL
            """,
            event_id,
        )
    if row is None:
        raise NotFoundError("dead_event", event_id)
    await consumer.handle(parse_headers(json.loads(row["headers"]), row["body"].encode()))
    async with database.transaction() as tx:
        await tx.connection.execute("UPDATE dead_event SET retried_at = $2 WHERE event_id = $1", event_id, tx.now)
    return row
