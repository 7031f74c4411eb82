"""Budgets: what a task or deployment, or an account in each calendar month of its time zone, may cost at most.

Booked plus unpaid plus the reserve of all that is open counts. Reaching a budget stops what it covers, with the reserve
still there for finishing, and refuses new starts. Prepaid work costs nothing, so no budget covers it.
"""

from collections.abc import Sequence
from datetime import datetime

from saucer.billing import metering
from saucer.billing.domain import Account, Budget, Hold, HoldRequest, HoldState, Spending, month_of
from saucer.billing.service.journal import Journal
from saucer.billing.store import accounts as accounts_store
from saucer.billing.store import budgets as store
from saucer.billing.store import holds as holds_store
from saucer.billing.store import transfers as transfers_store
from saucer.billing.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.postgres import Connection, Database, Transaction


class Budgets:
    """The limits that an account sets itself."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set(self, account_id: str, work_id: str | None, amount_micros: int) -> tuple[Budget, Spending]:
        """Of a task or deployment; `work_id` None: of the account, by the month. Nothing removes it.

        Raises NotFoundError.
        """
        current().own("account", account_id, account_id)
        async with self._database.transaction() as tx:
            account = await accounts_store.get_account(tx.connection, account_id)
            if account is None:
                raise NotFoundError("account", account_id)
            budget = _budget(account_id, work_id, amount_micros, tx.now)
            if amount_micros:
                await store.put_budget(tx.connection, budget)
            else:
                await store.remove_budget(tx.connection, budget.budget_id, tx.now)
        await self.enforce(account_id)
        async with self._database.transaction() as tx:
            return budget, (await _spending(tx.connection, account, [budget], tx.now))[0]

    async def give(self, account_id: str, work_id: str, amount_micros: int) -> None:
        """Of a work that starts: set unless it has one, or had one that was removed.

        An account that there is not is left to the start.
        """
        async with self._database.transaction() as tx:
            if await accounts_store.get_account(tx.connection, account_id) is not None:
                await store.insert_budget(tx.connection, _budget(account_id, work_id, amount_micros, tx.now))

    async def list(self, account_id: str, *, after: str | None, limit: int) -> "list[tuple[Budget, Spending]]":
        """By id, with what counts against each now. Raises NotFoundError."""
        current().own("account", account_id, account_id)
        async with self._database.transaction() as tx:
            account = await accounts_store.get_account(tx.connection, account_id)
            if account is None:
                raise NotFoundError("account", account_id)
            budgets = await store.list_budgets(tx.connection, account_id, after=after, limit=limit)
            return list(zip(budgets, await _spending(tx.connection, account, budgets, tx.now), strict=True))

    async def any(self, tx: Transaction, account_id: str) -> bool:
        """Whether an account has one at all; most have none, and pay nothing for those that do."""
        return await store.exists(tx.connection, account_id)

    async def would_exceed(self, tx: Transaction, request: HoldRequest, price_per_hour_micros: int) -> bool:
        """Whether a new start reaches a budget with its reserve alone. Locks the account."""
        account = await accounts_store.get_account(tx.connection, request.account_id, lock=True)
        if account is None:
            return False
        budgets = await store.budgets_over(tx.connection, request.account_id, [request.work_id])
        reserve = metering.reserve_micros(price_per_hour_micros, request.count)
        spending = await _spending(tx.connection, account, budgets, tx.now)
        return any(
            spent.sum_micros + reserve >= budget.amount_micros for budget, spent in zip(budgets, spending, strict=True)
        )

    async def enforce(self, account_id: str) -> None:
        """Orders the stop of what a reached budget covers."""
        async with self._database.reading() as connection:
            if not await store.exists(connection, account_id):
                return
        async with self._database.transaction() as tx:
            holds = await holds_store.lock_open(tx.connection, account_id)
            journal = await Journal.open(tx, account_id, holds)
            budgets = await store.budgets_over(tx.connection, account_id, [hold.work_id for hold in holds])
            spending = await _spending(tx.connection, journal.account, budgets, tx.now)
            for budget, spent in zip(budgets, spending, strict=True):
                if spent.sum_micros >= budget.amount_micros:
                    for hold in _covered(budget, list(journal.holds.values())):
                        journal.order_stop(hold, events_pb2.STOP_REASON_BUDGET_REACHED, hold.charged_ms)
            await journal.write()


def _budget(account_id: str, work_id: str | None, amount_micros: int, now: datetime) -> Budget:
    return Budget(derived_id("budget", account_id, work_id or "month"), account_id, work_id, amount_micros, now)


def _covered(budget: Budget, holds: Sequence[Hold]) -> list[Hold]:
    """The open holds that count against a budget, and are stopped by it."""
    return [
        hold
        for hold in holds
        if hold.state is HoldState.GRANTED and hold.group_id is None and budget.work_id in (None, hold.work_id)
    ]


async def _spending(
    connection: Connection, account: Account, budgets: Sequence[Budget], now: datetime
) -> list[Spending]:
    """What counts against each budget of an account, in their order."""
    if not budgets:
        return []
    works = [budget.work_id for budget in budgets if budget.work_id is not None]
    paid = await store.paid_by(connection, account.account_id, works)
    month_micros = await transfers_store.charged_in(connection, account.account_id, month_of(now, account.time_zone))
    holds = await holds_store.open_holds(connection, account.account_id)
    spending = []
    for budget in budgets:
        covered = _covered(budget, holds)
        spending.append(
            Spending(
                month_micros if budget.work_id is None else paid.get(budget.work_id, 0),
                sum(hold.meter.unpaid_micros for hold in covered),
                sum(hold.reserve_micros for hold in covered),
            )
        )
    return spending
