"""What alerts look at: open holds, losses, and an audit every hour."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from itertools import product

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
lost_micros = Gauge("saucer_billing_lost_micros", "Charges that neither hold nor balance covered", ["currency"])
audit_findings = Gauge("saucer_billing_audit_findings", "Rows that broke an invariant at the last audit")
audit_timestamp = Gauge("saucer_billing_audit_timestamp_seconds", "When the last audit ended, since the epoch")


async def _open_holds(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    rows = await connection.fetch("SELECT work_kind, count(*) AS holds FROM hold WHERE state = 'GRANTED' GROUP BY 1")
    return dict.fromkeys(product(WORK_KINDS), 0.0) | {(row["work_kind"],): row["holds"] for row in rows}


async def _lost_micros(connection: Connection, now: datetime) -> Mapping[tuple[str, ...], float]:
    # Of every currency: the first loss is seen only against a nothing before it.
    rows = await connection.fetch(
        """
        SELECT currency, (SELECT coalesce(sum(lost_micros), 0) FROM hold
                          WHERE hold.currency = spec.currency AND lost_micros > 0) AS lost
        FROM spec GROUP BY currency
        """
    )
    return {(row["currency"],): float(row["lost"]) for row in rows}


READINGS = (Reading(open_holds, _open_holds), Reading(lost_micros, _lost_micros))


async def tell_audit(audit: Callable[[], Awaitable[Audit]]) -> None:
    """Makes one, and tells what it found as metrics and in the log. Raises what PostgreSQL raises."""
    found = await audit()
    for finding in found.findings:
        log.error("audit_finding", invariant=finding.invariant, row=finding.row)
    audit_findings.set(sum(found.broken.values()))
    audit_timestamp.set_to_current_time()
