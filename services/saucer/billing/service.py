"""The use cases of billing, and the only place that opens its transactions.

Locks are taken in one order, hold before account, so that no two transactions wait for each other.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import asyncpg
import structlog
from google.protobuf.message import Message
from prometheus_client import Counter

from saucer.billing import metering, store
from saucer.billing.domain import (
    Account,
    Audit,
    ChargeStatus,
    Hold,
    HoldRequest,
    HoldState,
    Quote,
    Spec,
    Statement,
    TopUp,
)
from saucer.billing.ledger import Movement, TransferKind
from saucer.billing.messages import account_message, hold_message, top_up_message
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
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Connection, Database, Transaction

# A price may begin this long before the call that sets it, for clocks that differ.
PRICE_CLOCK_SKEW = timedelta(minutes=1)

log = structlog.get_logger()
lost_micros_total = Counter("saucer_billing_lost_micros_total", "Charges that neither hold nor balance covered")
holds_total = Counter("saucer_billing_holds_total", "Holds asked for, by answer", ["state"])


class Billing:
    """Accounts, prices, holds and the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
            account = Account(account_id, display_name, currency, time_zone, "ACTIVE", 0, 0, tx.now, 0)
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

        Raises:
            FailedPreconditionError: INSUFFICIENT_BALANCE with missing_micros, ACCOUNT_SUSPENDED, HOLD_BURIED: nothing
                is frozen, and a retry gets the same.
            AlreadyExistsError: the id was used for something else.
            NotFoundError: account or spec.
        """
        try:
            hold = await self._create_hold(request)
        except asyncpg.UniqueViolationError:
            # Another call with the same id has committed in between: its answer is ours.
            hold = await self._create_hold(request)
        if not hold.answers(request):
            raise AlreadyExistsError("HOLD_ID_USED", f"The hold {hold.hold_id} was made for something else.")
        if hold.state is HoldState.BURIED:
            raise FailedPreconditionError("HOLD_BURIED", f"The hold {hold.hold_id} was given up; start anew.")
        if hold.state is HoldState.REFUSED:
            raise _refusal(hold)
        return hold

    async def _create_hold(self, request: HoldRequest) -> Hold:
        async with self._database.transaction() as tx:
            former = await store.get_hold(tx.connection, request.hold_id)
            if former is not None:
                return former
            account = await _account(tx.connection, request.account_id)
            spec = await _spec(tx, request.region_id, request.spec_id)
            _check_count(spec, request.count)
            if spec.currency != account.currency:
                raise FailedPreconditionError(
                    "CURRENCY_MISMATCH", f"The spec is priced in {spec.currency}, the account is in {account.currency}."
                )
            amount = metering.hold_micros(spec.price_per_hour_micros, request.count)
            transfer_id = derived_id("hold", request.hold_id)
            hold = await store.insert_hold(tx.connection, request, spec, amount, transfer_id, tx.now)
            holds_total.labels(hold.state).inc()
            if hold.state is HoldState.GRANTED:
                await _publish(tx, hold, events_pb2.HoldGranted(hold=hold_message(hold)))
            return hold

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
            hold = await store.update_hold(tx.connection, replace(hold, charged_ms=charged_ms, charge_status=status))
            await self._settle(tx, hold, plan)

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
            hold = await store.update_hold(
                tx.connection, replace(hold, stop_ordered=True, charge_status=ChargeStatus.STOPPED_FOR_ARREARS)
            )
            await _publish(
                tx,
                hold,
                events_pb2.StopOrdered(
                    hold=hold_message(hold),
                    reason=events_pb2.STOP_REASON_ARREARS,
                    stop_at_charged_ms=hold.meter.stop_at_ms,
                ),
            )
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


def _check_count(spec: Spec, count: int) -> None:
    if count > spec.max_count:
        raise InvalidArgumentError(
            "COUNT_TOO_LARGE", f"count: {spec.spec_id} has at most {spec.max_count} on one machine, not {count}."
        )


def _same_top_up(former: TopUp, account_id: str, amount_micros: int) -> TopUp:
    if (former.account_id, former.amount_micros) != (account_id, amount_micros):
        raise AlreadyExistsError("REFERENCE_USED", "The external reference was used for another top-up.")
    return former


def _refusal(hold: Hold) -> FailedPreconditionError:
    if hold.missing_micros == 0:
        return FailedPreconditionError("ACCOUNT_SUSPENDED", "The account is suspended; nothing new may start.")
    return FailedPreconditionError(
        "INSUFFICIENT_BALANCE",
        f"Two hours cost {hold.amount_micros} micros, and {hold.missing_micros} micros are missing; top up first.",
        missing_micros=hold.missing_micros,
        hold_micros=hold.amount_micros,
        currency=hold.currency,
    )


async def _publish(tx: Transaction, hold: Hold, message: Message) -> None:
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, hold.hold_id, hold.revision),
        message,
        account_id=hold.account_id,
        work_id=hold.work_id,
        resource_id=hold.hold_id,
    )
