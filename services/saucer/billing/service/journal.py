"""What one transaction changes for one account: decided in memory while account and holds are locked, then written
together.

1. Locks are taken in one order, group before hold before account, so that no two transactions wait for each other.
2. Decisions follow from what is in memory alone, so that many fit in between two statements.
3. write() books all of it by one statement, moves all holds by another and tells all events by a third.
"""

from collections.abc import Iterable
from dataclasses import replace

from google.protobuf.message import Message

from saucer.billing import metering
from saucer.billing.domain import Account, ChargeStatus, Hold, HoldState, transition
from saucer.billing.ledger import Book, Movement, TransferKind
from saucer.billing.messages import account_message, hold_message
from saucer.billing.store import accounts as accounts_store
from saucer.billing.store import holds as holds_store
from saucer.billing.store import transfers as transfers_store
from saucer.billing.store.transfers import Booking
from saucer.billing.v1 import events_pb2
from saucer.lib.errors import NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.outbox import Outgoing, enqueue_all
from saucer.lib.postgres import Transaction


class Journal:
    """An account and some of its holds, as they become."""

    def __init__(self, tx: Transaction, account: Account, holds: Iterable[Hold]) -> None:
        self._tx = tx
        self._former = account
        self.account = account
        self.holds: dict[str, Hold] = {}
        self._revisions: dict[str, int] = {}
        self._bookings: list[Booking] = []
        self._events: list[Outgoing] = []
        for hold in holds:
            self.add(hold)

    @classmethod
    async def open(cls, tx: Transaction, account_id: str, holds: Iterable[Hold] = ()) -> "Journal":
        """Locks the account. Raises NotFoundError.

        Args:
            holds: those that may change, locked already.
        """
        account = await accounts_store.get_account(tx.connection, account_id, lock=True)
        if account is None:
            raise NotFoundError("account", account_id)
        return cls(tx, account, holds)

    def add(self, hold: Hold) -> None:
        """One more hold that may change, as it was read; the caller has locked or made it."""
        self.holds[hold.hold_id] = hold
        self._revisions[hold.hold_id] = hold.revision

    def book(
        self,
        movement: Movement,
        transfer_id: str,
        *,
        hold: Hold | None = None,
        reference: str | None = None,
        record_id: str | None = None,
    ) -> None:
        """Moves money. A balance below zero is refused by PostgreSQL, and everything with it."""
        self.account = replace(
            self.account,
            available_micros=self.account.available_micros + movement.change_of(Book.AVAILABLE),
            frozen_micros=self.account.frozen_micros + movement.change_of(Book.FROZEN),
            version=self.account.version + 1,
            # Not before what was booked last, though this transaction may have read the clock earlier.
            booked_at=max(self.account.booked_at, self._tx.now),
        )
        self._bookings.append(
            Booking(
                transfer_id,
                movement,
                self.account.version,
                self.account.available_micros,
                self.account.frozen_micros,
                hold.hold_id if hold else None,
                hold.charged_ms if hold else 0,
                reference,
                record_id,
            )
        )

    def put(self, hold: Hold) -> Hold:
        """A hold as it has become, at its next revision."""
        changed = replace(hold, revision=hold.revision + 1)
        self.holds[hold.hold_id] = changed
        return changed

    def put_account(self, account: Account) -> None:
        """The account with another state, or other warnings, at its next revision."""
        self.account = replace(account, state_changes=account.state_changes + 1)

    def tell(self, hold: Hold, message: Message) -> None:
        """An event of a hold."""
        self._events.append(outgoing(hold, message))

    def tell_account(self, event_id: str, message: Message) -> None:
        """An event of the account."""
        account_id = self.account.account_id
        self._events.append(Outgoing(event_id, message, account_id, None, account_id))

    def settle(self, hold: Hold, plan: metering.Advance) -> None:
        """Does what follows from a counter, or from money that came in."""
        if plan.settle_micros:
            transfer_id = derived_id("settlement", hold.hold_id, hold.charged_ms)
            self.book(Movement(TransferKind.SETTLEMENT, plan.settle_micros), transfer_id, hold=hold)
            hold = self.put(replace(hold, settled_micros=hold.settled_micros + plan.settle_micros))
            self.tell(hold, events_pb2.ChargeSettled(hold=hold_message(hold), amount_micros=plan.settle_micros))
        if plan.short:
            # A revision of its own, for it is told again at the same counter.
            hold = self.put(hold)
            self.tell(hold, events_pb2.FundsShort(hold=hold_message(hold), unpaid_micros=hold.meter.unpaid_micros))
        if plan.stop and not hold.stop_ordered:
            hold = replace(hold, charge_status=ChargeStatus.STOPPED_FOR_ARREARS)
            self.order_stop(hold, events_pb2.STOP_REASON_ARREARS, hold.meter.stop_at_ms)

    def order_stop(self, hold: Hold, reason: events_pb2.StopReason.ValueType, stop_at_charged_ms: int) -> None:
        """The owner of the work must stop it; the second order of a start is not given."""
        if hold.stop_ordered:
            return
        hold = self.put(replace(hold, stop_ordered=True))
        self.tell(
            hold,
            events_pb2.StopOrdered(hold=hold_message(hold), reason=reason, stop_at_charged_ms=stop_at_charged_ms),
        )

    def order_expired_to_stop(self, hold: Hold) -> None:
        """Work is heard of whose hold had gone back: one order, by whatever and however often it is heard of."""
        self._events.append(
            outgoing(
                hold,
                events_pb2.StopOrdered(hold=hold_message(hold), reason=events_pb2.STOP_REASON_HOLD_EXPIRED),
                # Not by the revision, which grows with each counter that comes late.
                event_id=derived_id("StopOrdered", hold.hold_id, HoldState.EXPIRED),
            )
        )

    def bury(self, hold: Hold) -> None:
        """One that waits is over, and was never granted."""
        hold = self.put(transition(hold, HoldState.BURIED))
        self.tell(hold, events_pb2.HoldResolved(hold=hold_message(hold)))

    async def warn(self) -> None:
        """Says ahead of time, once for each limit, that funds run out."""
        others = await accounts_store.rate_micros(self._tx.connection, self.account.account_id, list(self.holds))
        rate_micros = others + sum(hold.rate_micros for hold in self.holds.values())
        hours = metering.warning_hours(self.account.available_micros, rate_micros, self.account.warned_hours)
        if hours is None:
            return
        self.put_account(replace(self.account, warned_hours=hours))
        self.tell_account(
            derived_id("FundsLow", self.account.account_id, self.account.revision),
            events_pb2.FundsLow(account=account_message(self.account), rate_micros=rate_micros, hours=hours),
        )

    async def write(self) -> None:
        """Everything, or, if any of it is refused, nothing: the transaction is undone then."""
        changed = [
            (self._revisions[hold_id], hold)
            for hold_id, hold in self.holds.items()
            if hold.revision != self._revisions[hold_id]
        ]
        if changed:
            await holds_store.update_holds(self._tx.connection, changed)
        if self.account != self._former:
            await transfers_store.write(self._tx.connection, self._former, self.account, self._bookings)
        await enqueue_all(self._tx, self._events)


def outgoing(hold: Hold, message: Message, *, event_id: str | None = None) -> Outgoing:
    """An event of a hold, on its way out: one of its kind at each revision, unless its id is given."""
    return Outgoing(
        event_id or derived_id(message.DESCRIPTOR.name, hold.hold_id, hold.revision),
        message,
        account_id=hold.account_id,
        work_id=hold.work_id,
        resource_id=hold.hold_id,
    )
