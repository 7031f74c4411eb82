"""What is forgotten, and when: rows that were of use once, in small portions, so that nothing waits for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from prometheus_client import Counter

from saucer.lib.postgres import Database

FORGET_EVERY_S = 3600.0
# Rows of one transaction; the next follows at once.
BATCH = 1000
# An event may come again for as long as the stream keeps it, and a lost stream is filled from the outbox.
INBOX_LONGER = timedelta(days=30)

log = structlog.get_logger()
forgotten_total = Counter("saucer_rows_forgotten_total", "Rows deleted for their age", ["service", "what"])


@dataclass(frozen=True)
class Forget:
    """What goes at an age; `delete` is SQL with $1, the time before which rows are old, and $2, how many at most."""

    what: str
    after: timedelta
    delete: str


def usual(events_keep_days: int, calls_keep_days: int) -> Sequence[Forget]:
    """Of every service: the outbox goes with the stream's messages, inbox and retried dead events later; calls."""
    keep = timedelta(days=events_keep_days)
    return (
        Forget(
            "outbox",
            keep,
            "DELETE FROM outbox WHERE position IN (SELECT position FROM outbox WHERE sent_at < $1 LIMIT $2)",
        ),
        Forget(
            "inbox",
            keep + INBOX_LONGER,
            "DELETE FROM inbox WHERE event_id IN (SELECT event_id FROM inbox WHERE taken_at < $1 LIMIT $2)",
        ),
        Forget(
            "dead_event",
            keep + INBOX_LONGER,
            "DELETE FROM dead_event WHERE event_id IN (SELECT event_id FROM dead_event WHERE retried_at < $1 LIMIT $2)",
        ),
        Forget(
            "recorded_call",
            timedelta(days=calls_keep_days),
            "DELETE FROM recorded_call WHERE call_id IN "
            "(SELECT call_id FROM recorded_call WHERE asked_at < $1 LIMIT $2)",
        ),
    )


async def forget(service: str, database: Database, rules: Sequence[Forget]) -> None:
    """One round, until nothing old is left. Several replicas may make it at once."""
    for rule in rules:
        number = BATCH
        while number == BATCH:
            async with database.transaction() as tx:
                status = await tx.connection.execute(rule.delete, tx.now - rule.after, BATCH)
            number = int(status.rpartition(" ")[2])
            forgotten_total.labels(service, rule.what).inc(number)
