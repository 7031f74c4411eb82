"""Gauges that are read from the database, for alerts: what lies there matters, whichever replica put it there.

Every replica reads and exports the same figures, so that rules take their maximum.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from prometheus_client import Counter, Gauge

from saucer.lib.postgres import Connection, Database

# Between two readings: alerts look minutes back.
READ_EVERY_S = 10.0

log = structlog.get_logger()
dead_events = Gauge("saucer_dead_events", "Events that could not be taken and wait for an operator", ["service"])
outbox_age_seconds = Gauge(
    "saucer_outbox_oldest_age_seconds", "Age of the oldest event that is not sent; 0: all are", ["service"]
)
read_failures_total = Counter("saucer_gauge_read_failures_total", "Readings of these gauges that failed", ["service"])

# Given a connection and the time: values by the gauge's labels, in their order. What is absent is no longer exported.
Read = Callable[[Connection, datetime], Awaitable[Mapping[tuple[str, ...], float]]]


@dataclass(frozen=True)
class Reading:
    """A gauge with what its values are."""

    gauge: Gauge
    read: Read


async def read_all(service: str, database: Database, readings: Sequence[Reading]) -> None:
    """Reads every service's own two gauges, and those of `readings`. Raises what PostgreSQL raises, and counts it."""
    with read_failures_total.labels(service).count_exceptions():
        await read_once(database, [*_usual(service), *readings])


async def read_once(database: Database, readings: Sequence[Reading]) -> None:
    """Reads all anew. Raises what PostgreSQL raises; gauges that were not read keep their values."""
    async with database.reading() as connection:
        now = await database.clock.now(connection)
        for reading in readings:
            values = await reading.read(connection, now)
            reading.gauge.clear()
            for labels, value in values.items():
                reading.gauge.labels(*labels).set(value)


def _usual(service: str) -> Sequence[Reading]:
    async def dead(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
        return {(service,): await connection.fetchval("SELECT count(*) FROM dead_event WHERE retried_at IS NULL")}

    async def age(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
        oldest = await connection.fetchval(
            "SELECT created_at FROM outbox WHERE sent_at IS NULL ORDER BY position LIMIT 1"
        )
        return {(service,): age_seconds(oldest, now)}

    return Reading(dead_events, dead), Reading(outbox_age_seconds, age)


def age_seconds(since: datetime | None, now: datetime) -> float:
    """0 if there is nothing, or it was made by a clock that is ahead."""
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0
