"""What alerts look at: tasks for which a hold is open by right, to be compared with the holds that are open."""

from collections.abc import Mapping
from datetime import datetime

from prometheus_client import Gauge

from saucer.lib.gauges import Reading
from saucer.lib.postgres import Connection
from saucer.task.domain import HOLDING

open_starts = Gauge("saucer_task_open_starts", "Starts that have a hold by their state", ["work_kind"])


async def _open_starts(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    return {("TASK",): await connection.fetchval("SELECT count(*) FROM task WHERE state = ANY($1)", sorted(HOLDING))}


READINGS = (Reading(open_starts, _open_starts),)
