"""What alerts look at: open holds, and an audit every hour."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from itertools import product

import asyncpg
import structlog
from prometheus_client import Gauge

from saucer.billing.domain import Audit
from saucer.lib.gauges import Reading
from saucer.lib.postgres import Connection

# The audit reads the whole ledger.
AUDIT_EVERY_S = 3600.0
WORK_KINDS = ("TASK", "DEPLOYMENT")

log = structlog.get_logger()
open_holds = Gauge("saucer_billing_open_holds", "Holds that are not resolved", ["work_kind"])
audit_findings = Gauge("saucer_billing_audit_findings", "Rows that broke an invariant at the last audit")
audit_timestamp = Gauge("saucer_billing_audit_timestamp_seconds", "When the last audit ended, since the epoch")


async def _open_holds(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    rows = await connection.fetch("SELECT work_kind, count(*) AS holds FROM hold WHERE state = 'GRANTED' GROUP BY 1")
    return dict.fromkeys(product(WORK_KINDS), 0.0) | {(row["work_kind"],): row["holds"] for row in rows}


READINGS = (Reading(open_holds, _open_holds),)


async def audit_for_ever(audit: Callable[[], Awaitable[Audit]]) -> None:
    """Until cancelled; one that PostgreSQL did not answer comes again after the usual pause."""
    while True:
        try:
            found = await audit()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("audit_failed", error=repr(error))
        else:
            for finding in found.findings:
                log.error("audit_finding", invariant=finding.invariant, row=finding.row)
            audit_findings.set(sum(found.broken.values()))
            audit_timestamp.set_to_current_time()
        await asyncio.sleep(AUDIT_EVERY_S)
