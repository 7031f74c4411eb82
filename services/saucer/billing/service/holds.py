"""Holds and their meters: granted, counted against, closed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import asyncpg
import structlog
from prometheus_client import Counter

from saucer.billing import metering
from saucer.billing.coalescing import Coalescer
from saucer.billing.domain import ChargeStatus, Hold, HoldRequest, HoldState, Refusal, Spec, transition
from saucer.billing.ledger import Movement, TransferKind
from saucer.billing.messages import hold_message
from saucer.billing.service.budgets import Budgets
from saucer.billing.service.groups import Groups
from saucer.billing.service.journal import Journal, outgoing
from saucer.billing.store import holds as store
from saucer.billing.store import offers as offers_store
from saucer.billing.store.holds import Asked
from saucer.billing.v1 import events_pb2
from saucer.lib.errors import (
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from saucer.lib.ids import derived_id
from saucer.lib.money import in_words
from saucer.lib.outbox import enqueue_all
from saucer.lib.postgres import Database, Transaction

# A batch of holds that another replica's turned away is tried this often.
HOLD_ATTEMPTS = 3

log = structlog.get_logger()
holds_total = Counter("saucer_billing_holds_total", "Holds asked for, by answer", ["state"])


@dataclass(frozen=True)
class Counted:
    """A counter as it was told; a smaller one than was seen changes nothing."""

    hold_id: str
    charged_ms: int
    running: bool


@dataclass(frozen=True)
class Ended:
    """The last counter of a start."""

    hold_id: str
    charged_ms: int


class Holds:
    """What starts freeze, are charged and get back."""

    def __init__(self, database: Database, groups: Groups, budgets: Budgets) -> None:
        self._database = database
        self._groups = groups
        self._budgets = budgets
        self._created: Coalescer[str, HoldRequest, Hold] = Coalescer(self._create_all)
        self._metered: Coalescer[str, Counted | Ended, Hold] = Coalescer(self._meter_all)

    # Granting

    async def create(self, request: HoldRequest, budget_micros: int = 0) -> Hold:
        """Freezes two hours, or takes capacity of a group; once for each hold id.

        Calls for one account that come while another is in flight go to the database together (coalescing.py).

        Args:
            budget_micros: of the work, all its starts together; 0: none. Set unless one is.

        Returns:
            It may be WAITING for capacity of its group; the event HoldGranted tells when it has it.

        Raises:
            FailedPreconditionError: INSUFFICIENT_BALANCE with missing_micros, ACCOUNT_SUSPENDED, CURRENCY_MISMATCH,
                BUDGET_REACHED, GROUP_NOT_STARTED, GROUP_ENDED, HOLD_BURIED, HOLD_EXPIRED: nothing is frozen, and a
                retry gets the same. SPEC_WITHDRAWN: until it is on offer again.
            AlreadyExistsError: the id was used for something else.
            InvalidArgumentError: the id is not that of this start, the count is above the spec's, or the group is of
                another spec or smaller.
            NotFoundError: account, spec or group.
        """
        if request.hold_id != f"{request.work_id}-{request.start_number}":
            raise InvalidArgumentError("HOLD_ID_INVALID", "hold_id: it is <work id>-<start number>.")
        if budget_micros:
            await self._budgets.give(request.account_id, request.work_id, budget_micros)
        if request.group_id is None:
            hold = await self._created(request.account_id, request)
        else:
            hold = await self._groups.ask(request)
        if not hold.answers(request):
            raise AlreadyExistsError("HOLD_ID_USED", f"The hold {hold.hold_id} was made for something else.")
        if hold.state is HoldState.BURIED:
            raise FailedPreconditionError("HOLD_BURIED", f"The hold {hold.hold_id} was given up; start anew.")
        if hold.state is HoldState.EXPIRED:
            raise FailedPreconditionError("HOLD_EXPIRED", f"The hold {hold.hold_id} was not used in time; start anew.")
        if hold.refusal is not None:
            raise _refusal(hold, hold.refusal)
        return hold

    async def _create_all(self, account_id: str, requests: Sequence[HoldRequest]) -> Sequence[Hold | Exception]:
        for _ in range(HOLD_ATTEMPTS):
            try:
                return await self._create_once(account_id, requests)
            except asyncpg.DeadlockDetectedError:
                # An account that has just got its first budget is locked before its holds are made by one replica, and
                # after them by another.
                continue
        raise UnavailableError("CONCURRENT_CALL", "The same hold is being made; repeat the call.")

    async def _create_once(self, account_id: str, requests: Sequence[HoldRequest]) -> Sequence[Hold | Exception]:
        async with self._database.transaction() as tx:
            offers = {
                (spec.region_id, spec.spec_id): spec for spec in await offers_store.list_specs(tx.connection, tx.now)
            }
            asked: dict[str, Asked] = {}
            errors: dict[HoldRequest, Exception] = {}
            for request in requests:
                try:
                    spec = _offered(offers, request)
                except DomainError as error:
                    errors[request] = error
                    continue
                amount = metering.hold_micros(spec.price_per_hour_micros, request.count)
                asked.setdefault(request.hold_id, Asked(request, spec, amount, derived_id("hold", request.hold_id)))
            in_order = [asked[hold_id] for hold_id in sorted(asked)]
            made = await self._insert(tx, account_id, in_order)
            granted = [hold for hold in made if hold.state is HoldState.GRANTED]
            await enqueue_all(tx, [outgoing(hold, events_pb2.HoldGranted(hold=hold_message(hold))) for hold in granted])
            holds = {hold.hold_id: hold for hold in made}
            former = [request.hold_id for request in requests if request.hold_id not in holds]
            if former:
                holds |= {hold.hold_id: hold for hold in await store.get_holds(tx.connection, former)}
        for hold in made:
            holds_total.labels(hold.state).inc()
        absent = NotFoundError("account", account_id)
        return [holds.get(request.hold_id) or errors.get(request) or absent for request in requests]

    async def _insert(self, tx: Transaction, account_id: str, asked: Sequence[Asked]) -> list[Hold]:
        if not await self._budgets.any(tx, account_id):
            return await store.insert_holds(tx.connection, account_id, asked, tx.now)
        made = []
        for one in asked:
            # Each counts against the budgets of those behind it.
            over = await self._budgets.would_exceed(tx, one.request, one.spec.price_per_hour_micros)
            made += await store.insert_holds(tx.connection, account_id, [replace(one, over_budget=over)], tx.now)
        return made

    # Metering

    async def advance(self, hold_id: str, charged_ms: int, *, running: bool) -> None:
        """Takes a counter; work whose hold has expired is ordered to stop.

        Raises NotFoundError: the event's hold is not here (yet).
        """
        hold = await self._meter(Counted(hold_id, charged_ms, running))
        await self._budgets.enforce(hold.account_id)

    async def resolve(self, hold_id: str, charged_ms: int) -> None:
        """Closes a hold at the end of its work: posts, takes, loses, releases. The second time changes nothing, unless
        the counter has grown: then the difference is taken or lost."""
        hold = await self._meter(Ended(hold_id, charged_ms))
        if hold.group_id:
            await self._groups.fill(hold.group_id)

    async def _meter(self, request: Counted | Ended) -> Hold:
        async with self._database.reading() as connection:
            account_id = await store.account_of(connection, request.hold_id)
        if account_id is None:
            raise NotFoundError("hold", request.hold_id)
        return await self._metered(account_id, request)

    async def _meter_all(self, account_id: str, requests: Sequence[Counted | Ended]) -> Sequence[Hold | Exception]:
        async with self._database.transaction() as tx:
            holds = await store.lock_holds(tx.connection, [request.hold_id for request in requests])
            journal = await Journal.open(tx, account_id, holds)
            warn = False
            for request in requests:
                if isinstance(request, Ended):
                    _end(journal, request, tx)
                else:
                    warn |= _count(journal, request)
            if warn:
                await journal.warn()
            await journal.write()
        for before in holds:
            _alarm(before, journal.holds[before.hold_id])
        return [journal.holds[request.hold_id] for request in requests]

    async def use(self, hold_id: str, work_id: str, start_number: int) -> None:
        """The event that uses a hold is here: it can no longer expire, and earlier starts of its work are over.

        Earlier starts that are still open have lost their last event: what billing has seen of their counters is all
        that can be charged. An expired hold is ordered to stop before anything is charged. Raises NotFoundError.
        """
        async with self._database.transaction() as tx:
            holds = await store.lock_starts(tx.connection, work_id, start_number)
            used = next((hold for hold in holds if hold.hold_id == hold_id), None)
            if used is None:
                raise NotFoundError("hold", hold_id)
            journal = await Journal.open(tx, used.account_id, holds)
            for hold in holds:
                if hold is not used:
                    _close(journal, hold, tx)
            if used.state is HoldState.EXPIRED:
                journal.order_expired_to_stop(used)
            elif used.state is HoldState.GRANTED and not used.used:
                journal.put(replace(used, used=True))
            await journal.write()
        for hold in holds:
            _alarm(hold, journal.holds[hold.hold_id])
            if hold is not used and hold.group_id:
                await self._groups.fill(hold.group_id)

    async def give_up(self, request: HoldRequest, currency: str, charged_ms: int) -> None:
        """At the end of work whose hold may be open, wait, or still be asked for: closes it, or buries its id."""
        async with self._database.transaction() as tx:
            hold = await store.get_hold(tx.connection, request.hold_id, lock=True)
            if hold is None:
                if await store.bury_hold(tx.connection, request, currency, tx.now):
                    return
                # It was being made meanwhile.
                hold = await store.get_hold(tx.connection, request.hold_id, lock=True)
                assert hold is not None
            if hold.state is HoldState.WAITING:
                journal = await Journal.open(tx, hold.account_id, [hold])
                _close(journal, hold, tx)
                await journal.write()
        if hold.state is HoldState.GRANTED or charged_ms > hold.charged_ms:
            await self.resolve(request.hold_id, charged_ms)
        elif hold.group_id:
            await self._groups.fill(hold.group_id)

    async def expire(self, hold_id: str) -> None:
        """Gives back a hold that nothing has used. Any other state changes nothing. Raises NotFoundError."""
        async with self._database.transaction() as tx:
            hold = await store.get_hold(tx.connection, hold_id, lock=True)
            if hold is None:
                raise NotFoundError("hold", hold_id)
            if hold.state is not HoldState.GRANTED or hold.used or hold.charged_ms:
                return
            journal = await Journal.open(tx, hold.account_id, [hold])
            for movement in metering.expire(hold.meter):
                journal.book(movement, derived_id("expiry", hold_id), hold=hold)
            expired = transition(hold, HoldState.EXPIRED)
            expired = replace(expired, released_micros=hold.amount_micros, resolved_at=tx.now)
            hold = journal.put(expired)
            journal.tell(hold, events_pb2.HoldResolved(hold=hold_message(hold)))
            await journal.write()
        if hold.group_id:
            await self._groups.fill(hold.group_id)


def _count(journal: Journal, request: Counted) -> bool:
    """Whether it is a moment to warn of funds that run low."""
    hold, charged_ms = journal.holds[request.hold_id], request.charged_ms
    if hold.state is HoldState.EXPIRED:
        journal.order_expired_to_stop(hold)
    if hold.resolved_at is not None and charged_ms > hold.charged_ms:
        # The last event may never come.
        _catch_up(journal, replace(hold, charged_ms=charged_ms))
    if hold.state is not HoldState.GRANTED or charged_ms < hold.charged_ms:
        return False
    plan = metering.advance(hold.meter, charged_ms, journal.account.available_micros)
    status = hold.charge_status
    if status is not ChargeStatus.STOPPED_FOR_ARREARS:
        running = request.running and hold.group_id is None
        status = ChargeStatus.BILLING if running else ChargeStatus.NOT_BILLING
    if charged_ms == hold.charged_ms and status is hold.charge_status:
        return False
    begins = status is ChargeStatus.BILLING is not hold.charge_status
    journal.settle(journal.put(replace(hold, charged_ms=charged_ms, charge_status=status)), plan)
    return bool(begins or plan.settle_micros or plan.short)


def _end(journal: Journal, request: Ended, tx: Transaction) -> None:
    hold = journal.holds[request.hold_id]
    if hold.state is HoldState.GRANTED:
        _close(journal, replace(hold, charged_ms=max(request.charged_ms, hold.charged_ms)), tx)
    elif hold.resolved_at is not None and request.charged_ms > hold.charged_ms:
        _catch_up(journal, replace(hold, charged_ms=request.charged_ms))


def _catch_up(journal: Journal, hold: Hold) -> None:
    """Of a closed hold whose counter has turned out to be greater; of an expired one nothing is charged."""
    expired = hold.state is HoldState.EXPIRED
    available_micros = 0 if expired else journal.account.available_micros
    taken_micros, lost_micros = metering.catch_up(hold.meter, hold.posted_micros + hold.lost_micros, available_micros)
    for kind, amount_micros in ((TransferKind.SETTLEMENT, taken_micros), (TransferKind.LOSS, lost_micros)):
        if amount_micros:
            journal.book(
                Movement(kind, amount_micros), derived_id("late", kind, hold.hold_id, hold.charged_ms), hold=hold
            )
    hold = journal.put(
        replace(
            hold,
            settled_micros=hold.settled_micros + taken_micros,
            lost_micros=hold.lost_micros + lost_micros,
        )
    )
    journal.tell(hold, events_pb2.HoldResolved(hold=hold_message(hold)))


def _close(journal: Journal, hold: Hold, tx: Transaction) -> None:
    """Resolves a granted hold; one that waits is buried."""
    if hold.state is HoldState.WAITING:
        journal.bury(hold)
        return
    resolution = metering.resolve(hold.meter, journal.account.available_micros)
    for movement in resolution.movements():
        journal.book(movement, derived_id("resolution", movement.kind, hold.hold_id), hold=hold)
    arrears = hold.charge_status is ChargeStatus.STOPPED_FOR_ARREARS
    hold = journal.put(
        replace(
            transition(hold, HoldState.RESOLVED),
            charge_status=hold.charge_status if arrears else ChargeStatus.NOT_BILLING,
            settled_micros=hold.settled_micros + resolution.settled_micros,
            posted_micros=resolution.posted_micros,
            released_micros=resolution.released_micros,
            lost_micros=resolution.lost_micros,
            resolved_at=tx.now,
        )
    )
    journal.tell(hold, events_pb2.HoldResolved(hold=hold_message(hold)))


def _alarm(before: Hold, hold: Hold) -> None:
    """Once the loss is committed; the alert is of what PostgreSQL has (watching.py)."""
    lost_micros = hold.lost_micros - before.lost_micros
    if lost_micros:
        log.error("platform_loss", hold_id=hold.hold_id, lost_micros=lost_micros)


def _offered(offers: Mapping[tuple[str, str], Spec], request: HoldRequest) -> Spec:
    spec = offers.get((request.region_id, request.spec_id))
    if spec is None:
        raise NotFoundError("spec", f"{request.region_id}/{request.spec_id}")
    spec.check_offered()
    spec.check_count(request.count)
    return spec


_SENTENCES = {
    Refusal.ACCOUNT_SUSPENDED: "The account is suspended; nothing new may start.",
    Refusal.BUDGET_REACHED: "A budget of the account or of this work is reached; raise it first.",
    Refusal.GROUP_NOT_STARTED: "The resource group's time has not begun.",
    Refusal.GROUP_ENDED: "The resource group has ended; name another, or start post-paid.",
}


def _refusal(hold: Hold, refusal: Refusal) -> FailedPreconditionError:
    if refusal in _SENTENCES:
        return FailedPreconditionError(refusal, _SENTENCES[refusal])
    if refusal is Refusal.CURRENCY_MISMATCH:
        return FailedPreconditionError(refusal, f"The spec is priced in {hold.currency}, and the account is not.")
    return FailedPreconditionError(
        refusal,
        f"Two hours cost {in_words(hold.amount_micros, hold.currency)}, and "
        f"{in_words(hold.missing_micros, hold.currency)} are missing; top up first.",
        missing_micros=hold.missing_micros,
        hold_micros=hold.amount_micros,
        currency=hold.currency,
        account_version=hold.account_version,
    )
