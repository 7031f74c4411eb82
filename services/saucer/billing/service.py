"""The use cases of billing, and the only place that opens its transactions.

Locks are taken in one order, hold before account, so that no two transactions wait for each other.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import asyncpg
import structlog
from google.protobuf.message import Message
from prometheus_client import Counter

from saucer.billing import metering, store
from saucer.billing.coalescing import Coalescer
from saucer.billing.domain import (
    Account,
    AccountState,
    Audit,
    ChargeStatus,
    Hold,
    HoldRequest,
    HoldState,
    MonthlyStatement,
    Quote,
    Record,
    Refusal,
    Spec,
    Statement,
    TopUp,
    month,
)
from saucer.billing.ledger import Movement, TransferKind
from saucer.billing.messages import account_message, hold_message, top_up_message
from saucer.billing.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.errors import (
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from saucer.lib.ids import derived_id
from saucer.lib.outbox import Outgoing, enqueue, enqueue_all
from saucer.lib.postgres import Connection, Database, Transaction

# A price may begin this long before the call that sets it, for clocks that differ.
PRICE_CLOCK_SKEW = timedelta(minutes=1)
# A hold whose use (TaskQueued, DeploymentQueued) billing has not consumed by then goes back: its owner gives up after a
# quarter of an hour, the rest is for events that are late.
UNUSED_LIMIT = timedelta(hours=1)
SWEEP_S = 5.0
SWEEP_BATCH = 100
# A batch of holds that met another replica's making one of them is tried again this often.
HOLD_ATTEMPTS = 3

log = structlog.get_logger()
lost_micros_total = Counter("saucer_billing_lost_micros_total", "Charges that neither hold nor balance covered")
holds_total = Counter("saucer_billing_holds_total", "Holds asked for, by answer", ["state"])


@dataclass(frozen=True)
class Correction:
    """An administrator's call: its id, and why it is made. Its author is the bearer of the token."""

    request_id: str
    reason: str


class Billing:
    """Accounts, prices, holds and the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._holds: Coalescer[str, HoldRequest, Hold] = Coalescer(self._create_holds)

    # Accounts

    async def create_account(
        self, request_id: str, account_id: str, display_name: str, currency: str, time_zone: str
    ) -> Account:
        """Raises InvalidArgumentError for an unknown time zone, AlreadyExistsError for a request id used otherwise."""
        try:
            ZoneInfo(time_zone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise InvalidArgumentError("TIME_ZONE_UNKNOWN", f"time_zone: {time_zone} is no IANA time zone.") from error
        async with self._database.transaction() as tx:
            account = Account(
                account_id, display_name, currency, time_zone, AccountState.ACTIVE, 0, 0, tx.now, 0, 0, None
            )
            if not await store.insert_account(tx.connection, account, request_id):
                former = await store.account_of_request(tx.connection, request_id)
                if (former.display_name, former.currency, former.time_zone) != (display_name, currency, time_zone):
                    raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another account.")
                return former
            message = events_pb2.AccountCreated(account=account_message(account))
            await enqueue(
                tx,
                derived_id("AccountCreated", account_id),
                message,
                account_id=account_id,
                work_id=None,
                resource_id=account_id,
            )
        return account

    async def get_account(self, account_id: str) -> Account:
        """Raises NotFoundError."""
        current().own("account", account_id, account_id)
        async with self._database.reading() as connection:
            return await _account(connection, account_id)

    async def list_accounts(self, *, after: str | None, limit: int) -> list[Account]:
        """By id."""
        async with self._database.reading() as connection:
            return await store.list_accounts(connection, after=after, limit=limit)

    async def top_up(self, account_id: str, reference: str, amount_micros: int) -> TopUp:
        """Adds money, then takes what is unpaid of the account's open holds. The reference is the idempotency key."""
        try:
            async with self._database.transaction() as tx:
                former = await store.top_up_of_reference(tx.connection, reference)
                if former is not None:
                    return _same_top_up(former, account_id, amount_micros)
                holds = await store.open_holds(tx.connection, account_id)
                await _account(tx.connection, account_id)
                account = await store.book(
                    tx.connection,
                    account_id,
                    Movement(TransferKind.TOP_UP, amount_micros),
                    derived_id("top-up", reference),
                    tx.now,
                    reference=reference,
                )
                top_up = TopUp(account_id, reference, amount_micros, account.available_micros, tx.now)
                await enqueue(
                    tx,
                    derived_id("AccountToppedUp", reference),
                    events_pb2.AccountToppedUp(account=account_message(account), top_up=top_up_message(top_up)),
                    account_id=account_id,
                    work_id=None,
                    resource_id=account_id,
                )
                for hold in holds:
                    if hold.meter.unpaid_micros:
                        account = await self._settle(tx, hold, metering.settle(hold.meter, account.available_micros))
                if account.warned_hours is not None:
                    account = await store.set_warned(tx.connection, account_id, None)
                await _warn(tx, account)
                return replace(top_up, available_micros=account.available_micros)
        except asyncpg.UniqueViolationError as error:
            raise UnavailableError("CONCURRENT_CALL", "The same top-up is being made; repeat the call.") from error

    # Offers

    async def create_region(self, region_id: str, display_name: str) -> None:
        """The same region twice changes nothing."""
        async with self._database.transaction() as tx:
            await store.insert_region(tx.connection, region_id, display_name)

    async def create_spec(self, spec: Spec) -> Spec:
        """With its first price. Raises NotFoundError for the region, AlreadyExistsError for another spec's id."""
        async with self._database.transaction() as tx:
            if not await store.region_exists(tx.connection, spec.region_id):
                raise NotFoundError("region", spec.region_id)
            if not await store.insert_spec(tx.connection, spec):
                former = await store.list_specs(tx.connection, tx.now, region_id=spec.region_id, spec_id=spec.spec_id)
                if former != [spec]:
                    raise AlreadyExistsError("SPEC_EXISTS", f"There is another spec {spec.spec_id}; set its price.")
                return spec
            await store.insert_price(tx.connection, spec.region_id, spec.spec_id, tx.now, spec.price_per_hour_micros)
        return spec

    async def set_price(
        self, region_id: str, spec_id: str, price_per_hour_micros: int, starts_at: datetime | None
    ) -> Spec:
        """Raises InvalidArgumentError for a start in the past, NotFoundError, AlreadyExistsError."""
        async with self._database.transaction() as tx:
            start = starts_at or tx.now
            if start < tx.now - PRICE_CLOCK_SKEW:
                raise InvalidArgumentError("START_IN_THE_PAST", "start_time: a price cannot begin in the past.")
            spec = await _spec(tx, region_id, spec_id)
            if not await store.insert_price(tx.connection, region_id, spec_id, start, price_per_hour_micros):
                raise AlreadyExistsError("PRICE_EXISTS", "There is a price from that very time already.")
            return replace(spec, price_per_hour_micros=price_per_hour_micros) if start <= tx.now else spec

    async def list_specs(self, region_id: str | None) -> list[Spec]:
        """At the price of now."""
        async with self._database.transaction() as tx:
            return await store.list_specs(tx.connection, tx.now, region_id=region_id)

    async def quote(self, account_id: str, region_id: str, spec_id: str, count: int) -> Quote:
        """What a start would freeze now. Raises NotFoundError, InvalidArgumentError for a count above the spec's."""
        async with self._database.transaction() as tx:
            account = await _account(tx.connection, account_id)
            spec = await _spec(tx, region_id, spec_id)
            _check_count(spec, count)
            amount = metering.hold_micros(spec.price_per_hour_micros, count)
            return Quote(spec, amount, account.available_micros)

    # Holds

    async def create_hold(self, request: HoldRequest) -> Hold:
        """Freezes two hours, once for each hold id.

        Calls for one account that come while another is in flight go to the database together (coalescing.py).

        Raises:
            FailedPreconditionError: INSUFFICIENT_BALANCE with missing_micros, ACCOUNT_SUSPENDED, CURRENCY_MISMATCH,
                HOLD_BURIED, HOLD_EXPIRED: nothing is frozen, and a retry gets the same.
            AlreadyExistsError: the id was used for something else.
            InvalidArgumentError: the id is not that of this start, or the count is above the spec's.
            NotFoundError: account or spec.
        """
        if request.hold_id != f"{request.work_id}-{request.start_number}":
            raise InvalidArgumentError("HOLD_ID_INVALID", "hold_id: it is <work id>-<start number>.")
        hold = await self._holds(request.account_id, request)
        if not hold.answers(request):
            raise AlreadyExistsError("HOLD_ID_USED", f"The hold {hold.hold_id} was made for something else.")
        if hold.state is HoldState.BURIED:
            raise FailedPreconditionError("HOLD_BURIED", f"The hold {hold.hold_id} was given up; start anew.")
        if hold.state is HoldState.EXPIRED:
            raise FailedPreconditionError("HOLD_EXPIRED", f"The hold {hold.hold_id} was not used in time; start anew.")
        if hold.refusal is not None:
            raise _refusal(hold, hold.refusal)
        return hold

    async def _create_holds(self, account_id: str, requests: Sequence[HoldRequest]) -> Sequence[Hold | Exception]:
        for _ in range(HOLD_ATTEMPTS):
            try:
                return await self._create_holds_once(account_id, requests)
            except asyncpg.UniqueViolationError:
                # Another process has made one of them in between: the next look finds it.
                continue
        raise UnavailableError("CONCURRENT_CALL", "The same hold is being made; repeat the call.")

    async def _create_holds_once(self, account_id: str, requests: Sequence[HoldRequest]) -> Sequence[Hold | Exception]:
        async with self._database.transaction() as tx:
            offers = {(spec.region_id, spec.spec_id): spec for spec in await store.list_specs(tx.connection, tx.now)}
            asked: dict[str, tuple[HoldRequest, Spec, int, str]] = {}
            errors: dict[HoldRequest, Exception] = {}
            for request in requests:
                try:
                    spec = _offered(offers, request)
                except DomainError as error:
                    errors[request] = error
                    continue
                amount = metering.hold_micros(spec.price_per_hour_micros, request.count)
                asked.setdefault(request.hold_id, (request, spec, amount, derived_id("hold", request.hold_id)))
            made = await store.insert_holds(tx.connection, account_id, list(asked.values()), tx.now)
            granted = [hold for hold in made if hold.state is HoldState.GRANTED]
            await enqueue_all(
                tx, [_outgoing(hold, events_pb2.HoldGranted(hold=hold_message(hold))) for hold in granted]
            )
            holds = {hold.hold_id: hold for hold in made}
            former = [request.hold_id for request in requests if request.hold_id not in holds]
            if former:
                holds |= {hold.hold_id: hold for hold in await store.get_holds(tx.connection, former)}
        for hold in made:
            holds_total.labels(hold.state).inc()
        absent = NotFoundError("account", account_id)
        return [holds.get(request.hold_id) or errors.get(request) or absent for request in requests]

    async def advance(self, hold_id: str, charged_ms: int, *, running: bool) -> None:
        """Takes a counter; a smaller one than was seen changes nothing but whether the work is running.

        Raises NotFoundError: the event's hold is not here (yet).
        """
        async with self._database.transaction() as tx:
            hold = await _hold(tx, hold_id)
            if hold.state is not HoldState.GRANTED:
                return
            charged_ms = max(charged_ms, hold.charged_ms)
            account = await store.get_account(tx.connection, hold.account_id, lock=True)
            assert account is not None
            plan = metering.advance(hold.meter, charged_ms, account.available_micros)
            status = hold.charge_status
            if status is not ChargeStatus.STOPPED_FOR_ARREARS:
                status = ChargeStatus.BILLING if running else ChargeStatus.NOT_BILLING
            if charged_ms == hold.charged_ms and status is hold.charge_status:
                return
            begins = status is ChargeStatus.BILLING is not hold.charge_status
            hold = await store.update_hold(tx.connection, replace(hold, charged_ms=charged_ms, charge_status=status))
            account = await self._settle(tx, hold, plan)
            if begins or plan.settle_micros or plan.short:
                await _warn(tx, account)

    async def _settle(self, tx: Transaction, hold: Hold, plan: metering.Advance) -> Account:
        if plan.settle_micros:
            await store.book(
                tx.connection,
                hold.account_id,
                Movement(TransferKind.SETTLEMENT, plan.settle_micros),
                derived_id("settlement", hold.hold_id, hold.charged_ms),
                tx.now,
                hold=hold,
            )
            hold = await store.update_hold(
                tx.connection, replace(hold, settled_micros=hold.settled_micros + plan.settle_micros)
            )
            await _publish(
                tx, hold, events_pb2.ChargeSettled(hold=hold_message(hold), amount_micros=plan.settle_micros)
            )
        if plan.short:
            await _publish(
                tx, hold, events_pb2.FundsShort(hold=hold_message(hold), unpaid_micros=hold.meter.unpaid_micros)
            )
        if plan.stop and not hold.stop_ordered:
            hold = replace(hold, charge_status=ChargeStatus.STOPPED_FOR_ARREARS)
            await _order_stop(tx, hold, events_pb2.STOP_REASON_ARREARS, hold.meter.stop_at_ms)
        return await _account(tx.connection, hold.account_id)

    async def resolve(self, hold_id: str, charged_ms: int) -> None:
        """Closes a hold at the end of its work: posts, takes, loses, releases. The second time changes nothing."""
        async with self._database.transaction() as tx:
            hold = await _hold(tx, hold_id)
            if hold.state is not HoldState.GRANTED:
                return
            hold = replace(hold, charged_ms=max(charged_ms, hold.charged_ms))
            account = await store.get_account(tx.connection, hold.account_id, lock=True)
            assert account is not None
            resolution = metering.resolve(hold.meter, account.available_micros)
            for movement in resolution.movements():
                await store.book(
                    tx.connection,
                    hold.account_id,
                    movement,
                    derived_id("resolution", movement.kind, hold.hold_id),
                    tx.now,
                    hold=hold,
                )
            hold = await store.update_hold(
                tx.connection,
                replace(
                    hold,
                    state=HoldState.RESOLVED,
                    charge_status=hold.charge_status
                    if hold.charge_status is ChargeStatus.STOPPED_FOR_ARREARS
                    else ChargeStatus.NOT_BILLING,
                    settled_micros=hold.settled_micros + resolution.settled_micros,
                    posted_micros=resolution.posted_micros,
                    released_micros=resolution.released_micros,
                    lost_micros=resolution.lost_micros,
                    resolved_at=tx.now,
                ),
            )
            await _publish(tx, hold, events_pb2.HoldResolved(hold=hold_message(hold)))
        if resolution.lost_micros:
            log.error("platform_loss", hold_id=hold_id, lost_micros=resolution.lost_micros)
            lost_micros_total.inc(resolution.lost_micros)

    async def use(self, hold_id: str, work_id: str, start_number: int) -> None:
        """The event that uses a hold is here: it can no longer expire, and earlier starts of its work are over.

        An expired one is ordered to stop before anything is charged. Raises NotFoundError.
        """
        async with self._database.transaction() as tx:
            hold = await _hold(tx, hold_id)
            if hold.state is HoldState.EXPIRED:
                await _publish(
                    tx,
                    hold,
                    events_pb2.StopOrdered(hold=hold_message(hold), reason=events_pb2.STOP_REASON_HOLD_EXPIRED),
                )
            elif hold.state is HoldState.GRANTED and not hold.used:
                await store.update_hold(tx.connection, replace(hold, used=True))
            former = await store.open_former_holds(tx.connection, work_id, start_number)
        for former_id in former:
            # Their last event was lost. What billing has consumed of their counters is all that can be charged.
            await self.resolve(former_id, 0)

    async def expire(self, hold_id: str) -> None:
        """Gives back a hold that nothing has used. Any other state changes nothing."""
        async with self._database.transaction() as tx:
            hold = await _hold(tx, hold_id)
            if hold.state is not HoldState.GRANTED or hold.used or hold.charged_ms:
                return
            for movement in metering.expire(hold.meter):
                await store.book(
                    tx.connection, hold.account_id, movement, derived_id("expiry", hold_id), tx.now, hold=hold
                )
            expired = replace(hold, state=HoldState.EXPIRED, released_micros=hold.amount_micros, resolved_at=tx.now)
            hold = await store.update_hold(tx.connection, expired)
            await _publish(tx, hold, events_pb2.HoldResolved(hold=hold_message(hold)))

    async def sweep(self) -> None:
        """Until cancelled: gives back what nobody used in time."""
        while True:
            try:
                if await self.sweep_once() == SWEEP_BATCH:
                    continue
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
                log.warning("sweep_failed", error=repr(error))
            await asyncio.sleep(SWEEP_S)

    async def sweep_once(self) -> int:
        """One round; several replicas may make it at once. How many holds it looked at, SWEEP_BATCH at most."""
        async with self._database.transaction() as tx:
            unused = await store.unused_holds(tx.connection, tx.now - UNUSED_LIMIT, SWEEP_BATCH)
        for hold_id in unused:
            await self.expire(hold_id)
        return len(unused)

    # Corrections: each in the name of an administrator, with a reason, once for each request id

    async def suspend_account(self, account_id: str, correction: Correction) -> Account:
        """No new start; what runs is ordered to stop with its checkpoint. Raises NotFoundError, AlreadyExistsError."""
        async with self._database.transaction() as tx:
            holds = await store.open_holds(tx.connection, account_id)
            account = await _locked(tx, account_id)
            if not await _record(tx, correction, "SUSPEND", account_id, account_id, {}):
                return account
            account = await store.set_account_state(tx.connection, account_id, AccountState.SUSPENDED)
            for hold in holds:
                if not hold.stop_ordered:
                    await _order_stop(tx, hold, events_pb2.STOP_REASON_ACCOUNT_SUSPENDED, hold.charged_ms)
            await _publish_account(tx, account, correction)
        return account

    async def resume_account(self, account_id: str, correction: Correction) -> Account:
        """Lifts a suspension; what was stopped is restarted by its owner. Raises NotFoundError, AlreadyExistsError."""
        async with self._database.transaction() as tx:
            account = await _locked(tx, account_id)
            if not await _record(tx, correction, "RESUME", account_id, account_id, {}):
                return account
            account = await store.set_account_state(tx.connection, account_id, AccountState.ACTIVE)
            await _publish_account(tx, account, correction)
        return account

    async def adjust(self, account_id: str, amount_micros: int, correction: Correction) -> Account:
        """Gives to an account, or takes from what is available.

        Raises:
            FailedPreconditionError: INSUFFICIENT_BALANCE: it would go below zero. NotFoundError.
            AlreadyExistsError: the request id was used for something else.
        """
        detail = {"amount_micros": amount_micros}
        async with self._database.transaction() as tx:
            account = await _locked(tx, account_id)
            record = await _record(tx, correction, "ADJUST", account_id, account_id, detail)
            if record is None:
                return account
            if account.available_micros + amount_micros < 0:
                raise FailedPreconditionError(
                    "INSUFFICIENT_BALANCE",
                    f"The account has {account.available_micros} micros available; a balance never goes below zero.",
                    missing_micros=-amount_micros - account.available_micros,
                )
            kind = TransferKind.CREDIT if amount_micros > 0 else TransferKind.DEBIT
            account = await store.book(
                tx.connection,
                account_id,
                Movement(kind, abs(amount_micros)),
                derived_id("adjustment", correction.request_id),
                tx.now,
                record_id=record.record_id,
            )
            await _publish_account(tx, account, correction)
        return account

    async def refund(self, hold_id: str, amount_micros: int, correction: Correction) -> Hold:
        """Gives back of what a start paid.

        Raises:
            FailedPreconditionError: HOLD_NOT_RESOLVED; REFUND_TOO_LARGE: more than it paid, less earlier refunds.
            NotFoundError. AlreadyExistsError: the request id was used for something else.
        """
        detail = {"amount_micros": amount_micros}
        async with self._database.transaction() as tx:
            hold = await _hold(tx, hold_id)
            record = await _record(tx, correction, "REFUND", hold_id, hold.account_id, detail)
            if record is None:
                return hold
            if hold.state is not HoldState.RESOLVED:
                raise FailedPreconditionError(
                    "HOLD_NOT_RESOLVED", f"The hold is {hold.state}; only a RESOLVED one is refunded.", state=hold.state
                )
            left = hold.settled_micros + hold.posted_micros - await store.refunded(tx.connection, hold_id)
            if amount_micros > left:
                raise FailedPreconditionError(
                    "REFUND_TOO_LARGE",
                    f"Of what the start paid, {left} micros are not refunded yet.",
                    refundable_micros=left,
                )
            account = await store.book(
                tx.connection,
                hold.account_id,
                Movement(TransferKind.REFUND, amount_micros),
                derived_id("refund", correction.request_id),
                tx.now,
                hold=hold,
                record_id=record.record_id,
            )
            await _publish_account(tx, account, correction)
        return hold

    async def list_records(
        self, *, account_id: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> list[Record]:
        """Who did what, newest first."""
        async with self._database.reading() as connection:
            return await store.list_records(connection, account_id=account_id, after=after, limit=limit)

    async def give_up(self, request: HoldRequest, currency: str, charged_ms: int) -> None:
        """At the end of work whose hold may be open, or may still be asked for: resolves it, or buries its id."""
        async with self._database.transaction() as tx:
            hold = await store.get_hold(tx.connection, request.hold_id)
            if hold is None:
                await store.bury_hold(tx.connection, request, currency, tx.now)
        if hold is not None:
            await self.resolve(request.hold_id, charged_ms)

    # Reading

    async def list_statements(
        self, account_id: str, *, work_id: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> list[Statement]:
        """Newest first. Raises NotFoundError for another account."""
        current().own("account", account_id, account_id)
        async with self._database.reading() as connection:
            await _account(connection, account_id)
            holds = await store.list_holds(connection, account_id, work_id=work_id, after=after, limit=limit)
            transfers = await store.transfers_of(connection, [hold.hold_id for hold in holds])
            return [Statement(hold, tuple(transfers[hold.hold_id])) for hold in holds]

    async def monthly_statement(
        self, account_id: str, month_name: str, *, after_version: int | None, limit: int
    ) -> MonthlyStatement:
        """A page of what was booked for an account in a month of its time zone, with the balances before and after.

        Args:
            month_name: like 2026-11; empty: the present one.
            after_version: of the account, of the last line seen; None: from the month's first line.

        Raises InvalidArgumentError for no such month, NotFoundError.
        """
        current().own("account", account_id, account_id)
        async with (
            self._database.reading() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            account = await _account(connection, account_id)
            now = await self._database.clock.now(connection)
            try:
                period = month(month_name or f"{now.astimezone(ZoneInfo(account.time_zone)):%Y-%m}", account.time_zone)
            except ValueError as error:
                raise InvalidArgumentError("MONTH_INVALID", "month: a month is written like 2026-11.") from error
            opening = await store.balance_before(connection, account_id, period, version=after_version)
            transfers = await store.transfers_in(
                connection, account_id, period, after_version=after_version or 0, limit=limit
            )
            last = transfers[-1] if transfers else None
            closing = (last.available_micros, last.frozen_micros) if last else opening
            charged_micros = await store.charged_in(connection, account_id, period)
            return MonthlyStatement(account, period, *opening, tuple(transfers), *closing, charged_micros)

    async def audit(self) -> Audit:
        """Every invariant, in one snapshot."""
        async with (
            self._database.reading() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await store.audit(connection)


async def _account(connection: Connection, account_id: str) -> Account:
    account = await store.get_account(connection, account_id)
    if account is None:
        raise NotFoundError("account", account_id)
    return account


async def _spec(tx: Transaction, region_id: str, spec_id: str) -> Spec:
    specs = await store.list_specs(tx.connection, tx.now, region_id=region_id, spec_id=spec_id)
    if not specs:
        raise NotFoundError("spec", f"{region_id}/{spec_id}")
    return specs[0]


async def _hold(tx: Transaction, hold_id: str) -> Hold:
    hold = await store.get_hold(tx.connection, hold_id, lock=True)
    if hold is None:
        raise NotFoundError("hold", hold_id)
    return hold


def _offered(offers: Mapping[tuple[str, str], Spec], request: HoldRequest) -> Spec:
    spec = offers.get((request.region_id, request.spec_id))
    if spec is None:
        raise NotFoundError("spec", f"{request.region_id}/{request.spec_id}")
    _check_count(spec, request.count)
    return spec


def _check_count(spec: Spec, count: int) -> None:
    if count > spec.max_count:
        raise InvalidArgumentError(
            "COUNT_TOO_LARGE", f"count: {spec.spec_id} has at most {spec.max_count} on one machine, not {count}."
        )


def _same_top_up(former: TopUp, account_id: str, amount_micros: int) -> TopUp:
    if (former.account_id, former.amount_micros) != (account_id, amount_micros):
        raise AlreadyExistsError("REFERENCE_USED", "The external reference was used for another top-up.")
    return former


def _refusal(hold: Hold, refusal: Refusal) -> FailedPreconditionError:
    if refusal is Refusal.ACCOUNT_SUSPENDED:
        return FailedPreconditionError(refusal, "The account is suspended; nothing new may start.")
    if refusal is Refusal.CURRENCY_MISMATCH:
        return FailedPreconditionError(refusal, f"The spec is priced in {hold.currency}, and the account is not.")
    return FailedPreconditionError(
        refusal,
        f"Two hours cost {_money(hold.amount_micros, hold.currency)}, and {_money(hold.missing_micros, hold.currency)} "
        "are missing; top up first.",
        missing_micros=hold.missing_micros,
        hold_micros=hold.amount_micros,
        currency=hold.currency,
    )


def _money(micros: int, currency: str) -> str:
    """For a sentence: 7.20 EUR, exact."""
    units, rest = divmod(micros, 1_000_000)
    decimals = f"{rest:06d}"
    return f"{units}.{decimals[:2]}{decimals[2:].rstrip('0')} {currency}"


async def _locked(tx: Transaction, account_id: str) -> Account:
    account = await store.get_account(tx.connection, account_id, lock=True)
    if account is None:
        raise NotFoundError("account", account_id)
    return account


async def _record(
    tx: Transaction, correction: Correction, action: str, subject: str, account_id: str | None, detail: dict[str, int]
) -> Record | None:
    """Writes who does what and why; None if the same call has done it already."""
    record = Record(
        record_id=derived_id("record", correction.request_id),
        request_id=correction.request_id,
        action=action,
        subject=subject,
        account_id=account_id,
        author=current().subject,
        reason=correction.reason,
        detail=json.dumps(detail),
        created_at=tx.now,
    )
    if await store.insert_record(tx.connection, record):
        return record
    former = await store.record_of_request(tx.connection, correction.request_id)
    if (former.action, former.subject, former.reason, json.loads(former.detail)) != (
        action,
        subject,
        correction.reason,
        detail,
    ):
        raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for something else.")
    return None


async def _order_stop(
    tx: Transaction, hold: Hold, reason: events_pb2.StopReason.ValueType, stop_at_charged_ms: int
) -> None:
    hold = await store.update_hold(tx.connection, replace(hold, stop_ordered=True))
    await _publish(
        tx,
        hold,
        events_pb2.StopOrdered(hold=hold_message(hold), reason=reason, stop_at_charged_ms=stop_at_charged_ms),
    )


async def _warn(tx: Transaction, account: Account) -> None:
    """Says ahead of time, once for each limit, that funds run out."""
    rate_micros = await store.rate_micros(tx.connection, account.account_id)
    hours = metering.warning_hours(account.available_micros, rate_micros, account.warned_hours)
    if hours is None:
        return
    account = await store.set_warned(tx.connection, account.account_id, hours)
    await enqueue(
        tx,
        derived_id("FundsLow", account.account_id, account.revision),
        events_pb2.FundsLow(account=account_message(account), rate_micros=rate_micros, hours=hours),
        account_id=account.account_id,
        work_id=None,
        resource_id=account.account_id,
    )


async def _publish_account(tx: Transaction, account: Account, correction: Correction) -> None:
    await enqueue(
        tx,
        derived_id("AccountCorrected", correction.request_id),
        events_pb2.AccountCorrected(account=account_message(account), reason=correction.reason),
        account_id=account.account_id,
        work_id=None,
        resource_id=account.account_id,
    )


async def _publish(tx: Transaction, hold: Hold, message: Message) -> None:
    await enqueue_all(tx, [_outgoing(hold, message)])


def _outgoing(hold: Hold, message: Message) -> Outgoing:
    return Outgoing(
        derived_id(message.DESCRIPTOR.name, hold.hold_id, hold.revision),
        message,
        account_id=hold.account_id,
        work_id=hold.work_id,
        resource_id=hold.hold_id,
    )
