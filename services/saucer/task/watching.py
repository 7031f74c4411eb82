"""What alerts look at: tasks that are not at rest, to be compared with the holds that are open for them."""

from collections.abc import Mapping
from datetime import datetime

from prometheus_client import Gauge

from saucer.lib.gauges import Reading
from saucer.lib.postgres import Connection
from saucer.task.domain import AT_REST

open_starts = Gauge("saucer_task_open_starts", "Starts that are not at rest", ["work_kind"])


async def _open_starts(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    return {("TASK",): await connection.fetchval("SELECT count(*) FROM task WHERE state <> ALL($1)", sorted(AT_REST))}


READINGS = (Reading(open_starts, _open_starts),)
