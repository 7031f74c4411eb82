"""What alerts and the autoscaling of workers look at: how long runs wait, and how many there are."""

from collections.abc import Mapping
from datetime import datetime

from prometheus_client import Gauge

from saucer.lib.gauges import Reading, age_seconds
from saucer.lib.postgres import Connection
from saucer.training.fleet import WORKER_GONE
from saucer.training.store import queue

queued_runs = Gauge("saucer_training_queued_runs", "Runs that wait for a worker", ["region", "spec"])
queue_wait_seconds = Gauge(
    "saucer_training_oldest_queued_seconds", "How long the run that waits longest has waited", ["region", "spec"]
)

open_runs = Gauge("saucer_training_open_runs", "Runs that wait for a worker or have one", ["region", "spec"])


async def _queued_runs(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    # Also queues that are empty, where workers wait.
    queues = await queue.list_queues(connection, now - WORKER_GONE)
    return {(each.region_id, each.spec_id): each.queued for each in queues}


async def _open_runs(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    rows = await connection.fetch(
        "SELECT region_id, spec_id, count(*) AS runs FROM run WHERE state <> 'ENDED' GROUP BY 1, 2"
    )
    return {(row["region_id"], row["spec_id"]): row["runs"] for row in rows}


async def _queue_wait(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    rows = await connection.fetch(
        "SELECT region_id, spec_id, min(queued_at) AS since FROM run WHERE state = 'QUEUED' GROUP BY 1, 2"
    )
    return {(row["region_id"], row["spec_id"]): age_seconds(row["since"], now) for row in rows}


READINGS = (
    Reading(queued_runs, _queued_runs),
    Reading(queue_wait_seconds, _queue_wait),
    Reading(open_runs, _open_runs),
)
