"""What alerts look at: how long runs wait."""

from collections.abc import Mapping
from datetime import datetime

from prometheus_client import Gauge

from saucer.lib.gauges import Reading, age_seconds
from saucer.lib.postgres import Connection

queue_wait_seconds = Gauge(
    "saucer_training_oldest_queued_seconds", "How long the run that waits longest has waited", ["region", "spec"]
)


async def _queue_wait(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    rows = await connection.fetch(
        "SELECT region_id, spec_id, min(queued_at) AS since FROM run WHERE state = 'QUEUED' GROUP BY 1, 2"
    )
    return {(row["region_id"], row["spec_id"]): age_seconds(row["since"], now) for row in rows}


READINGS = (Reading(queue_wait_seconds, _queue_wait),)
