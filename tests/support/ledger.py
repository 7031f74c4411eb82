"""Billing's use cases on real PostgreSQL, without gRPC and NATS, at a time that the test sets; audited after each."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from saucer.billing.domain import Audit, Hold, HoldRequest, Region, Spec, WorkKind
from saucer.billing.service import Billing, Correction
from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.clock import ManualClock
from saucer.lib.errors import DomainError
from saucer.lib.ids import new_id
from saucer.lib.postgres import Database, connect, migrate
from tests.support.events import until
from tests.support.servers import NewDatabase
from tests.support.statements import check_account

REGION, SPEC = "local", "cpu-2"
PRICE_MICROS = 3_600_000
HOLD_MICROS = 2 * PRICE_MICROS
HOUR_MS = 3_600_000
START = datetime(2026, 1, 1, tzinfo=UTC)


# In `make test`, and in `make soak`.
RACES = pytest.mark.parametrize("races", [50, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])


@dataclass
class Ledger:
    """Two replicas of billing on one database."""

    database: Database
    billing: Billing
    second: Billing
    clock: ManualClock = field(default_factory=lambda: ManualClock(START))

    async def account(self, balance_micros: int, time_zone: str = "UTC") -> str:
        account = await self.billing.accounts.create(new_id(), "A", "EUR", time_zone, correction())
        if balance_micros:
            await self.billing.accounts.top_up(account.account_id, new_id(), balance_micros)
        return account.account_id

    async def balance(self, account_id: str) -> tuple[int, int]:
        account = await self.billing.accounts.get(account_id)
        return account.available_micros, account.frozen_micros

    async def hold(self, request: HoldRequest) -> Hold:
        """As it is now, whatever its state."""
        statements, _ = await self.billing.statements.list(
            request.account_id, work_id=request.work_id, after=None, limit=100
        )
        (found,) = [statement.hold for statement in statements if statement.hold.hold_id == request.hold_id]
        return found

    async def audit(self) -> Audit:
        return await self.billing.statements.audit()

    async def check_statements(self) -> int:
        """Works every line of every account by hand; how many there are."""
        accounts = await self.billing.accounts.list(after=None, limit=1_000_000)
        return sum([await check_account(self.billing, account.account_id) for account in accounts])

    async def until_some_wait_for_a_lock(self, least: int = 1) -> None:
        """Until so many statements of this database wait for what other transactions hold."""

        async def waits() -> bool:
            async with self.database.reading() as connection:
                waiting: int = await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            return waiting >= least

        await until(waits)


def request_of(
    account_id: str,
    *,
    work_id: str | None = None,
    start_number: int = 1,
    count: int = 1,
    group_id: str | None = None,
) -> HoldRequest:
    work_id = work_id or new_id()
    return HoldRequest(
        f"{work_id}-{start_number}", account_id, WorkKind.TASK, work_id, start_number, REGION, SPEC, count, group_id
    )


def correction(reason: str = "a test") -> Correction:
    return Correction(new_id(), reason)


async def refusal(call: Awaitable[Any]) -> DomainError:
    """The typed error that a call ends with."""
    with pytest.raises(DomainError) as refused:
        await call
    return refused.value


async def open_ledger(stack: AsyncExitStack, url: str) -> Ledger:
    """With one spec on offer; closed with the stack."""
    set_current(Principal("tester", Role.ADMINISTRATOR, None, "t", float("inf")))
    clock = ManualClock(START)
    databases = []
    for _ in range(2):
        database = await connect(url, clock)
        stack.push_async_callback(database.pool.close)
        databases.append(database)
    await migrate(databases[0], "saucer.lib", "saucer.billing")
    ledger = Ledger(databases[0], Billing(databases[0]), Billing(databases[1]), clock)
    await ledger.billing.offers.create_region(Region(REGION, "Here"), correction())
    await ledger.billing.offers.create_spec(Spec(REGION, SPEC, "2 cores", 0, 2, 4, PRICE_MICROS, "EUR"), correction())
    return ledger


@pytest.fixture
async def ledger(new_database: NewDatabase) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        ledger = await open_ledger(stack, await new_database())
        yield ledger
        await ledger.check_statements()
        audit = await ledger.audit()
        assert not audit.findings
        assert audit.ledger_sum_micros == 0


async def granted(ledger: Ledger, balance_micros: int = HOLD_MICROS, count: int = 1) -> HoldRequest:
    request = request_of(await ledger.account(balance_micros), count=count)
    await ledger.billing.holds.create(request)
    return request
