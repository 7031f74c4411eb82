"""Time. One clock for a transaction: PostgreSQL's, read once and passed on; a test passes its own."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from saucer.lib.postgres import Connection


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """Whether it was set by then. Unlike Python 3.11's wait_for, never loses a cancellation that meets the setting."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class Clock(Protocol):
    """Says what time it is for a transaction."""

    async def now(self, connection: Connection) -> datetime:
        """The time, aware, UTC."""
        ...


class PostgresClock:
    """The database's own clock, which all replicas share."""

    async def now(self, connection: Connection) -> datetime:
        """The present wall time of PostgreSQL."""
        value: datetime = await connection.fetchval("SELECT clock_timestamp()")
        return value.astimezone(UTC)


class ManualClock:
    """A clock that a test moves."""

    def __init__(self, start: datetime) -> None:
        self.time = start

    async def now(self, connection: Connection) -> datetime:
        """What it was set to."""
        return self.time

    def advance(self, by: timedelta) -> None:
        """Moves it forward."""
        self.time += by


def to_timestamp(time: datetime | None) -> Timestamp | None:
    """None stays None, so that an unset column stays an unset field."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def from_timestamp(message: Timestamp) -> datetime:
    """Aware, UTC."""
    return message.ToDatetime(tzinfo=UTC)


def to_duration(milliseconds: int | None) -> Duration | None:
    """None stays None."""
    if milliseconds is None:
        return None
    message = Duration()
    message.FromMilliseconds(milliseconds)
    return message


def from_duration(message: Duration) -> int:
    """In milliseconds."""
    return message.ToMilliseconds()
