"""Events out: written in the transaction of the change, sent to JetStream afterwards, in order, at least once.

1. enqueue() inserts the row in the caller's transaction: no event without its change, no change without its event.
2. The commit wakes the relay in process; a poll each second is the net (NOTIFY would cost nine tenths of the commits).
3. One relay of a service sends, elected by a lease row.
4. A batch holds at most one event of a resource, so that a failed send cannot put a resource's later event first.
5. JetStream deduplicates by Nats-Msg-Id = event id: a resent row changes nothing.
6. A row is marked sent once JetStream has acknowledged it, while the next round is on its way; unsent rows are found by
   flag, never by a last position, because identities commit out of order.
7. A stream that was made anew, or ends earlier than it did, has lost its disk: what it no longer has is sent again.
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
from nats.js.api import PubAck
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError as NoSuchStreamError
from prometheus_client import Counter, Gauge

from saucer.lib import tracing
from saucer.lib.clock import wait_at_most
from saucer.lib.cloudevent import CloudEvent, subject_of, to_json
from saucer.lib.postgres import Database, Transaction
from saucer.lib.stream import STREAM, USUAL, StreamShape, ensure_stream

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
# Between two looks at whether the stream is still the one that has what was sent.
STREAM_CHECK_S = 10.0
# NATS' clock, which dates the stream, and PostgreSQL's, which dates the rows, may differ by this; more is sent twice.
CLOCK_SKEW = timedelta(minutes=1)

log = structlog.get_logger()
resent_total = Counter("saucer_outbox_resent_total", "Events sent again to a stream that had lost them", ["service"])
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
    """The same for several, in their order, by one statement; none for none."""
    if not events:
        return
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

    def __init__(
        self,
        service: str,
        database: Database,
        jetstream: JetStreamContext,
        *,
        replica: str,
        shape: StreamShape = USUAL,
    ) -> None:
        self._service = service
        self._database = database
        self._jetstream = jetstream
        self._replica = replica
        self._shape = shape
        self._renew_at_s = float("-inf")
        # By PostgreSQL's clock; None while another relay has the lease.
        self._elected_at: datetime | None = None
        self._marking: asyncio.Task[None] | None = None
        # Acknowledged by JetStream, and perhaps not marked yet.
        self._acknowledged: list[int] = []
        # What the stream was when last looked at: when it was made, and where it ended.
        self._stream: tuple[str, int] | None = None
        self._check_at_s = float("-inf")

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
                # Perhaps for want of a stream.
                self._check_at_s = float("-inf")
                await asyncio.sleep(RETRY_S)
                continue
            if not sent:
                await wait_at_most(self._database.published, POLL_S)

    async def _round(self) -> int:
        self._database.published.clear()
        if self._marking is not None and self._marking.done():
            await self._marked()
        if not await self._elected():
            return 0
        await self._check_stream()
        async with self._database.reading() as connection:
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
        sequences = await self._publish(batch)
        await self._marked()
        self._acknowledged = [row["position"] for row in batch]
        self._marking = asyncio.create_task(self._mark(self._acknowledged, sequences, self._elected_at))
        sent_total.labels(self._service).inc(len(batch))
        return len(batch)

    async def _check_stream(self) -> None:
        """Marks as unsent what the stream has lost. Raises what NATS raises: nothing is sent into the unknown."""
        if time.monotonic() < self._check_at_s:
            return
        try:
            info = await self._jetstream.stream_info(STREAM)
        except NoSuchStreamError:
            await ensure_stream(self._jetstream, self._shape)
            info = await self._jetstream.stream_info(STREAM)
        created, last = str(info.created), info.state.last_seq
        former = self._stream
        if former is None or created != former[0] or last < former[1]:
            lost = await self._unsend(last, datetime.fromisoformat(created) + CLOCK_SKEW)
            if lost:
                resent_total.labels(self._service).inc(lost)
                log.warning("stream_lost_events", events=lost, stream_made_at=created, last_sequence=last)
        self._stream, self._check_at_s = (created, last), time.monotonic() + STREAM_CHECK_S

    async def _unsend(self, last: int, before: datetime) -> int:
        """Marks as unsent what was sent beyond this place in the stream, or before that time; how many."""
        async with self._database.reading() as connection:
            lost: int = await connection.fetchval(
                """
                WITH lost AS (
                    UPDATE outbox SET sent_at = NULL, sequence = NULL
                    WHERE sequence > $1 OR sent_at < $2 RETURNING 1
                )
                SELECT count(*) FROM lost
                """,
                last,
                before,
            )
        return lost

    async def _mark(self, positions: list[int], sequences: list[int], about: datetime | None) -> None:
        """`about` is right to within RENEW_S: it only tells when a row may be forgotten.

        It does not wait for the disk, which would be kept from those who do: of marks that a crash of PostgreSQL loses,
        the events are sent again (5).
        """
        async with self._database.reading() as connection:
            await connection.execute(
                """
                UPDATE outbox SET sent_at = $3, sequence = sent.sequence
                FROM unnest($1::bigint[], $2::bigint[]) AS sent (position, sequence),
                     set_config('synchronous_commit', 'off', true) AS until_the_end_of_the_statement
                WHERE outbox.position = sent.position
                """,
                positions,
                sequences,
                about,
            )

    async def _marked(self) -> None:
        """Waits for the marks of the round before. Raises what kept them from being written; those are sent again."""
        marking, self._marking = self._marking, None
        if marking is not None:
            try:
                await marking
            finally:
                self._acknowledged = []

    async def _elected(self) -> bool:
        asked_s = time.monotonic()
        if asked_s < self._renew_at_s:
            return True
        # The lease is between replicas, so it goes by the database's own clock, whatever clock the service has.
        async with self._database.reading() as connection:
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

    async def _publish(self, batch: Sequence[asyncpg.Record]) -> list[int]:
        """Where in the stream each lies, once JetStream has acknowledged all. Raises what NATS raises."""
        sent: list[asyncio.Future[PubAck]] = []
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                # One after the other, and all of them before the first answer: a task for each would cost more, and
                # be no sooner.
                for row in batch:
                    sent.append(await self._send(row))  # noqa: PERF401 - what was sent must be known if the next fails
                return [acknowledged.seq for acknowledged in await asyncio.gather(*sent)]
        finally:
            # The client forgets those that are not acknowledged.
            for one in sent:
                one.cancel()

    async def _send(self, row: asyncpg.Record) -> "asyncio.Future[PubAck]":
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
        return await self._jetstream.publish_async(event.subject, event.data, headers=event.headers())


def _until_a_resource_repeats(rows: list[asyncpg.Record]) -> list[asyncpg.Record]:
    seen: set[str] = set()
    batch = []
    for row in rows:
        if row["resource"] in seen:
            break
        seen.add(row["resource"])
        batch.append(row)
    return batch
