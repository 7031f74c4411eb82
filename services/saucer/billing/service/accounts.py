"""Accounts, their money, and what administrators put right: each correction with a reason, once for each request id."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from zoneinfo import available_timezones

import asyncpg

from saucer.billing import metering
from saucer.billing.domain import Account, AccountState, Hold, HoldState, TopUp
from saucer.billing.ledger import Movement, TransferKind
from saucer.billing.messages import account_message, top_up_message
from saucer.billing.service.journal import Journal
from saucer.billing.service.records import Correction, record
from saucer.billing.store import accounts as store
from saucer.billing.store import holds as holds_store
from saucer.billing.store import transfers as transfers_store
from saucer.billing.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from saucer.lib.ids import derived_id
from saucer.lib.money import in_words
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database

# Names in a machine's list of time zones for what was chosen there, or for no choice.
LOCAL_TIME_ZONES = frozenset({"localtime", "posixrules", "Factory"})


class Accounts:
    """Who pays."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # Once they were read.
        self._time_zones: frozenset[str] = frozenset()

    async def create(
        self, account_id: str, display_name: str, currency: str, time_zone: str, correction: Correction
    ) -> Account:
        """Raises InvalidArgumentError for an unknown time zone, AlreadyExistsError for a request id used otherwise."""
        if time_zone not in await self._known_time_zones():
            raise InvalidArgumentError("TIME_ZONE_UNKNOWN", f"time_zone: {time_zone} is no IANA time zone.")
        async with self._database.transaction() as tx:
            account = Account(
                account_id, display_name, currency, time_zone, AccountState.ACTIVE, 0, 0, tx.now, 0, 0, None
            )
            if not await store.insert_account(tx.connection, account, correction.request_id):
                former = await store.account_of_request(tx.connection, correction.request_id)
                if (former.display_name, former.currency, former.time_zone) != (display_name, currency, time_zone):
                    raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another account.")
                return former
            detail = {"display_name": display_name, "currency": currency, "time_zone": time_zone}
            await record(tx, correction, "CREATE", account_id, account_id, detail)
            await enqueue(
                tx,
                derived_id("AccountCreated", account_id),
                events_pb2.AccountCreated(account=account_message(account)),
                account_id=account_id,
                work_id=None,
                resource_id=account_id,
            )
        return account

    async def _known_time_zones(self) -> frozenset[str]:
        """Those of Python and PostgreSQL alike, for months are counted by both: a name that one of them does not know
        would fail the audit of every account. Each takes a tenth of a second to list them."""
        if not self._time_zones:
            async with self._database.reading() as connection:
                of_postgres = await store.time_zones(connection)
            self._time_zones = (of_postgres & await asyncio.to_thread(available_timezones)) - LOCAL_TIME_ZONES
        return self._time_zones

    async def get(self, account_id: str) -> Account:
        """Raises NotFoundError."""
        current().own("account", account_id, account_id)
        async with self._database.reading() as connection:
            account = await store.get_account(connection, account_id)
        if account is None:
            raise NotFoundError("account", account_id)
        return account

    async def list(self, *, after: str | None, limit: int) -> "list[Account]":
        """By id."""
        async with self._database.reading() as connection:
            return await store.list_accounts(connection, after=after, limit=limit)

    async def top_up(self, account_id: str, reference: str, amount_micros: int) -> TopUp:
        """Adds money, then takes what is unpaid of the account's open holds. The reference is the idempotency key.

        Raises:
            NotFoundError. AlreadyExistsError: the reference was used for another top-up.
            UnavailableError: it is being used at this moment.
        """
        try:
            async with self._database.transaction() as tx:
                former = await transfers_store.top_up_of_reference(tx.connection, reference)
                if former is not None:
                    return _same_top_up(former, account_id, amount_micros)
                holds = await holds_store.lock_open(tx.connection, account_id)
                journal = await Journal.open(tx, account_id, holds)
                movement = Movement(TransferKind.TOP_UP, amount_micros)
                journal.book(movement, derived_id("top-up", reference), reference=reference)
                account = journal.account
                added = TopUp(
                    account_id, reference, amount_micros, account.available_micros, account.booked_at, account.version
                )
                journal.tell_account(
                    derived_id("AccountToppedUp", reference),
                    events_pb2.AccountToppedUp(account=account_message(journal.account), top_up=top_up_message(added)),
                )
                await _came_in(journal, holds)
                await journal.write()
                return added
        except asyncpg.UniqueViolationError as error:
            raise UnavailableError("CONCURRENT_CALL", "The same top-up is being made; repeat the call.") from error

    # Corrections

    async def suspend(self, account_id: str, correction: Correction) -> Account:
        """No new start; what runs or waits is ordered to stop. Raises NotFoundError, AlreadyExistsError."""
        async with self._database.transaction() as tx:
            journal = await Journal.open(tx, account_id)
            if await record(tx, correction, "SUSPEND", account_id, account_id, {}):
                journal.put_account(replace(journal.account, state=AccountState.SUSPENDED))
                _tell(journal, correction)
                await journal.write()
        await self._stop_suspended(account_id)
        return journal.account

    async def _stop_suspended(self, account_id: str) -> None:
        """Orders the stop of all that runs or waits. After the suspension, not with it: holds are locked before their
        account, so that one which was granted while the suspension waited for the account would be missed."""
        async with self._database.transaction() as tx:
            holds = await holds_store.lock_open(tx.connection, account_id)
            journal = await Journal.open(tx, account_id, holds)
            if journal.account.state is AccountState.SUSPENDED:
                for hold in holds:
                    journal.order_stop(hold, events_pb2.STOP_REASON_ACCOUNT_SUSPENDED, hold.charged_ms)
                await journal.write()

    async def sweep_once(self) -> None:
        """Orders the stops that a crash in the midst of a suspension left out. Replicas may do it at once."""
        async with self._database.reading() as connection:
            account_ids = await store.suspended_at_work(connection)
        for account_id in account_ids:
            await self._stop_suspended(account_id)

    async def resume(self, account_id: str, correction: Correction) -> Account:
        """Lifts a suspension; what was stopped is restarted by its owner. Raises NotFoundError, AlreadyExistsError."""
        async with self._database.transaction() as tx:
            journal = await Journal.open(tx, account_id)
            if await record(tx, correction, "RESUME", account_id, account_id, {}):
                journal.put_account(replace(journal.account, state=AccountState.ACTIVE))
                _tell(journal, correction)
                await journal.write()
            return journal.account

    async def adjust(self, account_id: str, amount_micros: int, correction: Correction) -> Account:
        """Gives to an account, or takes from what is available. What is given does what a top-up does.

        Raises:
            FailedPreconditionError: INSUFFICIENT_BALANCE: it would go below zero. NotFoundError.
            AlreadyExistsError: the request id was used for something else.
        """
        async with self._database.transaction() as tx:
            holds = await holds_store.lock_open(tx.connection, account_id)
            journal = await Journal.open(tx, account_id, holds)
            done = await record(tx, correction, "ADJUST", account_id, account_id, {"amount_micros": amount_micros})
            if done is None:
                return journal.account
            short = -amount_micros - journal.account.available_micros
            if short > 0:
                available = in_words(journal.account.available_micros, journal.account.currency)
                raise FailedPreconditionError(
                    "INSUFFICIENT_BALANCE",
                    f"The account has {available} available; a balance never goes below zero.",
                    missing_micros=short,
                )
            kind = TransferKind.CREDIT if amount_micros > 0 else TransferKind.DEBIT
            transfer_id = derived_id("adjustment", correction.request_id)
            journal.book(Movement(kind, abs(amount_micros)), transfer_id, record_id=done.record_id)
            _tell(journal, correction)
            if kind is TransferKind.CREDIT:
                await _came_in(journal, holds)
            else:
                await journal.warn()
            await journal.write()
            return journal.account

    async def refund(self, hold_id: str, amount_micros: int, correction: Correction) -> Hold:
        """Gives back of what a start paid, to the account, where it does what a top-up does.

        Raises:
            FailedPreconditionError: HOLD_NOT_RESOLVED; REFUND_TOO_LARGE: more than it paid, less earlier refunds.
            NotFoundError. AlreadyExistsError: the request id was used for something else.
        """
        async with self._database.transaction() as tx:
            account_id = await holds_store.account_of(tx.connection, hold_id)
            if account_id is None:
                raise NotFoundError("hold", hold_id)
            holds = await holds_store.lock_open(tx.connection, account_id)
            journal = await Journal.open(tx, account_id, holds)
            # Read under the account's lock, without which no hold is closed and nothing refunded.
            hold = await holds_store.get_hold(tx.connection, hold_id)
            assert hold is not None
            done = await record(tx, correction, "REFUND", hold_id, account_id, {"amount_micros": amount_micros})
            if done is None:
                return hold
            if hold.state is not HoldState.RESOLVED:
                raise FailedPreconditionError(
                    "HOLD_NOT_RESOLVED", f"The hold is {hold.state}; only a RESOLVED one is refunded.", state=hold.state
                )
            paid = hold.settled_micros + hold.posted_micros
            left = paid - await transfers_store.refunded(tx.connection, hold_id)
            if amount_micros > left:
                raise FailedPreconditionError(
                    "REFUND_TOO_LARGE",
                    f"Of what the start paid, {in_words(left, hold.currency)} are not refunded yet.",
                    refundable_micros=left,
                )
            transfer_id = derived_id("refund", correction.request_id)
            movement = Movement(TransferKind.REFUND, amount_micros)
            journal.book(movement, transfer_id, hold=hold, record_id=done.record_id)
            _tell(journal, correction)
            await _came_in(journal, holds)
            await journal.write()
            return hold


async def _came_in(journal: Journal, holds: Sequence[Hold]) -> None:
    """What follows once money is booked that came in: what is unpaid is taken, and warnings begin anew.

    Args:
        holds: the account's open ones.
    """
    for hold in holds:
        if hold.meter.unpaid_micros:
            journal.settle(hold, metering.settle(hold.meter, journal.account.available_micros))
    if journal.account.warned_hours is not None:
        journal.put_account(replace(journal.account, warned_hours=None))
    await journal.warn()


def _tell(journal: Journal, correction: Correction) -> None:
    journal.tell_account(
        derived_id("AccountCorrected", correction.request_id),
        events_pb2.AccountCorrected(account=account_message(journal.account), reason=correction.reason),
    )


def _same_top_up(former: TopUp, account_id: str, amount_micros: int) -> TopUp:
    if (former.account_id, former.amount_micros) != (account_id, amount_micros):
        raise AlreadyExistsError("REFERENCE_USED", "The external reference was used for another top-up.")
    return former
