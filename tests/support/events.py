"""Events as a test sends and reads them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import nats.errors
from google.protobuf.message import Message
from nats.js import JetStreamContext

from saucer.lib.cloudevent import CloudEvent, parse_headers, subject_of, to_json
from saucer.lib.ids import new_id
from saucer.lib.stream import STREAM

POLL_S = 0.05
T = TypeVar("T")


def event(message: Message, service: str, account_id: str, work_id: str | None, resource_id: str) -> CloudEvent:
    """An event as the service would send it."""
    event_type = message.DESCRIPTOR.full_name
    return CloudEvent(
        event_id=new_id(),
        source=f"/saucer/{service}",
        type=event_type,
        subject=subject_of(event_type, account_id, work_id, resource_id),
        account_id=account_id,
        time=datetime.now(UTC),
        data=to_json(message),
    )


def with_later_reason(order: CloudEvent) -> CloudEvent:
    """A StopOrdered for arrears, as a later billing would send it for a reason that nobody knows yet."""
    return replace(order, data=order.data.replace(b"STOP_REASON_ARREARS", b"STOP_REASON_OF_LATER"))


async def publish(jetstream: JetStreamContext, sent: CloudEvent) -> None:
    """Puts an event into the stream."""
    await jetstream.publish(sent.subject, sent.data, headers=sent.headers())


async def read_events(
    jetstream: JetStreamContext, subject: str, *, count: int, timeout_s: float = 20.0
) -> list[CloudEvent]:
    """The first `count` events of a subject (wildcards allowed), waiting for those to come."""
    subscription = await jetstream.subscribe(subject, stream=STREAM, ordered_consumer=True)
    found: list[CloudEvent] = []
    deadline = time.monotonic() + timeout_s
    try:
        while len(found) < count:
            message = await subscription.next_msg(timeout=max(0.01, deadline - time.monotonic()))
            found.append(parse_headers(message.headers, message.data))
    except nats.errors.TimeoutError:
        raise AssertionError(f"{len(found)} of {count} events of {subject} came in {timeout_s} s") from None
    finally:
        await subscription.unsubscribe()
    return found


async def until(condition: Callable[[], Awaitable[T | None]], *, timeout_s: float = 20.0) -> T:
    """The first true answer of a condition. Fails if none comes in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = await condition()
        if answer:
            return answer
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"It did not come true within {timeout_s} s.")
