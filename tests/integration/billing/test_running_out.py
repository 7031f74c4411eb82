"""Funds that run low, fall short, and come in again."""

import asyncio
import json

import pytest

from saucer.billing.domain import HoldRequest, HoldState
from saucer.lib.ids import new_id
from saucer.lib.money import MAX_FINISHING_MS
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


async def test_the_rate_that_funds_last_for_is_that_of_all_that_runs_of_the_account(ledger: Ledger) -> None:
    account_id = await ledger.account(100 * HOLD_MICROS)
    running, also, ended, idle, last = [request_of(account_id, count=1 + number % 2) for number in range(5)]
    of_another = request_of(await ledger.account(100 * HOLD_MICROS))
    for request in (running, also, ended, idle, of_another, last):
        await ledger.billing.holds.create(request)
    for request in (running, also, ended, of_another):
        await ledger.billing.holds.advance(request.hold_id, 0, running=True)
    await ledger.billing.holds.resolve(ended.hold_id, 0)
    left = (await ledger.balance(account_id))[0] - 3 * PRICE_MICROS
    await ledger.billing.accounts.adjust(account_id, -left, correction())
    await ledger.billing.holds.advance(last.hold_id, 0, running=True)
    async with ledger.database.reading() as connection:
        told = await connection.fetch(
            "SELECT data FROM outbox WHERE type = 'saucer.billing.v1.FundsLow' ORDER BY position"
        )
    # One of running, two of also; then one of last.
    assert [int(json.loads(row["data"])["rateMicros"]) for row in told] == [3 * PRICE_MICROS, 4 * PRICE_MICROS]


async def warned(ledger: Ledger) -> list[int]:
    """The hours of each FundsLow."""
    async with ledger.database.reading() as connection:
        rows = await connection.fetch(
            "SELECT data::json ->> 'hours' AS hours FROM outbox WHERE type = 'saucer.billing.v1.FundsLow' "
            "ORDER BY position"
        )
    return [int(row["hours"]) for row in rows]


async def give(ledger: Ledger, way: str, account_id: str, amount_micros: int) -> None:
    """Money that comes in, by one of its ways."""
    accounts = ledger.billing.accounts
    if way == "top-up":
        await accounts.top_up(account_id, new_id(), amount_micros)
    elif way == "credit":
        await accounts.adjust(account_id, amount_micros, correction())
    else:
        (ended,) = [
            statement.hold
            for statement in (await ledger.billing.statements.list(account_id, work_id=None, after=None, limit=9))[0]
            if statement.hold.state is HoldState.RESOLVED
        ]
        await accounts.refund(ended.hold_id, amount_micros, correction())


WAYS = pytest.mark.parametrize("way", ["top-up", "credit", "refund"])


async def paid_and_running(ledger: Ledger, paid_hours: int, available_micros: int) -> HoldRequest:
    """A start that runs on an account with so much left, of which another start, for so many hours, can be refunded."""
    account_id = await ledger.account((2 + paid_hours) * PRICE_MICROS + available_micros)
    ended, running = request_of(account_id), request_of(account_id)
    await ledger.billing.holds.create(ended)
    await ledger.billing.holds.resolve(ended.hold_id, paid_hours * HOUR_MS)
    await ledger.billing.holds.create(running)
    assert await ledger.balance(account_id) == (available_micros, HOLD_MICROS)
    return running


@WAYS
async def test_funds_that_run_low_are_told_once_for_each_limit_and_anew_after_money_has_come_in(
    ledger: Ledger, way: str
) -> None:
    request = await paid_and_running(ledger, 40, 5 * PRICE_MICROS)
    await ledger.billing.holds.advance(request.hold_id, 0, running=True)
    assert await warned(ledger) == [24]
    for hour in range(1, 6):
        await ledger.billing.holds.advance(request.hold_id, hour * HOUR_MS, running=True)
    assert await warned(ledger) == [24, 4, 1]
    await give(ledger, way, request.account_id, 30 * PRICE_MICROS)
    await ledger.billing.holds.advance(request.hold_id, 6 * HOUR_MS, running=True)
    assert await warned(ledger) == [24, 4, 1]
    await ledger.billing.holds.advance(request.hold_id, 12 * HOUR_MS, running=True)
    assert await warned(ledger) == [24, 4, 1, 24]


@WAYS
async def test_what_is_unpaid_is_taken_of_money_that_comes_in_and_what_is_left_of_it_is_warned_of(
    ledger: Ledger, way: str
) -> None:
    request = await paid_and_running(ledger, 3, 3_590_000)
    await ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True)
    assert (await ledger.hold(request)).settled_micros == 0
    before = await warned(ledger)
    await give(ledger, way, request.account_id, 7_210_000)
    assert (await ledger.hold(request)).settled_micros == PRICE_MICROS
    assert await ledger.balance(request.account_id) == (7_200_000, HOLD_MICROS)
    assert await warned(ledger) == [*before, 4]


@WAYS
async def test_that_funds_are_short_is_told_at_each_hour_and_each_time_that_too_little_comes_in(
    ledger: Ledger, way: str
) -> None:
    request = await paid_and_running(ledger, 1, 0)
    await ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True)
    for _ in range(2):
        await give(ledger, way, request.account_id, 1)
    async with ledger.database.reading() as connection:
        rows = await connection.fetch(
            "SELECT data FROM outbox WHERE type = 'saucer.billing.v1.FundsShort' ORDER BY position"
        )
    told = [json.loads(row["data"]) for row in rows]
    assert [int(short["unpaidMicros"]) for short in told] == [PRICE_MICROS] * 3
    revisions = [int(short["hold"]["revision"]) for short in told]
    assert revisions == sorted(set(revisions))
    assert revisions[-1] == (await ledger.hold(request)).revision


async def test_a_debit_that_leaves_little_for_what_runs_is_warned_of_at_once(ledger: Ledger) -> None:
    request = await granted(ledger, HOLD_MICROS + 30 * PRICE_MICROS)
    await ledger.billing.holds.advance(request.hold_id, 0, running=True)
    asked = correction()
    for _ in range(2):
        await ledger.billing.accounts.adjust(request.account_id, -27 * PRICE_MICROS, asked)
        assert await warned(ledger) == [4]
    await ledger.billing.accounts.adjust(request.account_id, -3 * PRICE_MICROS, correction())
    assert await warned(ledger) == [4, 1]


async def test_after_a_top_up_a_job_stopped_for_arrears_starts_again_under_a_new_hold(ledger: Ledger) -> None:
    first = await granted(ledger)
    for charged_ms in (HOUR_MS, 6_600_000):
        await ledger.billing.holds.advance(first.hold_id, charged_ms, running=True)
    await ledger.billing.holds.resolve(first.hold_id, 6_605_000)
    hold = await ledger.hold(first)
    assert (hold.stop_ordered, hold.posted_micros, hold.lost_micros) == (True, 6_605_000, 0)
    second = request_of(first.account_id, work_id=first.work_id, start_number=2)
    assert (await refusal(ledger.billing.holds.create(second))).reason == "INSUFFICIENT_BALANCE"
    await ledger.billing.accounts.top_up(first.account_id, new_id(), HOLD_MICROS)
    third = request_of(first.account_id, work_id=first.work_id, start_number=3)
    assert (await ledger.billing.holds.create(third)).state is HoldState.GRANTED


async def test_a_stop_that_is_ordered_a_minute_late_leaves_finishing_inside_the_hold(ledger: Ledger) -> None:
    request = await granted(ledger)
    heard_ms = 6_659_000
    for charged_ms in (HOUR_MS, 6_599_000, heard_ms):
        await ledger.billing.holds.advance(request.hold_id, charged_ms, running=True)
    assert (await ledger.hold(request)).stop_ordered
    await ledger.billing.holds.resolve(request.hold_id, heard_ms + MAX_FINISHING_MS)
    hold = await ledger.hold(request)
    assert (hold.posted_micros, hold.lost_micros, HOLD_MICROS - hold.posted_micros) == (7_184_000, 0, 16_000)


async def test_two_jobs_at_once_never_take_more_than_there_is(ledger: Ledger) -> None:
    account_id = await ledger.account(2 * HOLD_MICROS + PRICE_MICROS)
    requests = [request_of(account_id) for _ in range(2)]
    for request in requests:
        await ledger.billing.holds.create(request)
    await asyncio.gather(
        *(
            replica.holds.advance(request.hold_id, hour * HOUR_MS, running=True)
            for hour in (1, 2, 3)
            for request, replica in zip(requests, (ledger.billing, ledger.second), strict=True)
        )
    )
    for request in requests:
        await ledger.billing.holds.resolve(request.hold_id, 4 * HOUR_MS)
    available, frozen = await ledger.balance(account_id)
    holds = [await ledger.hold(request) for request in requests]
    assert (available, frozen) == (0, 0)
    assert sum(hold.lost_micros for hold in holds) == 2 * 4 * PRICE_MICROS - 2 * HOLD_MICROS - PRICE_MICROS
