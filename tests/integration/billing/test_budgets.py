"""Budgets: of a task or deployment, and of an account in a calendar month of its time zone."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from saucer.billing.domain import HoldState, Spending
from saucer.lib.errors import FailedPreconditionError
from saucer.lib.ids import new_id
from tests.support.ledger import HOLD_MICROS, HOUR_MS, PRICE_MICROS, Ledger, correction, request_of

RESERVE_MICROS = PRICE_MICROS // 6


async def stops(ledger: Ledger) -> dict[str, str]:
    async with ledger.database.reading() as connection:
        rows = await connection.fetch("SELECT data FROM outbox WHERE type LIKE '%.StopOrdered' ORDER BY position")
    events = [json.loads(row["data"]) for row in rows]
    assert len({event["hold"]["holdId"] for event in events}) == len(events), "each start is told once"
    return {event["hold"]["holdId"]: event["reason"].removeprefix("STOP_REASON_") for event in events}


async def test_a_works_budget_stops_it_with_the_reserve_for_finishing_still_there(ledger: Ledger) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    request, other = request_of(account_id), request_of(account_id)
    await ledger.billing.holds.create(request, 3 * PRICE_MICROS)
    await ledger.billing.holds.create(other)
    for counter in range(0, 171, 10):
        await ledger.billing.holds.advance(request.hold_id, counter * 60_000, running=True)
        await ledger.second.holds.advance(other.hold_id, counter * 60_000, running=True)
        # Booked and unpaid, less ten minutes.
        assert await stops(ledger) == ({request.hold_id: "BUDGET_REACHED"} if counter >= 170 else {})
    await ledger.billing.holds.resolve(request.hold_id, 180 * 60_000)
    hold = await ledger.hold(request)
    assert hold.settled_micros + hold.posted_micros == 3 * PRICE_MICROS


async def test_all_starts_of_a_work_count_and_a_new_one_over_its_budget_is_refused(ledger: Ledger) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    first = request_of(account_id)
    await ledger.billing.holds.create(first, PRICE_MICROS)
    await ledger.billing.holds.resolve(first.hold_id, 50 * 60_000)
    again = request_of(account_id, work_id=first.work_id, start_number=2)
    for _ in range(2):
        with pytest.raises(FailedPreconditionError) as refusal:
            await ledger.second.holds.create(again, 100 * PRICE_MICROS)
        assert refusal.value.reason == "BUDGET_REACHED"
    _, spending = await ledger.billing.budgets.set(account_id, first.work_id, PRICE_MICROS + 1)
    assert spending.booked_micros == 50 * PRICE_MICROS // 60
    third = request_of(account_id, work_id=first.work_id, start_number=3)
    assert (await ledger.billing.holds.create(third)).state is HoldState.GRANTED


async def test_what_was_refunded_does_not_count(ledger: Ledger) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    first = request_of(account_id)
    await ledger.billing.holds.create(first, PRICE_MICROS)
    await ledger.billing.holds.resolve(first.hold_id, HOUR_MS)
    await ledger.billing.accounts.refund(first.hold_id, PRICE_MICROS, correction())
    again = request_of(account_id, work_id=first.work_id, start_number=2)
    assert (await ledger.billing.holds.create(again)).state is HoldState.GRANTED


async def test_an_accounts_budget_stops_all_it_covers_and_refuses_new_starts_until_the_next_month(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    group = await ledger.billing.groups.create(
        account_id, "G", "local", "cpu-2", 1, None, ledger.clock.time + timedelta(days=90), correction()
    )
    prepaid = request_of(account_id, group_id=group.group_id)
    jobs = [request_of(account_id) for _ in range(2)]
    for request in (prepaid, *jobs):
        await ledger.billing.holds.create(request)
        await ledger.billing.holds.use(request.hold_id, request.work_id, 1)
    await ledger.billing.budgets.set(account_id, None, 2 * PRICE_MICROS + 2 * RESERVE_MICROS)
    await ledger.billing.holds.advance(prepaid.hold_id, 9 * HOUR_MS, running=True)
    await ledger.billing.holds.advance(jobs[0].hold_id, HOUR_MS, running=True)
    assert await stops(ledger) == {}
    await ledger.second.holds.advance(jobs[1].hold_id, HOUR_MS, running=True)
    assert await stops(ledger) == {job.hold_id: "BUDGET_REACHED" for job in jobs}
    for job in jobs:
        await ledger.billing.holds.resolve(job.hold_id, HOUR_MS)
    with pytest.raises(FailedPreconditionError) as refusal:
        await ledger.billing.holds.create(request_of(account_id, count=3))
    assert refusal.value.reason == "BUDGET_REACHED"
    ledger.clock.time = datetime(2026, 2, 1, tzinfo=UTC)
    assert (await ledger.billing.holds.create(request_of(account_id, count=2))).state is HoldState.GRANTED


@pytest.mark.parametrize(
    ("time_zone", "last_moment", "first_moment"),
    [
        ("UTC", datetime(2026, 3, 31, 23, 59, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)),
        # Summer time began on March 29th: the month ends at 22:00 UTC, not 23:00.
        ("Europe/Berlin", datetime(2026, 3, 31, 21, 59, tzinfo=UTC), datetime(2026, 3, 31, 22, tzinfo=UTC)),
        # And on March 8th there.
        ("America/New_York", datetime(2026, 4, 1, 3, 59, tzinfo=UTC), datetime(2026, 4, 1, 4, tzinfo=UTC)),
        ("Asia/Kolkata", datetime(2026, 3, 31, 18, 29, tzinfo=UTC), datetime(2026, 3, 31, 18, 30, tzinfo=UTC)),
    ],
)
async def test_a_budgets_month_is_that_of_the_accounts_time_zone_daylight_saving_included(
    ledger: Ledger, time_zone: str, last_moment: datetime, first_moment: datetime
) -> None:
    ledger.clock.time = datetime(2026, 3, 15, tzinfo=UTC)
    account_id = await ledger.account(10 * HOLD_MICROS, time_zone)
    await ledger.billing.budgets.set(account_id, None, 2 * PRICE_MICROS)
    spent = request_of(account_id)
    await ledger.billing.holds.create(spent)
    await ledger.billing.holds.resolve(spent.hold_id, 119 * 60_000)
    ledger.clock.time = last_moment
    with pytest.raises(FailedPreconditionError):
        await ledger.billing.holds.create(request_of(account_id))
    ledger.clock.time = first_moment
    assert (await ledger.billing.holds.create(request_of(account_id))).state is HoldState.GRANTED


async def test_a_lower_budget_stops_at_once_and_a_removed_one_stops_nothing(ledger: Ledger) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    request, other = request_of(account_id), request_of(account_id)
    await ledger.billing.holds.create(request)
    await ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True)
    await ledger.billing.budgets.set(account_id, None, 100 * PRICE_MICROS)
    assert await stops(ledger) == {}
    await ledger.billing.budgets.set(account_id, None, PRICE_MICROS)
    assert set(await stops(ledger)) == {request.hold_id}
    await ledger.billing.budgets.set(account_id, None, 0)
    assert (await ledger.billing.holds.create(other)).state is HoldState.GRANTED
    assert await ledger.billing.budgets.list(account_id, after=None, limit=9) == []


async def test_a_works_budget_that_was_removed_does_not_come_back_with_a_restart(ledger: Ledger) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    first = request_of(account_id)
    await ledger.billing.holds.create(first, PRICE_MICROS)
    await ledger.billing.holds.resolve(first.hold_id, HOUR_MS)
    await ledger.billing.budgets.set(account_id, first.work_id, 0)
    again = request_of(account_id, work_id=first.work_id, start_number=2)
    # As its task was created with.
    assert (await ledger.second.holds.create(again, PRICE_MICROS)).state is HoldState.GRANTED
    assert await ledger.billing.budgets.list(account_id, after=None, limit=9) == []
    await ledger.billing.budgets.set(account_id, first.work_id, 2 * PRICE_MICROS)
    assert len(await ledger.billing.budgets.list(account_id, after=None, limit=9)) == 1


async def test_a_budget_for_another_accounts_work_says_nothing_of_what_that_cost(ledger: Ledger) -> None:
    theirs = request_of(await ledger.account(HOLD_MICROS))
    await ledger.billing.holds.create(theirs)
    await ledger.billing.holds.resolve(theirs.hold_id, HOUR_MS)
    _, spending = await ledger.billing.budgets.set(await ledger.account(0), theirs.work_id, PRICE_MICROS)
    assert spending == Spending(0, 0, 0)


async def test_starts_that_go_together_count_against_a_budget_one_after_the_other(ledger: Ledger) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    await ledger.billing.budgets.set(account_id, None, 2 * RESERVE_MICROS + 1)
    requests = [request_of(account_id) for _ in range(5)]
    answers = await ledger.billing.holds._create_all(account_id, requests)
    assert [str(answer.state) for answer in answers if not isinstance(answer, Exception)] == [
        *["GRANTED"] * 2,
        *["REFUSED"] * 3,
    ]


async def test_a_budget_of_another_work_changes_nothing(ledger: Ledger) -> None:
    account_id = await ledger.account(10 * HOLD_MICROS)
    await ledger.billing.budgets.set(account_id, new_id(), 1)
    request = request_of(account_id)
    await ledger.billing.holds.create(request)
    await ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True)
    assert await stops(ledger) == {}


async def test_spending_adds_up_all_starts_of_a_work_less_all_refunds_and_nothing_of_others(ledger: Ledger) -> None:
    account_id = await ledger.account(20 * HOLD_MICROS)
    first, other = request_of(account_id), request_of(account_id)
    second = request_of(account_id, work_id=first.work_id, start_number=2)
    for request, hours in ((first, 3), (second, 2), (other, 1)):
        await ledger.billing.holds.create(request)
        await ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True)
        await ledger.billing.holds.resolve(request.hold_id, hours * HOUR_MS)
    for amount in (3, 4):
        await ledger.billing.accounts.refund(first.hold_id, amount, correction())
    third = request_of(account_id, work_id=first.work_id, start_number=3)
    await ledger.billing.holds.create(third)
    await ledger.billing.holds.advance(third.hold_id, HOUR_MS // 2, running=True)
    _, spending = await ledger.billing.budgets.set(account_id, first.work_id, 100 * PRICE_MICROS)
    assert spending == Spending(5 * PRICE_MICROS - 7, PRICE_MICROS // 2, RESERVE_MICROS)
    _, spending = await ledger.billing.budgets.set(account_id, None, 100 * PRICE_MICROS)
    assert spending == Spending(6 * PRICE_MICROS - 7, PRICE_MICROS // 2, RESERVE_MICROS)
    _, spending = await ledger.billing.budgets.set(account_id, other.work_id, 100 * PRICE_MICROS)
    assert spending == Spending(PRICE_MICROS, 0, 0)
