"""Lists in their order, whole over all pages, and of one account alone."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from saucer.billing.domain import Budget, Group, Record, Statement
from saucer.lib.ids import new_id
from tests.support.ledger import HOLD_MICROS, REGION, SPEC, Ledger, correction, request_of

T = TypeVar("T")
PAGE = 2


async def paged(
    list_after: Callable[[Any], Awaitable[Sequence[T]]], key: Callable[[T], object], most: int = 20
) -> list[object]:
    """The keys of all pages."""
    keys: list[object] = []
    for _ in range(most):
        page = await list_after(keys[-1] if keys else None)
        keys += [key(one) for one in page]
        if len(page) < PAGE:
            return keys
    raise AssertionError(f"{most} pages were not the end")


async def test_holds_are_listed_newest_first(ledger: Ledger) -> None:
    account_id, other = await ledger.account(9 * HOLD_MICROS), await ledger.account(HOLD_MICROS)
    work_id = new_id()
    requests = [request_of(account_id) for _ in range(3)]
    requests += [request_of(account_id, work_id=work_id, start_number=number) for number in (1, 2, 3)]
    for place, request in enumerate((*requests, request_of(other))):
        if place % 2:
            ledger.clock.advance(timedelta(seconds=1))
        await ledger.billing.holds.create(request)

    def key(statement: Statement) -> object:
        return statement.hold.created_at, statement.hold.hold_id

    def of(work_id: str | None) -> Callable[[Any], Awaitable[Sequence[Statement]]]:
        async def list_after(after: Any) -> Sequence[Statement]:
            page, _ = await ledger.billing.statements.list(account_id, work_id=work_id, after=after, limit=PAGE)
            return page

        return list_after

    listed = await paged(of(None), key)
    assert listed == sorted(listed, reverse=True)  # type: ignore[type-var]
    assert {key[1] for key in listed} == {request.hold_id for request in requests}  # type: ignore[index]
    assert len(listed) == len(requests)
    started = await paged(of(work_id), key)
    assert [key[1] for key in started] == [f"{work_id}-{number}" for number in (3, 2, 1)]  # type: ignore[index]


async def test_records_are_listed_newest_first(ledger: Ledger) -> None:
    account_id, other = await ledger.account(0), await ledger.account(0)
    reasons = [f"for reason {number}" for number in range(5)]
    for place, reason in enumerate(reasons):
        if place % 2:
            ledger.clock.advance(timedelta(seconds=1))
        await ledger.billing.accounts.adjust(account_id, 1, correction(reason))
    await ledger.billing.accounts.adjust(other, 1, correction("of another"))

    def key(record: Record) -> object:
        return record.created_at, record.record_id, record.reason

    async def list_after(account_id: str | None, last: Any) -> Sequence[Record]:
        return await ledger.billing.records.list(account_id=account_id, after=last and last[:2], limit=PAGE)

    listed = await paged(lambda last: list_after(account_id, last), key)
    assert listed == sorted(listed, reverse=True)  # type: ignore[type-var]
    assert sorted(key[2] for key in listed if key[2] != "a test") == reasons  # type: ignore[index]
    everybody = await paged(lambda last: list_after(None, last), key)
    assert everybody == sorted(everybody, reverse=True)  # type: ignore[type-var]
    assert len(everybody) == len(set(everybody)) > len(listed)


async def test_groups_are_listed_newest_first(ledger: Ledger) -> None:
    account_id, other = await ledger.account(0), await ledger.account(0)
    made = []
    for place, of_account in enumerate((account_id,) * 5 + (other,)):
        if place % 2:
            ledger.clock.advance(timedelta(seconds=1))
        ends_at = ledger.clock.time + timedelta(days=2)
        made.append(await ledger.billing.groups.create(of_account, "G", REGION, SPEC, 1, None, ends_at, correction()))

    def key(group: Group) -> object:
        return group.created_at, group.group_id

    async def list_after(account_id: str | None, last: Any) -> Sequence[Group]:
        return await ledger.billing.groups.list(account_id, after=last, limit=PAGE)

    cases: list[tuple[str | None, list[Group]]] = [(account_id, made[:5]), (None, made)]
    for whose, groups in cases:
        listed = await paged(lambda last, of=whose: list_after(of, last), key)  # type: ignore[misc]
        assert listed == sorted(map(key, groups), reverse=True)  # type: ignore[type-var]


async def test_budgets_are_listed_by_id(ledger: Ledger) -> None:
    account_id, other = await ledger.account(0), await ledger.account(0)
    works = [new_id() for _ in range(4)]
    await ledger.billing.budgets.set(account_id, None, 5)
    await ledger.billing.budgets.set(other, None, 5)
    for work_id in works:
        await ledger.billing.budgets.set(account_id, work_id, 5)
    of_id: dict[str, Budget] = {}

    async def list_after(last: str | None) -> Sequence[Budget]:
        page = await ledger.billing.budgets.list(account_id, after=last, limit=PAGE)
        of_id.update({budget.budget_id: budget for budget, _ in page})
        return [budget for budget, _ in page]

    listed = await paged(list_after, lambda budget: budget.budget_id)
    assert listed == sorted(of_id)
    assert {budget.work_id for budget in of_id.values()} == {None, *works}


async def test_accounts_are_listed_by_id(ledger: Ledger) -> None:
    ids = [await ledger.account(0) for _ in range(5)]
    listed = await paged(
        lambda last: ledger.billing.accounts.list(after=last, limit=PAGE), lambda account: account.account_id
    )
    assert listed == sorted(ids)
