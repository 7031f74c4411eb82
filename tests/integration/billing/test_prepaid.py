"""Resource groups: capacity instead of money."""

import asyncio
import json
from dataclasses import replace
from datetime import datetime, timedelta
from unittest.mock import AsyncMock

import pytest

from saucer.billing.domain import Group, HoldRequest, HoldState
from saucer.billing.service import groups
from saucer.billing.service.accounts import Accounts
from saucer.billing.store.accounts import get_account
from saucer.billing.store.holds import get_hold
from saucer.lib.errors import (
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from saucer.lib.ids import new_id
from tests.support.ledger import HOLD_MICROS, HOUR_MS, REGION, SPEC, Ledger, correction, refusal, request_of

DAY = timedelta(days=1)


async def group_of(ledger: Ledger, account_id: str, capacity: int = 2) -> Group:
    return await ledger.billing.groups.create(
        account_id, "Night shift", REGION, SPEC, capacity, None, ledger.clock.time + 2 * DAY, correction()
    )


async def states(ledger: Ledger, requests: list[HoldRequest]) -> list[HoldState]:
    return [(await ledger.hold(request)).state for request in requests]


async def told(ledger: Ledger, event: str) -> list[dict[str, object]]:
    async with ledger.database.reading() as connection:
        rows = await connection.fetch("SELECT data FROM outbox WHERE type LIKE '%.' || $1 ORDER BY position", event)
    return [json.loads(row["data"]) for row in rows]


async def test_capacity_is_taken_and_not_money_and_nothing_is_ever_charged(ledger: Ledger) -> None:
    account_id = await ledger.account(5)
    group = await group_of(ledger, account_id)
    request = request_of(account_id, count=2, group_id=group.group_id)
    for billing in (ledger.billing, ledger.second):
        hold = await billing.holds.create(request)
        assert (hold.state, hold.amount_micros, hold.price_per_hour_micros) == (HoldState.GRANTED, 0, 0)
    assert (await ledger.billing.groups.get(group.group_id)).taken == 2
    await ledger.billing.holds.use(request.hold_id, request.work_id, 1)
    await ledger.billing.holds.advance(request.hold_id, 5 * HOUR_MS, running=True)
    await ledger.billing.holds.resolve(request.hold_id, 6 * HOUR_MS)
    assert await ledger.balance(account_id) == (5, 0)
    assert (await ledger.billing.groups.get(group.group_id)).taken == 0


async def test_a_large_one_that_waits_is_not_overtaken_by_a_small_one(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=2)
    a, b, c = [request_of(account_id, count=count, group_id=group.group_id) for count in (1, 2, 1)]
    for request in (a, b, c):
        await ledger.billing.holds.create(request)
        ledger.clock.advance(timedelta(seconds=1))
    assert await states(ledger, [a, b, c]) == [HoldState.GRANTED, HoldState.WAITING, HoldState.WAITING]


async def test_one_that_asks_with_an_earlier_clock_stays_behind_those_that_wait(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=2)
    running, large = [request_of(account_id, count=count, group_id=group.group_id) for count in (1, 2)]
    late = [request_of(account_id, group_id=group.group_id) for _ in range(4)]
    ledger.clock.advance(timedelta(seconds=1))
    for request in (running, large):
        await ledger.billing.holds.create(request)
    for request in late:
        # Another replica's clock, or one read before a wait for the group.
        ledger.clock.advance(-timedelta(milliseconds=1))
        await ledger.second.holds.create(request)
    await ledger.billing.sweep_once()
    assert await states(ledger, [large, *late]) == [HoldState.WAITING] * 5
    await ledger.billing.holds.resolve(running.hold_id, 1)
    assert await states(ledger, [large, *late]) == [HoldState.GRANTED, *[HoldState.WAITING] * 4]
    await ledger.billing.holds.resolve(large.hold_id, 1)
    assert await states(ledger, late) == [HoldState.GRANTED] * 2 + [HoldState.WAITING] * 2


async def test_without_a_free_one_starts_wait_and_are_granted_in_their_order(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id)
    requests = [request_of(account_id, count=count, group_id=group.group_id) for count in (2, 2, 1)]
    for request in requests:
        await ledger.billing.holds.create(request)
        ledger.clock.advance(timedelta(seconds=1))
    assert await states(ledger, requests) == [HoldState.GRANTED, HoldState.WAITING, HoldState.WAITING]
    await ledger.billing.holds.resolve(requests[0].hold_id, 1)
    assert await states(ledger, requests[1:]) == [HoldState.GRANTED, HoldState.WAITING]
    await ledger.second.holds.resolve(requests[1].hold_id, 1)
    assert await states(ledger, requests[2:]) == [HoldState.GRANTED]
    granted = [event["hold"]["holdId"] for event in await told(ledger, "HoldGranted")]  # type: ignore[index]
    assert granted == [request.hold_id for request in requests]


async def test_of_many_racing_for_a_group_through_two_replicas_exactly_its_capacity_is_given(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=5)
    requests = [request_of(account_id, group_id=group.group_id) for _ in range(20)]
    replicas = [ledger.billing, ledger.second]
    await asyncio.gather(*(replica.holds.create(request) for request in requests for replica in replicas))
    assert (await states(ledger, requests)).count(HoldState.GRANTED) == 5
    ended = [request for request in requests if (await ledger.hold(request)).state is HoldState.GRANTED]
    await asyncio.gather(*(replica.holds.resolve(r.hold_id, 1) for r in ended for replica in replicas))
    assert (await states(ledger, requests)).count(HoldState.GRANTED) == 5


async def test_a_start_that_gives_up_waiting_lets_those_behind_it_pass_and_is_never_granted(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id)
    first, large, small = [request_of(account_id, count=count, group_id=group.group_id) for count in (1, 2, 1)]
    for request in (first, large, small):
        await ledger.billing.holds.create(request)
        ledger.clock.advance(timedelta(seconds=1))
    assert await states(ledger, [large, small]) == [HoldState.WAITING] * 2
    for _ in range(2):
        await ledger.billing.holds.give_up(large, "EUR", 0)
    assert await states(ledger, [large, small]) == [HoldState.BURIED, HoldState.GRANTED]
    with pytest.raises(FailedPreconditionError, match="given up"):
        await ledger.billing.holds.create(large)


async def test_a_start_that_is_given_up_before_it_asks_for_capacity_is_told_so(ledger: Ledger) -> None:
    account_id, other = await ledger.account(0), await ledger.account(0)
    group, of_other = await group_of(ledger, account_id), await group_of(ledger, other)
    request = request_of(account_id, group_id=group.group_id)
    await ledger.billing.holds.give_up(request, "EUR", 0)
    assert (await refusal(ledger.billing.holds.create(request))).reason == "HOLD_BURIED"
    another = replace(request, group_id=(await group_of(ledger, account_id)).group_id)
    assert (await refusal(ledger.billing.holds.create(another))).reason == "HOLD_ID_USED"
    # What a user names wrongly is no reason to lose the event that gives it up.
    for group_id in (new_id(), of_other.group_id):
        wrong = request_of(account_id, group_id=group_id)
        await ledger.billing.holds.give_up(wrong, "EUR", 0)
        assert (await refusal(ledger.billing.holds.create(wrong))).reason == "RESOURCE_GROUP_NOT_FOUND"
        assert (await ledger.hold(wrong)).state is HoldState.BURIED


async def test_what_a_crash_left_ungranted_the_sweeper_grants(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=1)
    first, second = [request_of(account_id, group_id=group.group_id) for _ in range(2)]
    for request in (first, second):
        await ledger.billing.holds.create(request)
    # Resolved by a process that dies before it fills the group.
    ledger.billing.holds._groups.fill = lambda group_id: asyncio.sleep(0)  # type: ignore[method-assign]
    await ledger.billing.holds.resolve(first.hold_id, 1)
    assert await states(ledger, [second]) == [HoldState.WAITING]
    await ledger.second.sweep_once()
    assert await states(ledger, [second]) == [HoldState.GRANTED]


async def test_one_that_has_waited_long_has_its_full_time_to_be_used(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=1)
    first, second = [request_of(account_id, group_id=group.group_id) for _ in range(2)]
    for request in (first, second):
        await ledger.billing.holds.create(request)
    await ledger.billing.holds.use(first.hold_id, first.work_id, 1)
    ledger.clock.advance(timedelta(hours=5))
    await ledger.billing.holds.resolve(first.hold_id, 1)
    await ledger.billing.sweep_once()
    assert await states(ledger, [second]) == [HoldState.GRANTED]
    ledger.clock.advance(timedelta(hours=2))
    await ledger.billing.sweep_once()
    assert await states(ledger, [second]) == [HoldState.EXPIRED]
    assert (await ledger.billing.groups.get(group.group_id)).taken == 0


async def test_an_end_is_warned_of_ahead_and_then_stops_what_runs_and_what_waits(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=1)
    running, waiting = [request_of(account_id, group_id=group.group_id) for _ in range(2)]
    for request in (running, waiting):
        await ledger.billing.holds.create(request)
    await ledger.billing.holds.use(running.hold_id, running.work_id, 1)
    for _ in range(2 * 2 * 24 + 1):
        await ledger.billing.sweep_once()
        await ledger.second.sweep_once()
        ledger.clock.advance(timedelta(minutes=30))
    assert [event["hours"] for event in await told(ledger, "GroupEnding")] == [24, 1]
    assert len(await told(ledger, "GroupEnded")) == 1
    orders = {event["hold"]["holdId"]: event["reason"] for event in await told(ledger, "StopOrdered")}  # type: ignore[index]
    assert orders == dict.fromkeys((running.hold_id, waiting.hold_id), "STOP_REASON_GROUP_ENDED")
    # What waits is over, though its owner may be gone and never obey.
    assert await states(ledger, [running, waiting]) == [HoldState.GRANTED, HoldState.BURIED]
    assert [event["hold"]["holdId"] for event in await told(ledger, "HoldResolved")] == [waiting.hold_id]  # type: ignore[index]
    # The owners obey.
    await ledger.billing.holds.resolve(running.hold_id, HOUR_MS)
    await ledger.billing.holds.give_up(waiting, "EUR", 0)
    assert await states(ledger, [running, waiting]) == [HoldState.RESOLVED, HoldState.BURIED]
    late = request_of(account_id, group_id=group.group_id)
    for _ in range(2):
        with pytest.raises(FailedPreconditionError) as refusal:
            await ledger.billing.holds.create(late)
        assert refusal.value.reason == "GROUP_ENDED"
    assert (await ledger.billing.groups.get(group.group_id)).taken == 0


async def test_what_still_waits_for_a_group_that_has_ended_is_over_with_the_next_round(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=1)
    running, waiting = [request_of(account_id, group_id=group.group_id) for _ in range(2)]
    for request in (running, waiting):
        await ledger.billing.holds.create(request)
    await ledger.billing.holds.use(running.hold_id, running.work_id, 1)
    ledger.clock.advance(3 * DAY)
    async with ledger.database.reading() as connection:
        # As an earlier version left it: the owner was told to stop, and is gone.
        await connection.execute("UPDATE resource_group SET ended = true")
        await connection.execute("UPDATE hold SET stop_ordered = true")
    assert [finding.invariant for finding in (await ledger.audit()).findings] == ["nothing_waits_for_an_ended_group"]
    for billing in (ledger.billing, ledger.second):
        await billing.sweep_once()
    assert await states(ledger, [running, waiting]) == [HoldState.GRANTED, HoldState.BURIED]
    assert (len(await told(ledger, "HoldResolved")), await told(ledger, "StopOrdered")) == (1, [])
    assert await told(ledger, "GroupEnded") == []


async def test_more_groups_than_a_round_sees_to_are_all_warned_of_their_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "ENDING_BATCH", 2)
    account_id = await ledger.account(0)
    ids = []
    for minutes in range(5):
        # Those that were warned of come before the others, and must not take their places.
        group = await group_of(ledger, account_id)
        await ledger.billing.groups.update(
            group.group_id, None, group.ends_at + timedelta(minutes=minutes), correction()
        )
        ids.append(group.group_id)
    for hours in (25, 22.5, 0.75):
        ledger.clock.advance(timedelta(hours=hours))
        for _ in range(3):
            await ledger.billing.sweep_once()
    warned = sorted((event["group"]["resourceGroupId"], event["hours"]) for event in await told(ledger, "GroupEnding"))  # type: ignore[index]
    assert warned == sorted((group_id, hours) for group_id in ids for hours in (24, 1))
    assert len(await told(ledger, "GroupEnded")) == 5


async def test_more_capacity_repeats_no_warning_and_another_end_does(ledger: Ledger) -> None:
    group = await group_of(ledger, await ledger.account(0))
    ledger.clock.advance(timedelta(hours=47, minutes=30))

    async def hours_after(capacity: int | None, ends_at: datetime | None) -> list[object]:
        if capacity or ends_at:
            await ledger.billing.groups.update(group.group_id, capacity, ends_at, correction())
        await ledger.billing.sweep_once()
        return [event["hours"] for event in await told(ledger, "GroupEnding")]

    assert await hours_after(None, None) == [1]
    assert await hours_after(5, None) == [1]
    assert await hours_after(5, group.ends_at) == [1]
    assert await hours_after(None, group.ends_at + timedelta(minutes=15)) == [1, 1]


async def test_a_group_whose_time_has_not_begun_refuses(ledger: Ledger) -> None:
    account_id, now = await ledger.account(0), ledger.clock.time
    group = await ledger.billing.groups.create(
        account_id, "Next week", REGION, SPEC, 1, now + 7 * DAY, now + 14 * DAY, correction()
    )
    with pytest.raises(FailedPreconditionError) as refusal:
        await ledger.billing.holds.create(request_of(account_id, group_id=group.group_id))
    assert refusal.value.reason == "GROUP_NOT_STARTED"
    ledger.clock.advance(7 * DAY)
    await ledger.billing.holds.create(request_of(account_id, group_id=group.group_id))


async def test_more_capacity_grants_what_waits_and_less_than_is_taken_is_refused(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=1)
    requests = [request_of(account_id, group_id=group.group_id) for _ in range(3)]
    for request in requests:
        await ledger.billing.holds.create(request)
    more = correction("they paid for more")
    for _ in range(2):
        await ledger.billing.groups.update(group.group_id, 3, None, more)
    assert await states(ledger, requests) == [HoldState.GRANTED] * 3
    with pytest.raises(FailedPreconditionError) as refusal:
        await ledger.billing.groups.update(group.group_id, 2, None, correction())
    assert (refusal.value.reason, refusal.value.metadata["taken"]) == ("CAPACITY_TAKEN", "3")
    with pytest.raises(AlreadyExistsError):
        await ledger.billing.groups.update(group.group_id, 4, None, more)
    large = request_of(account_id, count=2, group_id=group.group_id)
    await ledger.billing.holds.create(large)
    for request in requests[:2]:
        await ledger.billing.holds.resolve(request.hold_id, 1)
    assert await states(ledger, [large]) == [HoldState.GRANTED]
    records = await ledger.billing.records.list(account_id=account_id, after=None, limit=10)
    assert [record.reason for record in records if record.action == "UPDATE_GROUP"] == ["they paid for more"]


async def test_less_capacity_than_a_start_waits_for_is_refused_since_nobody_would_pass_it(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=3)
    running, large = (
        request_of(account_id, group_id=group.group_id),
        request_of(account_id, count=3, group_id=group.group_id),
    )
    for request in (running, large):
        await ledger.billing.holds.create(request)
    refused = await refusal(ledger.billing.groups.update(group.group_id, 2, None, correction()))
    assert (refused.reason, refused.metadata["work_id"]) == ("CAPACITY_WAITED_FOR", large.work_id)
    await ledger.billing.holds.give_up(large, "EUR", 0)
    assert (await ledger.billing.groups.update(group.group_id, 1, None, correction())).capacity == 1


async def test_of_a_withdrawn_spec_a_group_gets_smaller_and_ends_earlier_and_not_the_reverse(ledger: Ledger) -> None:
    group = await group_of(ledger, await ledger.account(0), capacity=3)
    update = ledger.billing.groups.update
    more = correction()
    await update(group.group_id, 4, None, more)
    await ledger.billing.offers.withdraw(REGION, SPEC, correction())
    # A retry of what was done before.
    assert (await update(group.group_id, 4, None, more)).capacity == 4
    for capacity, ends_at in ((5, None), (None, group.ends_at + DAY), (2, group.ends_at + DAY)):
        assert (await refusal(update(group.group_id, capacity, ends_at, correction()))).reason == "SPEC_WITHDRAWN"
    changed = await update(group.group_id, 2, group.ends_at - DAY, correction())
    assert (changed.capacity, changed.ends_at) == (2, group.ends_at - DAY)
    await ledger.billing.offers.offer(REGION, SPEC, correction())
    assert (await update(group.group_id, 5, None, correction())).capacity == 5


async def test_a_change_of_a_group_keeps_no_account_from_what_has_its_capacity(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id)
    request = request_of(account_id, group_id=group.group_id)
    await ledger.billing.holds.create(request)
    async with ledger.database.transaction() as tx:
        # What a counter locks, in its order.
        await get_hold(tx.connection, request.hold_id, lock=True)
        update = asyncio.create_task(ledger.second.groups.update(group.group_id, 3, None, correction()))
        await ledger.until_some_wait_for_a_lock()
        await get_account(tx.connection, account_id, lock=True)
    assert (await update).capacity == 3


async def test_a_suspended_accounts_group_grants_nothing_and_what_waits_is_ordered_to_stop(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=1)
    running, waiting = [request_of(account_id, group_id=group.group_id) for _ in range(2)]
    for request in (running, waiting):
        await ledger.billing.holds.create(request)
    await ledger.billing.accounts.suspend(account_id, correction())
    assert len(await told(ledger, "StopOrdered")) == 2
    await ledger.billing.holds.resolve(running.hold_id, 1)
    await ledger.billing.sweep_once()
    assert await states(ledger, [waiting]) == [HoldState.WAITING]


async def test_a_start_that_waits_is_ordered_to_stop_by_the_sweep_where_a_suspension_crashed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=1)
    running, waiting = [request_of(account_id, group_id=group.group_id) for _ in range(2)]
    for request in (running, waiting):
        await ledger.billing.holds.create(request)
    with monkeypatch.context() as crash:
        crash.setattr(Accounts, "_stop_suspended", AsyncMock(side_effect=ConnectionError))
        with pytest.raises(ConnectionError):
            await ledger.billing.accounts.suspend(account_id, correction())
    await ledger.billing.holds.resolve(running.hold_id, 1)
    await ledger.billing.sweep_once()
    hold = await ledger.hold(waiting)
    assert (hold.state, hold.stop_ordered) == (HoldState.WAITING, True)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"count": 3}, InvalidArgumentError, "COUNT_TOO_LARGE"),
        ({"spec_id": "other"}, InvalidArgumentError, "GROUP_OF_ANOTHER_SPEC"),
        ({"group_id": new_id()}, NotFoundError, "RESOURCE_GROUP_NOT_FOUND"),
    ],
)
async def test_what_does_not_fit_a_group_is_refused_and_leaves_nothing(
    ledger: Ledger, change: dict[str, object], error: type[DomainError], reason: str
) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id)
    request = HoldRequest(**{**request_of(account_id, group_id=group.group_id).__dict__, **change})
    with pytest.raises(error) as refusal:
        await ledger.billing.holds.create(request)
    assert refusal.value.reason == reason
    assert await ledger.billing.statements.list(account_id, work_id=None, after=None, limit=9) == ([], False)


async def test_of_a_large_group_a_start_takes_no_more_than_one_machine_has(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    group = await group_of(ledger, account_id, capacity=50)
    four, five = [request_of(account_id, count=count, group_id=group.group_id) for count in (4, 5)]
    await ledger.billing.holds.create(four)
    assert (await refusal(ledger.billing.holds.create(five))).reason == "COUNT_TOO_LARGE"
    assert (await ledger.billing.groups.get(group.group_id)).taken == 4


async def test_another_accounts_group_does_not_exist(ledger: Ledger) -> None:
    group = await group_of(ledger, await ledger.account(0))
    with pytest.raises(NotFoundError):
        await ledger.billing.holds.create(request_of(await ledger.account(HOLD_MICROS), group_id=group.group_id))


async def test_the_same_id_with_and_without_a_group_is_a_conflict(ledger: Ledger) -> None:
    account_id = await ledger.account(HOLD_MICROS)
    group = await group_of(ledger, account_id)
    request = request_of(account_id, group_id=group.group_id)
    await ledger.billing.holds.create(request)
    with pytest.raises(AlreadyExistsError):
        await ledger.billing.holds.create(HoldRequest(**{**request.__dict__, "group_id": None}))


async def test_a_group_says_what_is_taken_of_it_and_what_waits_for_it(ledger: Ledger) -> None:
    account_id = await ledger.account(HOLD_MICROS)
    group, empty = await group_of(ledger, account_id, capacity=3), await group_of(ledger, account_id)
    requests = [request_of(account_id, count=count, group_id=group.group_id) for count in (1, 2, 1, 2)]
    for request in (*requests, request_of(account_id)):
        await ledger.billing.holds.create(request)
        ledger.clock.advance(timedelta(seconds=1))

    async def counted(group: Group) -> tuple[int, int]:
        found = await ledger.billing.groups.get(group.group_id)
        return found.taken, found.waiting

    assert (await counted(group), await counted(empty)) == ((3, 3), (0, 0))
    await ledger.billing.holds.give_up(requests[3], "EUR", 0)
    await ledger.billing.holds.resolve(requests[0].hold_id, 0)
    assert (await counted(group), await counted(empty)) == ((3, 0), (0, 0))
