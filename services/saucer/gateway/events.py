"""An account's events, read from the stream.

1. A stream is a consumer of its own, made when the call begins and removed when it ends; it keeps no place of its own,
   since the client says where to go on.
2. It is read by pulling, so that a slow client holds back its own stream, and nothing piles up here.
3. Nothing is acknowledged. A gap in the consumer's count, or a consumer that NATS has lost, is healed by a new consumer
   after the last event that was sent (this is what an ordered consumer is).
4. The filter by account stands in the consumer's subjects: JetStream hands over no other account's event.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from saucer.gateway.v1 import gateway_pb2
from saucer.lib.clock import to_timestamp
from saucer.lib.cloudevent import CONTENT_TYPE, SPEC_VERSION, UnreadableEventError, parse_headers
from saucer.lib.errors import FailedPreconditionError, UnavailableError
from saucer.lib.ids import new_id
from saucer.lib.stream import STREAM

BATCH = 100
FETCH_TIMEOUT_S = 5.0
# NATS removes a consumer that a killed gateway left behind after this.
INACTIVE_S = 60.0
RECONNECT_S = 1.0
# A stream that NATS does not serve so many times in a row ends with UNAVAILABLE; its client comes back.
MAX_FAILURES = 30

log = structlog.get_logger()


def subject(account_id: str | None, work_id: str | None) -> str:
    """What a consumer filters by; None: of every account, of every task and deployment."""
    return f"saucer.*.v1.*.{account_id or '*'}.{work_id or '*'}.>"


class EventReader:
    """One client's way through the stream."""

    def __init__(self, jetstream: JetStreamContext, filter_subject: str, after_sequence: int, until_now: bool) -> None:
        self._jetstream = jetstream
        self._subject = filter_subject
        self._sequence = after_sequence
        self._until_now = until_now
        # In a row.
        self._failures = 0

    async def read(self) -> AsyncIterator[gateway_pb2.CloudEvent]:
        """The events after the given one, then those that come.

        Raises:
            FailedPreconditionError: the stream does not reach as far as the given event: it was lost and begun anew.
            UnavailableError: NATS does not answer.
        """
        last = await self._last_sequence()
        while not (self._until_now and self._sequence >= last):
            try:
                async for message in self._consume(last if self._until_now else None):
                    yield message
            except (OSError, nats.errors.Error, JetStreamError) as error:
                log.warning("event_stream_interrupted", error=repr(error))
                self._failures += 1
                if self._failures > MAX_FAILURES:
                    raise UnavailableError("EVENTS_UNAVAILABLE", "The event stream does not answer now.") from error
                await asyncio.sleep(RECONNECT_S)

    async def _last_sequence(self) -> int:
        try:
            last = (await self._jetstream.stream_info(STREAM)).state.last_seq
        except (OSError, nats.errors.Error, JetStreamError) as error:
            raise UnavailableError("EVENTS_UNAVAILABLE", "The event stream does not answer now.") from error
        if self._sequence > last:
            raise FailedPreconditionError(
                "SEQUENCE_UNKNOWN",
                f"The stream ends at {last}, before {self._sequence}; begin again from 0.",
                last_sequence=last,
            )
        return last

    async def _consume(self, last: int | None) -> AsyncIterator[gateway_pb2.CloudEvent]:
        """Events through one consumer; ends at a gap, or, if `last` is given, once nothing up to it is left."""
        consumer = await self._add_consumer()
        subscription = await self._jetstream.pull_subscribe_bind(consumer.name, STREAM)
        self._failures = 0
        try:
            if last is not None and not consumer.num_pending:
                self._sequence = last
                return
            taken = 0
            while True:
                for message in await _fetch(subscription):
                    taken += 1
                    if message.metadata.sequence.consumer != taken:
                        log.warning("event_stream_gap", subject=self._subject, after=self._sequence)
                        return
                    self._sequence = message.metadata.sequence.stream
                    event = _to_message(message)
                    if event is not None:
                        yield event
                    if last is not None and (not message.metadata.num_pending or self._sequence >= last):
                        self._sequence = last
                        return
        finally:
            with suppress(OSError, nats.errors.Error, JetStreamError):
                await subscription.unsubscribe()
                await self._jetstream.delete_consumer(STREAM, consumer.name)

    async def _add_consumer(self) -> ConsumerInfo:
        return await self._jetstream.add_consumer(
            STREAM,
            ConsumerConfig(
                # A name of its own: the gateway's user may touch no service's consumer, and is refused one without.
                name=new_id(),
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._sequence + 1,
                ack_policy=AckPolicy.NONE,
                filter_subject=self._subject,
                inactive_threshold=INACTIVE_S,
                mem_storage=True,
                num_replicas=1,
            ),
        )


async def _fetch(subscription: JetStreamContext.PullSubscription) -> list[Msg]:
    try:
        return await subscription.fetch(BATCH, FETCH_TIMEOUT_S)
    except nats.errors.TimeoutError:
        # Nothing came, or the consumer is no more: asking for it tells one from the other.
        await subscription.consumer_info()
        return []


def _to_message(message: Msg) -> gateway_pb2.CloudEvent | None:
    try:
        event = parse_headers(message.headers, message.data)
    except UnreadableEventError as error:
        log.error("event_without_attributes", subject=message.subject, error=str(error))
        return None
    return gateway_pb2.CloudEvent(
        id=event.event_id,
        source=event.source,
        spec_version=SPEC_VERSION,
        type=event.type,
        subject=event.subject,
        time=to_timestamp(event.time),
        data_content_type=CONTENT_TYPE,
        data=event.data.decode(errors="replace"),
        sequence=message.metadata.sequence.stream,
    )
