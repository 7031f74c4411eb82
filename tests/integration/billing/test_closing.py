"""Holds that nobody uses, meters that fell silent, and how holds are closed."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest

from saucer.billing.domain import ChargeStatus, HoldState
from saucer.billing.service import UNUSED_LIMIT
from saucer.lib.errors import InvalidArgumentError
from saucer.lib.ids import new_id
from tests.support.ledger import (
    HOLD_MICROS,
    HOUR_MS,
    PRICE_MICROS,
    Ledger,
    correction,
    granted,
    refusal,
    request_of,
)
from tests.support.statements import check_account, of_start


async def stop_reasons(ledger: Ledger) -> list[str]:
    """Of all orders to stop that were told."""
    async with ledger.database.reading() as connection:
        orders = await connection.fetch("SELECT data FROM outbox WHERE type = 'saucer.billing.v1.StopOrdered'")
    return [json.loads(order["data"])["reason"] for order in orders]


async def test_a_hold_that_nobody_uses_goes_back_whole_and_its_id_says_so(ledger: Ledger) -> None:
    request = await granted(ledger)
    ledger.clock.advance(UNUSED_LIMIT)
    await ledger.billing.sweep_once()
    assert await ledger.balance(request.account_id) == (0, HOLD_MICROS)
    ledger.clock.advance(timedelta(seconds=1))
    await asyncio.gather(ledger.billing.sweep_once(), ledger.second.sweep_once())
    assert await ledger.balance(request.account_id) == (HOLD_MICROS, 0)
    hold = await ledger.hold(request)
    assert (hold.state, hold.released_micros) == (HoldState.EXPIRED, HOLD_MICROS)
    assert (await refusal(ledger.billing.holds.create(request))).reason == "HOLD_EXPIRED"


async def test_holds_that_were_counted_for_keep_no_unused_one_from_expiring(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saucer.billing.service.SWEEP_BATCH", 2)
    counted = [await granted(ledger) for _ in range(3)]
    for request in counted:
        await ledger.billing.holds.advance(request.hold_id, 1, running=True)
    unused = await granted(ledger)
    ledger.clock.advance(2 * UNUSED_LIMIT)
    await ledger.billing.sweep_once()
    assert (await ledger.hold(unused)).state is HoldState.EXPIRED
    assert {(await ledger.hold(request)).state for request in counted} == {HoldState.GRANTED}


async def test_a_hold_that_is_used_never_expires(ledger: Ledger) -> None:
    request = await granted(ledger)
    await ledger.billing.holds.use(request.hold_id, request.work_id, request.start_number)
    ledger.clock.advance(timedelta(days=30))
    await ledger.billing.sweep_once()
    assert (await ledger.hold(request)).state is HoldState.GRANTED


async def test_work_whose_hold_has_expired_is_ordered_to_stop_and_charged_nothing(ledger: Ledger) -> None:
    request = await granted(ledger)
    ledger.clock.advance(2 * UNUSED_LIMIT)
    await ledger.billing.sweep_once()
    await ledger.billing.holds.use(request.hold_id, request.work_id, request.start_number)
    await ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True)
    await ledger.billing.holds.resolve(request.hold_id, HOUR_MS)
    assert await stop_reasons(ledger) == ["STOP_REASON_HOLD_EXPIRED"]
    assert await ledger.balance(request.account_id) == (HOLD_MICROS, 0)
    hold = await ledger.hold(request)
    assert (hold.settled_micros + hold.posted_micros, hold.lost_micros) == (0, PRICE_MICROS)


async def test_work_whose_hold_has_expired_is_ordered_to_stop_once_by_whatever_tells_of_it(ledger: Ledger) -> None:
    # TaskQueued was lost, or comes last.
    request = await granted(ledger)
    ledger.clock.advance(2 * UNUSED_LIMIT)
    await ledger.billing.sweep_once()
    await ledger.billing.holds.advance(request.hold_id, 0, running=True)
    assert await stop_reasons(ledger) == ["STOP_REASON_HOLD_EXPIRED"]
    for counter in (60_000, 30_000, 120_000):
        await ledger.second.holds.advance(request.hold_id, counter, running=True)
    await ledger.billing.holds.use(request.hold_id, request.work_id, request.start_number)
    assert await stop_reasons(ledger) == ["STOP_REASON_HOLD_EXPIRED"]


async def test_a_start_whose_last_event_was_lost_is_closed_by_the_next_start_at_the_counter_that_was_seen(
    ledger: Ledger,
) -> None:
    first = await granted(ledger, 2 * HOLD_MICROS)
    await ledger.billing.holds.advance(first.hold_id, 90_000, running=True)
    second = request_of(first.account_id, work_id=first.work_id, start_number=2)
    await ledger.billing.holds.create(second)
    await ledger.billing.holds.use(second.hold_id, second.work_id, second.start_number)
    hold = await ledger.hold(first)
    assert (hold.state, hold.posted_micros) == (HoldState.RESOLVED, 90_000)
    assert await ledger.balance(first.account_id) == (HOLD_MICROS - 90_000, HOLD_MICROS)


@pytest.mark.parametrize("told", ["resolve", "give_up", "advance"])
@pytest.mark.parametrize(
    ("available", "taken", "lost"), [(HOLD_MICROS, 30_000, 0), (20_000, 20_000, 10_000), (0, 0, 30_000)]
)
async def test_a_greater_counter_after_the_closing_takes_the_difference_and_loses_what_the_balance_lacks(
    ledger: Ledger, told: str, available: int, taken: int, lost: int
) -> None:
    request = await granted(ledger)
    await ledger.billing.holds.resolve(request.hold_id, 90_000)
    balance, _ = await ledger.balance(request.account_id)
    await ledger.billing.accounts.adjust(request.account_id, available - balance, correction())
    for counter in (120_000, 120_000, 100_000):
        match told:
            case "resolve":
                await ledger.second.holds.resolve(request.hold_id, counter)
            case "give_up":
                await ledger.second.holds.give_up(request, "EUR", counter)
            case "advance":
                await ledger.second.holds.advance(request.hold_id, counter, running=True)
    hold = await ledger.hold(request)
    assert (hold.posted_micros, hold.settled_micros, hold.lost_micros) == (90_000, taken, lost)
    assert (hold.state, hold.charged_ms) == (HoldState.RESOLVED, 120_000)
    assert await ledger.balance(request.account_id) == (available - taken, 0)
    await check_account(ledger.billing, request.account_id)


async def test_each_late_counter_adds_only_what_was_neither_taken_nor_lost_before(ledger: Ledger) -> None:
    # A second and more than held, with nothing available: 1,000 are lost at the end already.
    request = await granted(ledger)
    await ledger.billing.holds.resolve(request.hold_id, 2 * HOUR_MS + 1_000)
    await ledger.billing.accounts.top_up(request.account_id, new_id(), 1_500)
    for counter, settled, lost in ((2_000, 1_000, 1_000), (3_000, 1_500, 1_500), (4_000, 1_500, 2_500)):
        await ledger.billing.holds.resolve(request.hold_id, 2 * HOUR_MS + counter)
        hold = await ledger.hold(request)
        assert (hold.posted_micros, hold.settled_micros, hold.lost_micros) == (HOLD_MICROS, settled, lost)
        await check_account(ledger.billing, request.account_id)
    assert await of_start(ledger.billing, request.account_id) == [
        (7_200_000, "2 h × 3600000 × 1"),
        (7_200_000, "floor(3600000 × 1 × 7201 s ÷ 3600) − 0 taken or lost before, at most the 7200000 held"),
        (
            1_000,
            "floor(3600000 × 1 × 7201 s ÷ 3600) − 7200000 taken or lost before, which neither hold nor balance covered",
        ),
        (1_000, "floor(3600000 × 1 × 7202 s ÷ 3600) − 7201000 taken or lost before"),
        (
            500,
            "floor(3600000 × 1 × 7203 s ÷ 3600) − 7202000 taken or lost before, as far as the balance of 500 reaches",
        ),
        (
            500,
            "floor(3600000 × 1 × 7203 s ÷ 3600) − 7202500 taken or lost before, which neither hold nor balance covered",
        ),
        (
            1_000,
            "floor(3600000 × 1 × 7204 s ÷ 3600) − 7203000 taken or lost before, which neither hold nor balance covered",
        ),
    ]


async def test_each_late_counter_of_an_expired_hold_loses_only_what_was_not_lost_before(ledger: Ledger) -> None:
    request = await granted(ledger)
    ledger.clock.advance(2 * UNUSED_LIMIT)
    await ledger.billing.sweep_once()
    for counter in (1_000, 3_000, 3_000, 2_000):
        await ledger.billing.holds.resolve(request.hold_id, counter)
    assert (await ledger.hold(request)).lost_micros == 3_000
    assert await ledger.balance(request.account_id) == (HOLD_MICROS, 0)
    assert (await of_start(ledger.billing, request.account_id))[2:] == [
        (1_000, "floor(3600000 × 1 × 1 s ÷ 3600) − 0 taken or lost before, of a hold that was not used in time"),
        (2_000, "floor(3600000 × 1 × 3 s ÷ 3600) − 1000 taken or lost before, of a hold that was not used in time"),
    ]


@pytest.mark.parametrize("statement", ["charged_ms = 0", "charged_ms = 2, posted_micros = 1", "lost_micros = 1"])
async def test_nothing_else_of_a_closed_hold_changes(ledger: Ledger, statement: str) -> None:
    request = await granted(ledger)
    await ledger.billing.holds.resolve(request.hold_id, 1)
    async with ledger.database.reading() as connection:
        with pytest.raises(asyncpg.RaiseError, match="RESOLVED"):
            await connection.execute(f"UPDATE hold SET {statement}")


@pytest.mark.parametrize(
    ("counters", "status"),
    [
        ([(120_000, True), (120_000, False), (60_000, True)], ChargeStatus.NOT_BILLING),
        ([(60_000, False), (120_000, True), (60_000, False)], ChargeStatus.BILLING),
    ],
)
async def test_an_event_of_before_does_not_say_whether_the_work_runs_now(
    ledger: Ledger, counters: list[tuple[int, bool]], status: ChargeStatus
) -> None:
    request = await granted(ledger)
    for charged_ms, runs in counters:
        await ledger.billing.holds.advance(request.hold_id, charged_ms, running=runs)
    assert (await ledger.hold(request)).charge_status is status


async def test_work_that_ends_while_its_hold_is_being_made_leaves_none_open(ledger: Ledger) -> None:
    account_id = await ledger.account(HOLD_MICROS)
    request = request_of(account_id)
    async with ledger.database.transaction() as tx:
        # The hold is written, and its transaction waits for the account.
        await tx.connection.execute("SELECT FROM account WHERE account_id = $1 FOR UPDATE", account_id)
        asking = asyncio.create_task(ledger.billing.holds.create(request))
        await ledger.until_some_wait_for_a_lock(1)
        ending = asyncio.create_task(ledger.second.holds.give_up(request, "EUR", 0))
        await ledger.until_some_wait_for_a_lock(2)
    await asyncio.gather(asking, ending)
    assert (await ledger.hold(request)).state is HoldState.RESOLVED
    assert await ledger.balance(account_id) == (HOLD_MICROS, 0)


async def test_a_hold_id_that_was_given_up_first_can_never_be_granted(ledger: Ledger) -> None:
    request = request_of(await ledger.account(HOLD_MICROS))
    await ledger.billing.holds.give_up(request, "EUR", 0)
    assert (await refusal(ledger.billing.holds.create(request))).reason == "HOLD_BURIED"
    assert await ledger.balance(request.account_id) == (HOLD_MICROS, 0)


async def test_a_hold_id_of_another_start_is_refused(ledger: Ledger) -> None:
    request = replace(request_of(await ledger.account(HOLD_MICROS)), start_number=2)
    assert isinstance(await refusal(ledger.billing.holds.create(request)), InvalidArgumentError)


async def test_before_it_is_stopped_for_arrears_a_job_is_paid_by_what_has_come_since_the_hour(ledger: Ledger) -> None:
    account_id = await ledger.account(2 * HOLD_MICROS)
    job, other = request_of(account_id), request_of(account_id)
    for request in (job, other):
        await ledger.billing.holds.create(request)
    await ledger.billing.holds.advance(job.hold_id, HOUR_MS, running=True)
    assert await ledger.balance(account_id) == (0, 2 * HOLD_MICROS)
    await ledger.billing.holds.resolve(other.hold_id, 0)
    await ledger.billing.holds.advance(job.hold_id, 6_599_999, running=True)
    assert (await ledger.hold(job)).settled_micros == 0
    await ledger.billing.holds.advance(job.hold_id, 6_600_000, running=True)
    hold = await ledger.hold(job)
    assert (hold.settled_micros, hold.stop_ordered) == (6_600_000, False)
    # At the hour the last of it; from there on nothing is left.
    for charged_ms in range(7_200_000, 13_800_000, 600_000):
        await ledger.billing.holds.advance(job.hold_id, charged_ms, running=True)
        assert not (await ledger.hold(job)).stop_ordered
    await ledger.billing.holds.advance(job.hold_id, 13_800_000, running=True)
    assert (await ledger.hold(job)).stop_ordered
