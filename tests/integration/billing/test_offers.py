"""Regions, specs and prices: what an administrator says twice, and what is refused."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from saucer.billing.domain import HoldState, Region, Spec
from saucer.billing.service.offers import PRICE_CLOCK_SKEW
from saucer.lib.errors import NotFoundError
from tests.support.ledger import (
    HOLD_MICROS,
    HOUR_MS,
    PRICE_MICROS,
    REGION,
    SPEC,
    Ledger,
    correction,
    refusal,
    request_of,
)

LARGE = Spec(REGION, "gpu-1", "one GPU", 1, 8, 2, 5 * PRICE_MICROS, "EUR")


async def price(ledger: Ledger) -> int:
    specs = await ledger.billing.offers.list_specs(REGION)
    return next(spec.price_per_hour_micros for spec in specs if spec.spec_id == SPEC)


async def test_the_same_region_twice_is_one_and_another_of_its_id_is_refused(ledger: Ledger) -> None:
    offers = ledger.billing.offers
    for _ in range(2):
        assert await offers.create_region(Region("far", "Far away"), correction()) == Region("far", "Far away")
    assert (await refusal(offers.create_region(Region("far", "There"), correction()))).reason == "REGION_EXISTS"
    assert await offers.list_regions() == [Region("far", "Far away"), Region(REGION, "Here")]


async def test_the_same_spec_twice_is_one_and_another_of_its_id_is_refused(ledger: Ledger) -> None:
    for _ in range(2):
        assert await ledger.billing.offers.create_spec(LARGE, correction()) == LARGE
    for other in (replace(LARGE, gpus=2), replace(LARGE, price_per_hour_micros=1), replace(LARGE, currency="USD")):
        assert (await refusal(ledger.billing.offers.create_spec(other, correction()))).reason == "SPEC_EXISTS"
    assert [spec for spec in await ledger.billing.offers.list_specs(REGION) if spec.spec_id == "gpu-1"] == [LARGE]


async def test_regions_and_specs_stand_in_the_record_once_with_reason_author_and_first_price(ledger: Ledger) -> None:
    for _ in range(2):
        await ledger.billing.offers.create_region(Region("far", "Far away"), correction("a second house"))
        await ledger.billing.offers.create_spec(replace(LARGE, region_id="far"), correction("customers asked"))
    records = await ledger.billing.records.list(account_id=None, after=None, limit=10)
    made = {record.action: record for record in records if record.subject.startswith("far")}
    assert len(made) == sum(record.subject.startswith("far") for record in records) == 2
    region, spec = made["CREATE_REGION"], made["CREATE_SPEC"]
    assert (region.subject, region.reason, region.author) == ("far", "a second house", "tester")
    assert (spec.subject, spec.reason, spec.author) == ("far/gpu-1", "customers asked", "tester")
    assert json.loads(spec.detail)["price_per_hour_micros"] == LARGE.price_per_hour_micros


async def test_the_request_id_of_one_call_makes_nothing_else(ledger: Ledger) -> None:
    used = correction()
    await ledger.billing.offers.create_region(Region("far", "Far away"), used)
    for call in (
        ledger.billing.offers.create_region(Region("near", "Near"), used),
        ledger.billing.offers.create_spec(LARGE, used),
    ):
        assert (await refusal(call)).reason == "REQUEST_ID_USED"
    assert [spec.spec_id for spec in await ledger.billing.offers.list_specs(REGION)] == [SPEC]


async def test_a_late_retry_of_a_specs_creation_is_answered_though_its_price_has_changed(ledger: Ledger) -> None:
    asked = correction()
    await ledger.billing.offers.create_spec(LARGE, asked)
    ledger.clock.advance(timedelta(seconds=1))
    await ledger.billing.offers.set_price(REGION, LARGE.spec_id, 7, None, correction())
    await ledger.billing.offers.withdraw(REGION, LARGE.spec_id, correction())
    now = replace(LARGE, price_per_hour_micros=7, withdrawn=True)
    assert await ledger.billing.offers.create_spec(LARGE, asked) == now
    other = replace(LARGE, price_per_hour_micros=7)
    assert (await refusal(ledger.billing.offers.create_spec(other, asked))).reason == "REQUEST_ID_USED"
    assert (await refusal(ledger.billing.offers.create_spec(LARGE, correction()))).reason == "SPEC_EXISTS"


async def test_a_request_id_that_did_something_else_is_refused_though_region_and_spec_are_there(
    ledger: Ledger,
) -> None:
    used = correction()
    await ledger.billing.offers.create_region(Region("far", "Far away"), used)
    await ledger.billing.offers.create_spec(LARGE, correction())
    for call in (
        ledger.billing.offers.create_region(Region(REGION, "Here"), used),
        ledger.billing.offers.create_spec(LARGE, used),
    ):
        assert (await refusal(call)).reason == "REQUEST_ID_USED"


async def test_specs_are_listed_of_one_region_or_of_all_by_region_and_id(ledger: Ledger) -> None:
    await ledger.billing.offers.create_region(Region("far", "Far away"), correction())
    for spec in (LARGE, replace(LARGE, region_id="far"), replace(LARGE, region_id="far", spec_id="a")):
        await ledger.billing.offers.create_spec(spec, correction())
    listed = await ledger.billing.offers.list_specs(None)
    assert [(spec.region_id, spec.spec_id) for spec in listed] == [
        ("far", "a"),
        ("far", "gpu-1"),
        (REGION, SPEC),
        (REGION, "gpu-1"),
    ]
    assert [spec.spec_id for spec in await ledger.billing.offers.list_specs("far")] == ["a", "gpu-1"]


async def test_a_spec_or_a_price_of_what_is_not_there_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError):
        await ledger.billing.offers.create_spec(replace(LARGE, region_id="nowhere"), correction())
    with pytest.raises(NotFoundError):
        await ledger.billing.offers.set_price(REGION, "gpu-9", 1, None, correction())


async def test_a_price_counts_from_its_time_on_and_not_before(ledger: Ledger) -> None:
    later = ledger.clock.time + timedelta(hours=1)
    told = await ledger.billing.offers.set_price(REGION, SPEC, 7, later, correction())
    assert told.price_per_hour_micros == PRICE_MICROS
    ledger.clock.advance(timedelta(hours=1) - timedelta(microseconds=1))
    assert await price(ledger) == PRICE_MICROS
    ledger.clock.advance(timedelta(microseconds=1))
    assert await price(ledger) == 7
    ledger.clock.advance(timedelta(seconds=1))
    told = await ledger.billing.offers.set_price(REGION, SPEC, 8, None, correction())
    assert told.price_per_hour_micros == 8


@pytest.mark.parametrize(("early_by", "refused"), [(PRICE_CLOCK_SKEW, False), (PRICE_CLOCK_SKEW * 1.01, True)])
async def test_a_price_begins_at_most_a_clocks_error_in_the_past(
    ledger: Ledger, early_by: timedelta, refused: bool
) -> None:
    ledger.clock.advance(timedelta(hours=1))
    setting = ledger.billing.offers.set_price(REGION, SPEC, 7, ledger.clock.time - early_by, correction())
    if refused:
        assert (await refusal(setting)).reason == "START_IN_THE_PAST"
        assert await price(ledger) == PRICE_MICROS
    else:
        await setting
        assert await price(ledger) == 7


async def test_a_price_that_would_begin_before_the_one_in_force_is_refused_and_later_ones_are_answered_truly(
    ledger: Ledger,
) -> None:
    offers = ledger.billing.offers
    ledger.clock.advance(timedelta(hours=1))
    await offers.set_price(REGION, SPEC, 5, None, correction())
    in_force_since = ledger.clock.time
    for early_by in (PRICE_CLOCK_SKEW, timedelta(microseconds=1)):
        asked = correction()
        refused = await refusal(offers.set_price(REGION, SPEC, 7, in_force_since - early_by, asked))
        assert refused.reason == "PRICE_IN_FORCE_LATER"
        assert refused.metadata["in_force_since"] == in_force_since.isoformat()
        assert await price(ledger) == 5
    # A refused call leaves its request id free.
    ledger.clock.advance(timedelta(seconds=30))
    told = await offers.set_price(REGION, SPEC, 8, ledger.clock.time - timedelta(seconds=29), asked)
    assert told.price_per_hour_micros == await price(ledger) == 8
    # One that is to come hinders none before it.
    await offers.set_price(REGION, SPEC, 9, ledger.clock.time + timedelta(hours=2), correction())
    told = await offers.set_price(REGION, SPEC, 6, ledger.clock.time + timedelta(hours=1), correction())
    assert told.price_per_hour_micros == await price(ledger) == 8
    for then in (6, 9):
        ledger.clock.advance(timedelta(hours=1))
        assert await price(ledger) == then


async def test_one_moment_has_one_price_and_a_retried_call_sets_it_once(ledger: Ledger) -> None:
    later, asked = ledger.clock.time + timedelta(hours=1), correction("dearer power")
    for _ in range(2):
        await ledger.billing.offers.set_price(REGION, SPEC, 7, later, asked)
    again = await refusal(ledger.billing.offers.set_price(REGION, SPEC, 8, later, correction()))
    assert again.reason == "PRICE_EXISTS"
    other = await refusal(ledger.billing.offers.set_price(REGION, SPEC, 8, later, asked))
    assert other.reason == "REQUEST_ID_USED"
    ledger.clock.advance(timedelta(hours=1))
    assert await price(ledger) == 7


async def test_more_than_a_machine_has_is_neither_quoted_nor_held(ledger: Ledger) -> None:
    account_id = await ledger.account(100 * HOLD_MICROS)
    quote = await ledger.billing.offers.quote(account_id, REGION, SPEC, 4)
    assert (quote.hold_micros, quote.available_micros) == (4 * HOLD_MICROS, 100 * HOLD_MICROS)
    assert (await refusal(ledger.billing.offers.quote(account_id, REGION, SPEC, 5))).reason == "COUNT_TOO_LARGE"
    assert (await refusal(ledger.billing.holds.create(request_of(account_id, count=5)))).reason == "COUNT_TOO_LARGE"
    assert await ledger.balance(account_id) == (100 * HOLD_MICROS, 0)


@pytest.mark.parametrize(
    ("balance", "missing"), [(0, HOLD_MICROS), (HOLD_MICROS - 1, 1), (HOLD_MICROS, 0), (9 * HOLD_MICROS, 0)]
)
async def test_a_quote_says_how_much_is_missing(ledger: Ledger, balance: int, missing: int) -> None:
    quote = await ledger.billing.offers.quote(await ledger.account(balance), REGION, SPEC, 1)
    assert quote.missing_micros == missing


async def test_a_withdrawn_spec_starts_nothing_and_what_runs_goes_on(ledger: Ledger) -> None:
    offers, holds = ledger.billing.offers, ledger.billing.holds
    running = request_of(await ledger.account(9 * HOLD_MICROS))
    await holds.create(running)
    withdrawn = correction("the machine is sold")
    for _ in range(2):
        assert (await offers.withdraw(REGION, SPEC, withdrawn)).withdrawn
    assert await offers.list_specs(REGION) == []
    assert [spec.withdrawn for spec in await offers.list_specs(REGION, show_withdrawn=True)] == [True]

    later = request_of(running.account_id)
    end = ledger.clock.time + timedelta(days=1)
    group = ledger.billing.groups.create(running.account_id, "G", REGION, SPEC, 1, None, end, correction())
    for call in (holds.create(later), offers.quote(running.account_id, REGION, SPEC, 1), group):
        assert (await refusal(call)).reason == "SPEC_WITHDRAWN"
    await holds.create(running)
    await holds.advance(running.hold_id, HOUR_MS, running=True)
    await holds.resolve(running.hold_id, HOUR_MS)
    assert await ledger.balance(running.account_id) == (9 * HOLD_MICROS - PRICE_MICROS, 0)

    assert not (await offers.offer(REGION, SPEC, correction("it was not"))).withdrawn
    assert (await holds.create(later)).amount_micros == HOLD_MICROS
    records = await ledger.billing.records.list(account_id=None, after=None, limit=10)
    assert {(record.action, record.subject, record.reason, record.author) for record in records} >= {
        ("WITHDRAW_SPEC", f"{REGION}/{SPEC}", "the machine is sold", "tester"),
        ("OFFER_SPEC", f"{REGION}/{SPEC}", "it was not", "tester"),
    }


async def test_of_a_region_and_of_a_spec_that_is_in_several_regions_only_the_named_one_is_withdrawn(
    ledger: Ledger,
) -> None:
    offers = ledger.billing.offers
    await offers.create_region(Region("far", "Far away"), correction())
    for spec in (LARGE, replace(LARGE, region_id="far")):
        await offers.create_spec(spec, correction())
    await offers.withdraw(REGION, LARGE.spec_id, correction())
    on_offer = [(spec.region_id, spec.spec_id) for spec in await offers.list_specs(None)]
    assert on_offer == [("far", LARGE.spec_id), (REGION, SPEC)]


async def test_capacity_that_was_bought_starts_on_a_withdrawn_spec(ledger: Ledger) -> None:
    account_id, end = await ledger.account(0), ledger.clock.time + timedelta(days=1)
    group = await ledger.billing.groups.create(account_id, "G", REGION, SPEC, 1, None, end, correction())
    await ledger.billing.offers.withdraw(REGION, SPEC, correction())
    assert (await ledger.billing.offers.quote(account_id, REGION, SPEC, 1, prepaid=True)).spec.withdrawn
    held = await ledger.billing.holds.create(request_of(account_id, group_id=group.group_id))
    assert held.state is HoldState.GRANTED


async def test_a_withdrawn_spec_keeps_its_id_its_price_goes_on_and_only_what_there_is_is_withdrawn(
    ledger: Ledger,
) -> None:
    offers = ledger.billing.offers
    await offers.create_spec(LARGE, correction())
    await offers.withdraw(REGION, "gpu-1", correction())
    assert (await offers.create_spec(LARGE, correction())).withdrawn
    ledger.clock.advance(timedelta(seconds=1))
    await offers.set_price(REGION, "gpu-1", 7, None, correction())
    assert (await offers.offer(REGION, "gpu-1", correction())).price_per_hour_micros == 7
    for change in (offers.withdraw, offers.offer):
        with pytest.raises(NotFoundError):
            await change(REGION, "gpu-9", correction())
