"""Events out: written in the transaction of the change, sent to JetStream afterwards, in order, at least once.

1. enqueue() inserts the row in the caller's transaction: no event without its change, no change without its event.
2. The commit wakes the relay in process; a poll each second is the net (NOTIFY would cost nine tenths of the commits).
3. One relay of a service sends, elected by a lease row.
4. A batch holds at most one event of a resource, so that a failed send cannot put a resource's later event first.
5. JetStream deduplicates by Nats-Msg-Id = event id: a resent row changes nothing.
6. A row is marked sent once JetStream has acknowledged it, while the next round is on its way; unsent rows are found by
   flag, never by a last position, because identities commit out of order.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import nats.errors
import structlog
from google.protobuf.message import Message
from nats.js import JetStreamContext
from nats.js.errors import Error as JetStreamError
from prometheus_client import Counter, Gauge

from saucer.lib import tracing
from saucer.lib.cloudevent import CloudEvent, subject_of, to_json
from saucer.lib.postgres import Connection, Database, Transaction

# Rows read at once; more wait for the next round, which follows at once.
BATCH = 500
# The net under the wake-up.
POLL_S = 1.0
# After a failure to reach PostgreSQL or NATS.
RETRY_S = 1.0
# How long a relay that died keeps the others waiting.
LEASE_S = 5
# A lease is renewed after this, not each round: a write for each would halve the rounds.
RENEW_S = 2.0
PUBLISH_TIMEOUT_S = 5.0

log = structlog.get_logger()
sent_total = Counter("saucer_outbox_sent_total", "Events that JetStream has acknowledged", ["service"])
unsent = Gauge("saucer_outbox_unsent", "Events seen waiting at the last round", ["service"])


@dataclass(frozen=True)
class Outgoing:
    """An event on its way out; see enqueue()."""

    event_id: str
    message: Message
    account_id: str
    work_id: str | None
    resource_id: str
    # The trace that it belongs to; None: the present one, if any.
    traceparent: str | None = None


async def enqueue(
    tx: Transaction,
    event_id: str,
    message: Message,
    *,
    account_id: str,
    work_id: str | None,
    resource_id: str,
    traceparent: str | None = None,
) -> None:
    """Writes an event in the transaction of the change that it tells of. The same event id twice writes one row."""
    await enqueue_all(tx, [Outgoing(event_id, message, account_id, work_id, resource_id, traceparent)])


async def enqueue_all(tx: Transaction, events: Sequence[Outgoing]) -> None:
    """The same for several, in their order, by one statement."""
    types = [event.message.DESCRIPTOR.full_name for event in events]
    await tx.connection.execute(
        """
        INSERT INTO outbox (event_id, type, subject, account_id, resource, data, traceparent, created_at)
        SELECT e.*, $8
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]) AS e
        ON CONFLICT (event_id) DO NOTHING
        """,
        [event.event_id for event in events],
        types,
        [
            subject_of(type_, event.account_id, event.work_id, event.resource_id)
            for type_, event in zip(types, events, strict=True)
        ],
        [event.account_id for event in events],
        [event.resource_id for event in events],
        [to_json(event.message).decode() for event in events],
        [event.traceparent or tracing.current() for event in events],
        tx.now,
    )
    tx.published = True


class Relay:
    """Sends what the outbox of one service holds."""

    def __init__(self, service: str, database: Database, jetstream: JetStreamContext, *, replica: str) -> None:
        self._service = service
        self._database = database
        self._jetstream = jetstream
        self._replica = replica
        self._renew_at_s = float("-inf")
        # By PostgreSQL's clock; None while another relay has the lease.
        self._elected_at: datetime | None = None
        self._marking: asyncio.Task[None] | None = None
        # Acknowledged by JetStream, and perhaps not marked yet.
        self._acknowledged: list[int] = []

    async def run(self) -> None:
        """Until cancelled. What is unsent or unmarked then is sent by the next relay."""
        try:
            await self._run()
        finally:
            if self._marking is not None:
                self._marking.cancel()

    async def _run(self) -> None:
        while True:
            try:
                sent = await self._round()
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, nats.errors.Error, JetStreamError) as error:
                log.warning("outbox_round_failed", error=repr(error))
                await asyncio.sleep(RETRY_S)
                continue
            if not sent:
                await self._wait()

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._database.published.wait(), POLL_S)
        except TimeoutError:
            return

    async def _round(self) -> int:
        self._database.published.clear()
        if self._marking is not None and self._marking.done():
            await self._marked()
        async with self._database.reading() as connection:
            if not await self._elected(connection):
                return 0
            rows = await connection.fetch(
                """
                SELECT position, event_id, type, subject, account_id, resource, data, created_at, traceparent
                FROM outbox WHERE sent_at IS NULL AND position <> ALL($2) ORDER BY position LIMIT $1
                """,
                BATCH,
                self._acknowledged,
            )
        unsent.labels(self._service).set(len(rows))
        if not rows:
            return 0
        batch = _until_a_resource_repeats(rows)
        await asyncio.gather(*(self._publish(row) for row in batch))
        await self._marked()
        self._acknowledged = [row["position"] for row in batch]
        self._marking = asyncio.create_task(self._mark(self._acknowledged, self._elected_at))
        sent_total.labels(self._service).inc(len(batch))
        return len(batch)

    async def _mark(self, positions: list[int], about: datetime | None) -> None:
        """`about` is right to within RENEW_S: it only tells when a row may be forgotten."""
        async with self._database.reading() as connection:
            await connection.execute("UPDATE outbox SET sent_at = $2 WHERE position = ANY($1)", positions, about)

    async def _marked(self) -> None:
        """Waits for the marks of the round before. Raises what kept them from being written; those are sent again."""
        marking, self._marking = self._marking, None
        if marking is not None:
            try:
                await marking
            finally:
                self._acknowledged = []

    async def _elected(self, connection: Connection) -> bool:
        asked_s = time.monotonic()
        if asked_s < self._renew_at_s:
            return True
        # The lease is between replicas, so it goes by the database's own clock, whatever clock the service has.
        self._elected_at = await connection.fetchval(
            """
                INSERT INTO relay_lease (holder, expires_at) VALUES ($1, clock_timestamp() + $2)
                ON CONFLICT (only_one) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
                WHERE relay_lease.holder = $1 OR relay_lease.expires_at < clock_timestamp()
                RETURNING clock_timestamp()
                """,
            self._replica,
            timedelta(seconds=LEASE_S),
        )
        elected = self._elected_at is not None
        self._renew_at_s = asked_s + RENEW_S if elected else float("-inf")
        return elected

    async def _publish(self, row: asyncpg.Record) -> None:
        event = CloudEvent(
            event_id=str(row["event_id"]),
            source=f"/saucer/{self._service}",
            type=row["type"],
            subject=row["subject"],
            account_id=row["account_id"],
            time=row["created_at"],
            data=row["data"].encode(),
            traceparent=row["traceparent"],
        )
        await self._jetstream.publish(event.subject, event.data, timeout=PUBLISH_TIMEOUT_S, headers=event.headers())


def _until_a_resource_repeats(rows: list[asyncpg.Record]) -> list[asyncpg.Record]:
    seen: set[str] = set()
    batch = []
    for row in rows:
        if row["resource"] in seen:
            break
        seen.add(row["resource"])
        batch.append(row)
    return batch
