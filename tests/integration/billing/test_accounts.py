"""What administrators do to accounts and prices."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from unittest.mock import AsyncMock
from zoneinfo import available_timezones

import pytest

from saucer.billing.domain import HoldState, Spec
from saucer.billing.ledger import TransferKind
from saucer.billing.service.accounts import Accounts
from saucer.billing.store.holds import Asked, insert_holds
from saucer.lib.errors import AlreadyExistsError, InvalidArgumentError
from saucer.lib.ids import new_id
from tests.support.ledger import (
    HOLD_MICROS,
    HOUR_MS,
    PRICE_MICROS,
    RACES,
    REGION,
    SPEC,
    Ledger,
    correction,
    granted,
    refusal,
    request_of,
)


async def test_a_suspended_account_starts_nothing_and_what_runs_is_ordered_to_stop(ledger: Ledger) -> None:
    request = await granted(ledger, 3 * HOLD_MICROS)
    await ledger.billing.holds.advance(request.hold_id, 5_000, running=True)
    await ledger.billing.accounts.suspend(request.account_id, correction())
    refused = request_of(request.account_id)
    assert (await refusal(ledger.billing.holds.create(refused))).reason == "ACCOUNT_SUSPENDED"
    async with ledger.database.reading() as connection:
        (order,) = await connection.fetch("SELECT data FROM outbox WHERE type = 'saucer.billing.v1.StopOrdered'")
    assert "STOP_REASON_ACCOUNT_SUSPENDED" in order["data"]
    await ledger.billing.accounts.resume(request.account_id, correction())
    assert (await refusal(ledger.billing.holds.create(refused))).reason == "ACCOUNT_SUSPENDED", "a retry gets the same"
    await ledger.billing.holds.create(request_of(request.account_id))


async def test_a_start_that_is_granted_while_a_suspension_waits_for_the_account_is_ordered_to_stop_too(
    ledger: Ledger,
) -> None:
    request = request_of(await ledger.account(HOLD_MICROS))
    (spec,) = await ledger.billing.offers.list_specs(REGION)
    asked = Asked(request, spec, HOLD_MICROS, new_id())
    async with ledger.database.pool.acquire() as connection:
        other = connection.transaction()
        await other.start()
        await insert_holds(connection, request.account_id, [asked], ledger.clock.time)
        suspension = asyncio.create_task(ledger.second.accounts.suspend(request.account_id, correction()))
        await ledger.until_some_wait_for_a_lock()
        await other.commit()
    await suspension
    hold = await ledger.hold(request)
    assert (hold.state, hold.stop_ordered) == (HoldState.GRANTED, True)


async def test_a_suspension_that_crashed_before_its_orders_is_made_whole_by_the_sweep(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await granted(ledger)
    with monkeypatch.context() as crash:
        crash.setattr(Accounts, "_stop_suspended", AsyncMock(side_effect=ConnectionError))
        with pytest.raises(ConnectionError):
            await ledger.billing.accounts.suspend(request.account_id, correction())
    assert not (await ledger.hold(request)).stop_ordered
    for replica in (ledger.second, ledger.billing):
        await replica.sweep_once()
        assert (await ledger.hold(request)).stop_ordered


@pytest.mark.parametrize(
    "time_zone",
    [
        "localtime",
        "posixrules",
        "Factory",
        "right/UTC",
        "posix/Europe/Berlin",
        "Europe",
        "europe/berlin",
        "Mars",
        "../x",
    ],
)
async def test_a_time_zone_that_is_no_iana_name_makes_no_account(ledger: Ledger, time_zone: str) -> None:
    refused = await refusal(ledger.billing.accounts.create(new_id(), "A", "EUR", time_zone, correction()))
    assert isinstance(refused, InvalidArgumentError)
    assert refused.reason == "TIME_ZONE_UNKNOWN"
    assert await ledger.billing.accounts.list(after=None, limit=10) == []


async def test_every_time_zone_of_an_account_is_one_in_which_the_audit_can_count_months(ledger: Ledger) -> None:
    made = 0
    for time_zone in available_timezones():
        try:
            await ledger.account(0, time_zone)
        except InvalidArgumentError:
            continue
        made += 1
    assert made > 300
    async with ledger.database.reading() as connection:
        await connection.fetch("SELECT now() AT TIME ZONE time_zone FROM account")


async def test_each_change_of_an_account_has_a_greater_revision(ledger: Ledger) -> None:
    account_id = await ledger.account(5)
    seen = [
        (await ledger.billing.accounts.get(account_id)).revision,
        (await ledger.billing.accounts.suspend(account_id, correction())).revision,
        (await ledger.billing.accounts.resume(account_id, correction())).revision,
        (await ledger.billing.accounts.adjust(account_id, -5, correction())).revision,
    ]
    assert seen == sorted(set(seen))


async def test_an_adjustment_is_made_once_with_its_reason_and_author_and_never_below_zero(ledger: Ledger) -> None:
    account_id = await ledger.account(10)
    asked = correction("goodwill")
    for _ in range(2):
        assert (await ledger.billing.accounts.adjust(account_id, 5, asked)).available_micros == 15
    with pytest.raises(AlreadyExistsError):
        await ledger.billing.accounts.adjust(account_id, 6, asked)
    refused = correction("too much")
    assert (await refusal(ledger.billing.accounts.adjust(account_id, -16, refused))).metadata["missing_micros"] == "1"
    await ledger.billing.accounts.adjust(account_id, -15, correction("all of it"))
    assert await ledger.balance(account_id) == (0, 0)
    records = await ledger.billing.records.list(account_id=account_id, after=None, limit=10)
    assert {(record.action, record.reason, record.author) for record in records} == {
        ("ADJUST", "goodwill", "tester"),
        ("ADJUST", "all of it", "tester"),
        ("CREATE", "a test", "tester"),
    }


async def test_a_refund_gives_back_at_most_what_was_paid(ledger: Ledger) -> None:
    request = await granted(ledger)
    open_ = await refusal(ledger.billing.accounts.refund(request.hold_id, 1, correction()))
    assert open_.reason == "HOLD_NOT_RESOLVED"
    await ledger.billing.holds.resolve(request.hold_id, 90_000)
    asked = correction("the results were wrong")
    for _ in range(2):
        await ledger.billing.accounts.refund(request.hold_id, 60_000, asked)
    too_large = await refusal(ledger.billing.accounts.refund(request.hold_id, 30_001, correction()))
    assert (too_large.reason, too_large.metadata["refundable_micros"]) == ("REFUND_TOO_LARGE", "30000")
    await ledger.billing.accounts.refund(request.hold_id, 20_000, correction())
    too_large = await refusal(ledger.billing.accounts.refund(request.hold_id, 10_001, correction()))
    assert too_large.metadata["refundable_micros"] == "10000", "of all refunds together"
    await ledger.billing.accounts.refund(request.hold_id, 10_000, correction())
    assert await ledger.balance(request.account_id) == (HOLD_MICROS, 0)
    ((statement,), _) = await ledger.billing.statements.list(request.account_id, work_id=None, after=None, limit=9)
    assert [line.kind for line in statement.transfers][-2:] == [TransferKind.REFUND] * 2


@RACES
async def test_refunds_of_one_account_at_once_wait_for_each_other(ledger: Ledger, races: int) -> None:
    account_id = await ledger.account(2 * HOLD_MICROS)
    requests = [request_of(account_id) for _ in range(2)]
    for request in requests:
        await ledger.billing.holds.create(request)
        await ledger.billing.holds.resolve(request.hold_id, HOUR_MS)
    for _ in range(races):
        await asyncio.gather(
            *(
                replica.accounts.refund(request.hold_id, 1, correction())
                for replica, request in zip((ledger.billing, ledger.second), requests, strict=True)
            )
        )
    assert await ledger.balance(account_id) == (2 * HOLD_MICROS - 2 * PRICE_MICROS + 2 * races, 0)


async def test_a_price_change_touches_only_later_starts(ledger: Ledger) -> None:
    before = await granted(ledger, 4 * HOLD_MICROS)
    await ledger.billing.offers.set_price(
        REGION, SPEC, 2 * PRICE_MICROS, ledger.clock.time + timedelta(hours=1), correction()
    )
    at_once = await ledger.billing.holds.create(request_of(before.account_id))
    assert at_once.amount_micros == HOLD_MICROS
    ledger.clock.advance(timedelta(hours=1))
    after = await ledger.billing.holds.create(request_of(before.account_id))
    assert after.amount_micros == 2 * HOLD_MICROS
    await ledger.billing.holds.resolve(before.hold_id, HOUR_MS)
    assert (await ledger.hold(before)).posted_micros == PRICE_MICROS


async def test_a_spec_priced_in_another_currency_is_refused(ledger: Ledger) -> None:
    await ledger.billing.offers.create_spec(Spec(REGION, "usd-1", "in dollars", 0, 1, 1, 1, "USD"), correction())
    request = replace(request_of(await ledger.account(HOLD_MICROS)), spec_id="usd-1")
    for _ in range(2):
        assert (await refusal(ledger.billing.holds.create(request))).reason == "CURRENCY_MISMATCH"
