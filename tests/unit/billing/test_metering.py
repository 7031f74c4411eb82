"""What a counter costs and how a hold is resolved: the rules of POLICY.md as tables, and by generated histories."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.billing import metering
from saucer.billing.domain import ChargeStatus, Hold, HoldState, WorkKind, transition
from saucer.billing.ledger import MOVES, Book, Movement, TransferKind
from saucer.billing.metering import Advance, Meter, Resolution, advance, settle
from saucer.lib.money import FINISH_RESERVE_MS, charge_micros

HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("price", "count", "charged_ms", "charge"),
    [
        (3_600_000, 1, 0, 0),
        (3_600_000, 1, 999, 0),
        (3_600_000, 1, 1_000, 1_000),
        (3_600_000, 1, 1_999, 1_000),
        (3_600_000, 2, 1_000, 2_000),
        (1, 1, 3_599_999, 0),
        (1, 1, HOUR_MS, 1),
        (7, 3, 1_000_000, 5),
    ],
)
def test_the_charge_is_a_floor_of_the_cumulative_product(price: int, count: int, charged_ms: int, charge: int) -> None:
    assert charge_micros(price, count, charged_ms) == charge


@pytest.mark.parametrize(
    ("available", "rate", "warned", "expected"),
    [
        (0, 0, None, None),
        (240, 10, None, None),
        (239, 10, None, 24),
        (239, 10, 24, None),
        (39, 10, 24, 4),
        (39, 10, None, 4),
        (10, 10, 4, None),
        (9, 10, 4, 1),
        (0, 10, 1, None),
        (100, 10, 1, None),
    ],
)
def test_each_limit_of_funds_is_warned_of_once(
    available: int, rate: int, warned: int | None, expected: int | None
) -> None:
    assert metering.warning_hours(available, rate, warned) == expected


def test_a_hold_is_exactly_two_hours() -> None:
    assert metering.hold_micros(7, 3) == 42


@pytest.mark.parametrize(
    ("charged_ms", "settled", "available", "resolution"),
    [
        # posted, settled, lost, released
        (0, 0, 0, Resolution(0, 0, 0, 7_200_000)),
        (90_000, 0, 0, Resolution(90_000, 0, 0, 7_110_000)),
        (HOUR_MS, 3_600_000, 0, Resolution(0, 0, 0, 7_200_000)),
        (2 * HOUR_MS, 0, 5, Resolution(7_200_000, 0, 0, 0)),
        (2 * HOUR_MS + 1_000, 0, 5_000, Resolution(7_200_000, 1_000, 0, 0)),
        (2 * HOUR_MS + 1_000, 0, 400, Resolution(7_200_000, 400, 600, 0)),
        (2 * HOUR_MS + 1_000, 0, 0, Resolution(7_200_000, 0, 1_000, 0)),
    ],
)
def test_what_is_unpaid_is_posted_then_taken_then_lost_and_the_rest_released(
    charged_ms: int, settled: int, available: int, resolution: Resolution
) -> None:
    assert metering.resolve(Meter(3_600_000, 1, 7_200_000, charged_ms, settled), available) == resolution


@pytest.mark.parametrize(
    ("before_ms", "after_ms", "available", "advance"),
    [
        (0, HOUR_MS - 1, 10**9, Advance(0, short=False, stop=False)),
        (0, HOUR_MS, 10**9, Advance(3_600_000, short=False, stop=False)),
        (0, HOUR_MS, 3_600_000, Advance(3_600_000, short=False, stop=False)),
        (0, HOUR_MS, 3_599_999, Advance(0, short=True, stop=False)),
        (HOUR_MS, 6_599_999, 0, Advance(0, short=False, stop=False)),
        (HOUR_MS, 6_600_000, 0, Advance(0, short=False, stop=True)),
        # Before the order, what has come since the hour is looked at.
        (HOUR_MS, 6_599_999, 10**9, Advance(0, short=False, stop=False)),
        (HOUR_MS, 6_600_000, 6_599_999, Advance(0, short=False, stop=True)),
        (HOUR_MS, 6_600_000, 6_600_000, Advance(6_600_000, short=False, stop=False)),
        (HOUR_MS, 2 * HOUR_MS, 0, Advance(0, short=True, stop=True)),
        (0, 2 * HOUR_MS, 7_200_000, Advance(7_200_000, short=False, stop=False)),
    ],
)
def test_each_metered_hour_takes_all_that_is_unpaid_or_nothing(
    before_ms: int, after_ms: int, available: int, advance: Advance
) -> None:
    assert metering.advance(Meter(3_600_000, 1, 7_200_000, before_ms, 0), after_ms, available) == advance


@given(
    price=st.integers(1, 10**12),
    count=st.integers(1, 64),
    counters=st.lists(st.integers(0, 40 * HOUR_MS), min_size=1, max_size=40),
    balance=st.integers(0, 10**15),
)
def test_any_history_pays_its_charge_to_the_micro_and_never_goes_below_zero(
    price: int, count: int, counters: list[int], balance: int
) -> None:
    hold = metering.hold_micros(price, count)
    meter = Meter(price, count, hold, 0, 0)
    for counter in counters:
        charged_ms = max(counter, meter.charged_ms)
        plan = metering.advance(meter, charged_ms, balance)
        balance -= plan.settle_micros
        meter = Meter(price, count, hold, charged_ms, meter.settled_micros + plan.settle_micros)
        assert balance >= 0
    resolution = metering.resolve(meter, balance)
    assert resolution.posted_micros + resolution.released_micros == hold
    assert resolution.settled_micros <= balance
    assert (
        meter.settled_micros + resolution.posted_micros + resolution.settled_micros + resolution.lost_micros
        == charge_micros(price, count, max(counters))
    )
    if resolution.lost_micros:
        assert resolution.settled_micros == balance


@given(price=st.integers(1, 10**12), count=st.integers(1, 64), settled=st.integers(0, 10**15))
def test_at_the_counter_of_the_stop_what_is_unpaid_leaves_the_reserve_whole(
    price: int, count: int, settled: int
) -> None:
    meter = Meter(price, count, metering.hold_micros(price, count), 0, settled)
    limit = meter.amount_micros - charge_micros(price, count, FINISH_RESERVE_MS)
    at_stop = Meter(price, count, meter.amount_micros, meter.stop_at_ms, settled)
    assert at_stop.unpaid_micros <= limit


@pytest.mark.parametrize("kind", TransferKind)
def test_every_movement_leaves_the_sum_of_all_books_as_it_was(kind: TransferKind) -> None:
    movement = Movement(kind, 17)
    assert sum(movement.change_of(book) for book in Book) == 0
    source, target = MOVES[kind]
    assert (movement.change_of(source), movement.change_of(target)) == (-17, 17)


@pytest.mark.parametrize("amount", [0, -1])
def test_a_movement_of_nothing_is_refused(amount: int) -> None:
    with pytest.raises(ValueError, match="more than nothing"):
        Movement(TransferKind.HOLD, amount)


def hold_of(state: HoldState, status: ChargeStatus = ChargeStatus.NOT_BILLING) -> Hold:
    return Hold(
        "w-1", "a", WorkKind.TASK, "w", 1, "local", "cpu-2", 3, "EUR", 100, 600, 0, state, None, True, status, False,
        0, 0, 0, 0, 0, datetime(2026, 1, 1, tzinfo=UTC), None, 1, None, None, 1,
    )  # fmt: skip


ALLOWED = {
    (HoldState.WAITING, HoldState.GRANTED),
    (HoldState.WAITING, HoldState.BURIED),
    (HoldState.GRANTED, HoldState.RESOLVED),
    (HoldState.GRANTED, HoldState.EXPIRED),
}


@pytest.mark.parametrize("target", HoldState)
@pytest.mark.parametrize("source", HoldState)
def test_a_hold_resolves_at_most_once_and_nothing_else_moves(source: HoldState, target: HoldState) -> None:
    if (source, target) in ALLOWED:
        assert transition(hold_of(source), target) == hold_of(target)
    else:
        with pytest.raises(ValueError, match=f"from {source} to {target}"):
            transition(hold_of(source), target)


@pytest.mark.parametrize("state", HoldState)
@pytest.mark.parametrize("status", ChargeStatus)
def test_only_what_is_granted_and_charged_costs_by_the_hour(state: HoldState, status: ChargeStatus) -> None:
    charged = state is HoldState.GRANTED and status is ChargeStatus.BILLING
    assert hold_of(state, status).rate_micros == (300 if charged else 0)


def test_a_top_up_too_small_to_pay_stops_at_the_very_counter_of_the_stop_and_not_before() -> None:
    meter = Meter(3_600_000, 1, 7_200_000, 0, 0)
    at = replace(meter, charged_ms=meter.stop_at_ms)
    assert settle(at, at.unpaid_micros - 1) == Advance(0, short=True, stop=True)
    before = replace(meter, charged_ms=meter.stop_at_ms - 1000)
    assert settle(before, before.unpaid_micros - 1) == Advance(0, short=True, stop=False)


def test_a_single_micro_is_booked_too_and_nothing_is_not() -> None:
    assert [movement.amount_micros for movement in Resolution(1, 1, 1, 1).movements()] == [1, 1, 1, 1]
    assert Resolution(0, 0, 0, 0).movements() == []


def test_prepaid_time_takes_nothing_warns_of_nothing_and_stops_nothing() -> None:
    assert advance(Meter(0, 1, 0, 0, 0), 9 * 3_600_000, 0) == Advance(0, short=False, stop=False)
