"""Generated histories of the ledger against a model in memory, on real PostgreSQL.

`make test` plays some 2,000 steps, `make soak` 100,000; hypothesis prints what reproduces a failure.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from saucer.billing.domain import HoldRequest
from saucer.billing.service import UNUSED_LIMIT, Correction
from saucer.lib.errors import DomainError
from saucer.lib.ids import new_id
from saucer.local.servers import PostgresServer
from tests.support.ledger import HOUR_MS, PRICE_MICROS, REGION, SPEC, Ledger, open_ledger, request_of
from tests.support.statements import check_account

RESERVE_MS = 600_000
MAX_MICROS = 30 * PRICE_MICROS


@dataclass
class ModelHold:
    request: HoldRequest
    price: int
    amount: int
    made: Any
    state: str
    reason: str = ""
    ms: int = 0
    settled: int = 0
    posted: int = 0
    lost: int = 0
    refunded: int = 0
    used: bool = False
    stopped: bool = False

    @property
    def charge(self) -> int:
        return self.price * self.request.count * (self.ms // 1000) // 3600

    @property
    def unpaid(self) -> int:
        return self.charge - self.settled

    @property
    def due(self) -> bool:
        """What is unpaid reaches the hold less the reserve, within a second."""
        rate = self.price * self.request.count
        most = self.settled + self.amount - rate * (RESERVE_MS // 1000) // 3600
        return self.ms // 1000 >= most * 3600 // rate


@dataclass
class ModelAccount:
    available: int = 0
    frozen: int = 0
    active: bool = True
    holds: list[ModelHold] = field(default_factory=list)

    def settle(self, hold: ModelHold) -> None:
        if hold.unpaid <= self.available:
            self.available -= hold.unpaid
            hold.settled += hold.unpaid
        elif hold.due:
            hold.stopped = True

    def catch_up(self, hold: ModelHold, counter: int) -> None:
        """A counter that comes after its hold was closed."""
        if hold.state in ("RESOLVED", "EXPIRED"):
            hold.ms = counter
            due = hold.unpaid - hold.posted - hold.lost
            taken = min(due, self.available) if hold.state == "RESOLVED" else 0
            hold.settled, hold.lost = hold.settled + taken, hold.lost + due - taken
            self.available -= taken

    def give(self, amount: int) -> None:
        """Money that comes in: it pays what is unpaid."""
        self.available += amount
        for hold in sorted(self.holds, key=lambda hold: (hold.made, hold.request.hold_id)):
            if hold.state == "GRANTED" and hold.unpaid:
                self.settle(hold)


class Histories(RuleBasedStateMachine):
    """Every use case that moves money, in any order, again and again, each through one replica or the other."""

    runner: ClassVar[asyncio.Runner]
    ledger: ClassVar[Ledger]

    accounts = Bundle("accounts")
    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, ModelAccount] = {}
        self.asked: dict[str, ModelHold] = {}
        self.price = self.do(self._present_price())

    def do(self, call: Any) -> Any:
        return self.runner.run(call)

    async def _present_price(self) -> int:
        (spec,) = await self.ledger.billing.offers.list_specs(REGION)
        return spec.price_per_hour_micros

    def refused(self, call: Any) -> str:
        """The reason; empty: it was not."""
        try:
            self.do(call)
        except DomainError as error:
            return error.reason
        return ""

    @initialize(target=accounts)
    def two_accounts(self) -> Any:
        made = [self.do(self.ledger.account(0)) for _ in range(2)]
        self.model |= {account_id: ModelAccount() for account_id in made}
        return multiple(*made)

    @rule(account_id=accounts, amount=st.integers(1, MAX_MICROS), twice=st.booleans())
    def top_up(self, account_id: str, amount: int, twice: bool) -> None:
        reference, account = new_id(), self.model[account_id]
        self.do(self.ledger.billing.accounts.top_up(account_id, reference, amount))
        account.give(amount)
        if twice:
            self.do(self.ledger.second.accounts.top_up(account_id, reference, amount))
            assert (
                self.refused(self.ledger.second.accounts.top_up(account_id, reference, amount + 1)) == "REFERENCE_USED"
            )

    @rule(account_id=accounts, amount=st.integers(-MAX_MICROS, MAX_MICROS).filter(bool), twice=st.booleans())
    def adjust(self, account_id: str, amount: int, twice: bool) -> None:
        correction, account = Correction(new_id(), "because"), self.model[account_id]
        refused = self.refused(self.ledger.billing.accounts.adjust(account_id, amount, correction))
        assert refused == ("INSUFFICIENT_BALANCE" if account.available + amount < 0 else "")
        if amount > 0:
            account.give(amount)
        elif not refused:
            account.available += amount
        if twice and not refused:
            self.do(self.ledger.second.accounts.adjust(account_id, amount, correction))

    @rule(target=holds, account_id=accounts, count=st.integers(1, 3))
    def start(self, account_id: str, count: int) -> str:
        request, account = request_of(account_id, count=count), self.model[account_id]
        amount = 2 * self.price * count
        state = "REFUSED" if not account.active or account.available < amount else "GRANTED"
        reason = "" if state == "GRANTED" else "INSUFFICIENT_BALANCE" if account.active else "ACCOUNT_SUSPENDED"
        assert self.refused(self.ledger.billing.holds.create(request)) == reason
        if state == "GRANTED":
            account.available -= amount
            account.frozen += amount
        hold = ModelHold(request, self.price, amount, self.ledger.clock.time, state, reason)
        account.holds.append(hold)
        self.asked[request.hold_id] = hold
        return request.hold_id

    @rule(hold_id=holds)
    def start_again_with_the_same_id(self, hold_id: str) -> None:
        hold = self.asked[hold_id]
        expected = {"EXPIRED": "HOLD_EXPIRED", "REFUSED": hold.reason}.get(hold.state, "")
        assert self.refused(self.ledger.second.holds.create(hold.request)) == expected
        other = replace(hold.request, count=hold.request.count % 3 + 1)
        assert self.refused(self.ledger.second.holds.create(other)) == "HOLD_ID_USED"

    @rule(account_id=accounts)
    def give_up_before_the_hold_is_asked_for(self, account_id: str) -> None:
        request = request_of(account_id)
        self.do(self.ledger.billing.holds.give_up(request, "EUR", 0))
        assert self.refused(self.ledger.second.holds.create(request)) == "HOLD_BURIED"

    @rule(hold_id=holds, ms=st.integers(0, 4 * HOUR_MS), late=st.booleans(), running=st.booleans())
    def advance(self, hold_id: str, ms: int, late: bool, running: bool) -> None:
        hold = self.asked[hold_id]
        counter = ms if late else hold.ms + ms // 2
        self.do(self.ledger.second.holds.advance(hold_id, counter, running=running))
        account = self.model[hold.request.account_id]
        if hold.state == "GRANTED" and counter > hold.ms:
            before, hold.ms = hold.ms, counter
            if counter // HOUR_MS > before // HOUR_MS or hold.due:
                account.settle(hold)
        elif counter > hold.ms:
            account.catch_up(hold, counter)

    @rule(hold_id=holds, ms=st.integers(0, HOUR_MS), given_up=st.booleans())
    def end(self, hold_id: str, ms: int, given_up: bool) -> None:
        hold = self.asked[hold_id]
        counter = hold.ms + ms
        if given_up:
            self.do(self.ledger.billing.holds.give_up(hold.request, "EUR", counter))
        else:
            self.do(self.ledger.billing.holds.resolve(hold_id, counter))
        if hold.state == "GRANTED":
            account, hold.ms, hold.state = self.model[hold.request.account_id], counter, "RESOLVED"
            hold.posted = min(hold.unpaid, hold.amount)
            excess = hold.unpaid - hold.posted
            taken = min(excess, account.available)
            hold.settled, hold.lost = hold.settled + taken, excess - taken
            account.available += hold.amount - hold.posted - taken
            account.frozen -= hold.amount
        else:
            self.model[hold.request.account_id].catch_up(hold, counter)

    @rule(hold_id=holds, share=st.integers(1, 120), twice=st.booleans())
    def refund(self, hold_id: str, share: int, twice: bool) -> None:
        hold, correction = self.asked[hold_id], Correction(new_id(), "because")
        amount = max(1, (hold.settled + hold.posted) * share // 100)
        refused = self.refused(self.ledger.billing.accounts.refund(hold_id, amount, correction))
        if hold.state != "RESOLVED":
            assert refused == "HOLD_NOT_RESOLVED"
            return
        too_large = amount > hold.settled + hold.posted - hold.refunded
        assert refused == ("REFUND_TOO_LARGE" if too_large else "")
        if not refused:
            hold.refunded += amount
            self.model[hold.request.account_id].give(amount)
            if twice:
                self.do(self.ledger.second.accounts.refund(hold_id, amount, correction))

    @rule(hold_id=holds)
    def use(self, hold_id: str) -> None:
        hold = self.asked[hold_id]
        self.do(self.ledger.billing.holds.use(hold_id, hold.request.work_id, 1))
        hold.used = hold.used or hold.state == "GRANTED"

    @rule(minutes=st.integers(0, 90))
    def time_passes(self, minutes: int) -> None:
        self.ledger.clock.advance(timedelta(minutes=minutes))

    @rule()
    def sweep(self) -> None:
        # Other histories have left holds, too.
        while self.do(self.ledger.billing.sweep_once()):
            pass
        for hold in self.asked.values():
            old = hold.made < self.ledger.clock.time - UNUSED_LIMIT
            if hold.state == "GRANTED" and old and not hold.used and not hold.ms:
                hold.state = "EXPIRED"
                account = self.model[hold.request.account_id]
                account.available += hold.amount
                account.frozen -= hold.amount

    @rule(price=st.integers(1, 3 * PRICE_MICROS))
    def price_changes(self, price: int) -> None:
        self.ledger.clock.advance(timedelta(microseconds=1))
        self.do(self.ledger.billing.offers.set_price(REGION, SPEC, price, None, Correction(new_id(), "because")))
        self.price = price

    @rule(account_id=accounts, active=st.booleans())
    def suspend_or_resume(self, account_id: str, active: bool) -> None:
        call = self.ledger.billing.accounts.resume if active else self.ledger.billing.accounts.suspend
        self.do(call(account_id, Correction(new_id(), "because")))
        self.model[account_id].active = active
        for hold in self.asked.values():
            if not active and hold.request.account_id == account_id and hold.state == "GRANTED":
                hold.stopped = True

    @invariant()
    def balances_are_the_models(self) -> None:
        for account_id, account in self.model.items():
            assert self.do(self.ledger.balance(account_id)) == (account.available, account.frozen)
            assert account.available >= 0

    def teardown(self) -> None:
        for hold in self.asked.values():
            found = self.do(self.ledger.hold(hold.request))
            assert (found.state, found.charged_ms, found.settled_micros, found.posted_micros, found.lost_micros) == (
                hold.state,
                hold.ms,
                hold.settled,
                hold.posted,
                hold.lost,
            )
            assert found.stop_ordered == hold.stopped
        for account_id in self.model:
            self.do(check_account(self.ledger.billing, account_id))
        audit = self.do(self.ledger.audit())
        assert not audit.findings


def play(postgres: PostgresServer, *, histories: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        Histories.runner = runner
        Histories.ledger = runner.run(open_ledger(stack, runner.run(postgres.database(f"test_{uuid4().hex}"))))
        try:
            run_state_machine_as_test(
                Histories,
                settings=settings(
                    max_examples=histories,
                    stateful_step_count=steps,
                    deadline=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())


def test_any_history_of_the_ledger_is_the_models(postgres: PostgresServer) -> None:
    play(postgres, histories=40, steps=50)


@pytest.mark.soak
def test_any_long_history_of_the_ledger_is_the_models(postgres: PostgresServer) -> None:
    play(postgres, histories=1000, steps=100)
