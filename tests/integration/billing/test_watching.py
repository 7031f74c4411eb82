"""Figures for alerts, read from what PostgreSQL has: a process that died tells as much as one that lives."""

from prometheus_client import Gauge

from saucer.billing import watching
from saucer.lib.gauges import read_once
from tests.support.ledger import HOLD_MICROS, HOUR_MS, Ledger, request_of


async def read(ledger: Ledger, gauge: Gauge) -> dict[str, float]:
    """By the value of its one label."""
    await read_once(ledger.database, watching.READINGS)
    (metric,) = gauge.collect()
    return {sample.labels[next(iter(sample.labels))]: sample.value for sample in metric.samples}


async def test_losses_are_all_that_were_ever_booked_by_currency_and_nothing_where_none_was(ledger: Ledger) -> None:
    assert await read(ledger, watching.lost_micros) == {"EUR": 0}
    for _ in range(2):
        request = request_of(await ledger.account(HOLD_MICROS))
        await ledger.billing.holds.create(request)
        assert await read(ledger, watching.open_holds) == {"TASK": 1, "DEPLOYMENT": 0}
        await ledger.second.holds.resolve(request.hold_id, 3 * HOUR_MS)
    assert await read(ledger, watching.lost_micros) == {"EUR": HOLD_MICROS}
    assert await read(ledger, watching.open_holds) == {"TASK": 0, "DEPLOYMENT": 0}
