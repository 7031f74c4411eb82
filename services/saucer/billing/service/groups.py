"""Resource groups: capacity bought beforehand; who waits for it, who has it, and its end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import asyncpg
from google.protobuf.message import Message

from saucer.billing import prepaid
from saucer.billing.domain import Account, AccountState, Group, Hold, HoldRequest, HoldState, Refusal, transition
from saucer.billing.messages import group_message, hold_message
from saucer.billing.service.journal import Journal
from saucer.billing.service.offers import spec_of
from saucer.billing.service.records import Correction, record
from saucer.billing.store import accounts as accounts_store
from saucer.billing.store import groups as store
from saucer.billing.store import holds as holds_store
from saucer.billing.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database, Transaction

# Of those that wait for one group, granted in one transaction at most; the next round grants more.
FILL_BATCH = 100
# Groups whose end is seen to in one round.
ENDING_BATCH = 100
# An ask that met another replica's is tried again this often.
ASK_ATTEMPTS = 3


class Groups:
    """Prepaid capacity."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # The administrator's

    async def create(
        self,
        account_id: str,
        display_name: str,
        region_id: str,
        spec_id: str,
        capacity: int,
        starts_at: datetime | None,
        ends_at: datetime,
        correction: Correction,
    ) -> Group:
        """For an account; `starts_at` None: from now. The same call twice makes one.

        Raises:
            InvalidArgumentError: PERIOD_INVALID. NotFoundError: account or spec.
            FailedPreconditionError: SPEC_WITHDRAWN. AlreadyExistsError: the request id was used for something else.
        """
        group_id = derived_id("group", correction.request_id)
        detail = {
            "account_id": account_id,
            "display_name": display_name,
            "spec": f"{region_id}/{spec_id}",
            "capacity": capacity,
            "start_time": starts_at.isoformat() if starts_at else None,
            "end_time": ends_at.isoformat(),
        }
        async with self._database.transaction() as tx:
            if await accounts_store.get_account(tx.connection, account_id) is None:
                raise NotFoundError("account", account_id)
            spec = await spec_of(tx, region_id, spec_id)
            start = starts_at or tx.now
            if await record(tx, correction, "CREATE_GROUP", group_id, account_id, detail):
                spec.check_offered()
                _check_period(start, ends_at, tx.now)
                group = Group(
                    group_id, account_id, display_name, region_id, spec_id, capacity, start, ends_at, None, False,
                    tx.now, 1,
                )  # fmt: skip
                await store.insert_group(tx.connection, group)
                await _tell(tx, group, events_pb2.GroupCreated(group=group_message(group)))
            made = await store.get_group(tx.connection, group_id)
            assert made is not None
            return made

    async def update(
        self, group_id: str, capacity: int | None, ends_at: datetime | None, correction: Correction
    ) -> Group:
        """More or less capacity, a later or earlier end; None: as it is. What waits may be granted by it.

        Raises:
            FailedPreconditionError: GROUP_ENDED; CAPACITY_TAKEN: less than is taken now; CAPACITY_WAITED_FOR: less than
                a start waits for; SPEC_WITHDRAWN: more capacity or a later end is not on offer any more.
            InvalidArgumentError: PERIOD_INVALID. NotFoundError.
            AlreadyExistsError: the request id was used for something else.
        """
        detail = {"capacity": capacity, "end_time": ends_at.isoformat() if ends_at else None}
        async with self._database.transaction() as tx:
            group = await _locked(tx, group_id)
            # Before the record, which takes a share of the account's lock: a counter locks its hold first, too.
            holds = await holds_store.lock_open_of_group(tx.connection, group_id)
            if not await record(tx, correction, "UPDATE_GROUP", group_id, group.account_id, detail):
                return group
            if group.ended or group.ends_at <= tx.now:
                raise FailedPreconditionError("GROUP_ENDED", "The resource group has ended; create another.")
            changed = replace(group, capacity=capacity or group.capacity, ends_at=ends_at or group.ends_at)
            _check_period(changed.starts_at, changed.ends_at, tx.now)
            if changed.capacity > group.capacity or changed.ends_at > group.ends_at:
                (await spec_of(tx, group.region_id, group.spec_id)).check_offered()
            if changed.capacity < group.taken:
                raise FailedPreconditionError(
                    "CAPACITY_TAKEN",
                    f"{group.taken} of the capacity are taken; stop some of what runs first.",
                    taken=group.taken,
                )
            for hold in holds:
                # It could never be granted, and nobody passes it.
                if hold.count > changed.capacity:
                    raise FailedPreconditionError(
                        "CAPACITY_WAITED_FOR",
                        f"The {hold.work_kind.lower()} {hold.work_id} waits for {hold.count} of the capacity; stop it "
                        "first.",
                        work_id=hold.work_id,
                    )
            if changed.ends_at != group.ends_at:
                changed = replace(changed, warned_hours=None)
            group = await store.update_group(tx.connection, changed)
            await _tell(tx, group, events_pb2.GroupUpdated(group=group_message(group)))
        await self.fill(group_id)
        return group

    # The account's

    async def get(self, group_id: str) -> Group:
        """Raises NotFoundError for another account's too."""
        async with self._database.reading() as connection:
            group = await store.get_group(connection, group_id)
        if group is None:
            raise NotFoundError("resource_group", group_id)
        current().own("resource_group", group_id, group.account_id)
        return group

    async def list(self, account_id: str | None, *, after: tuple[datetime, str] | None, limit: int) -> "list[Group]":
        """Newest first; of every account for None."""
        async with self._database.reading() as connection:
            return await store.list_groups(connection, account_id, after=after, limit=limit)

    # Capacity

    async def ask(self, request: HoldRequest) -> Hold:
        """Takes capacity for a start, waits for it, or is refused; once for each hold id. Raises as Holds.create()."""
        for _ in range(ASK_ATTEMPTS):
            try:
                return await self._ask_once(request)
            except asyncpg.UniqueViolationError:
                # Another process has made it in between: the next look finds it.
                continue
        raise UnavailableError("CONCURRENT_CALL", "The same hold is being made; repeat the call.")

    async def _ask_once(self, request: HoldRequest) -> Hold:
        assert request.group_id is not None
        async with self._database.transaction() as tx:
            # Under the lock of the group, so that its capacity is given once.
            group = await _locked(tx, request.group_id)
            if group.account_id != request.account_id:
                raise NotFoundError("resource_group", request.group_id)
            former = await holds_store.get_hold(tx.connection, request.hold_id)
            if former is not None:
                return former
            _check_fit(group, request)
            (await spec_of(tx, group.region_id, group.spec_id)).check_count(request.count)
            waiting = await holds_store.lock_waiting(tx.connection, group.group_id, FILL_BATCH)
            journal = await Journal.open(tx, request.account_id, waiting)
            refusal = _refusal(group, journal.account, tx.now)
            currency = journal.account.currency
            asked = await holds_store.insert_hold_of_group(tx.connection, request, currency, refusal, tx.now)
            if refusal is not None:
                return asked
            journal.add(asked)
            _grant(journal, group, [*waiting, asked][:FILL_BATCH], tx.now)
            await journal.write()
            return journal.holds[request.hold_id]

    async def fill(self, group_id: str) -> None:
        """Grants what is free to those that wait, in the order in which they came."""
        async with self._database.transaction() as tx:
            group = await _locked(tx, group_id)
            waiting = await holds_store.lock_waiting(tx.connection, group_id, FILL_BATCH)
            if waiting:
                journal = await Journal.open(tx, group.account_id, waiting)
                if _refusal(group, journal.account, tx.now) is None:
                    _grant(journal, group, waiting, tx.now)
                    await journal.write()

    async def sweep_once(self) -> None:
        """Grants what a crash left ungranted, warns of ends, and ends what is over. Replicas may do it at once."""
        async with self._database.transaction() as tx:
            waited_for = await store.waited_for(tx.connection, tx.now)
            ending = await store.ending(tx.connection, tx.now, prepaid.WARNING_HOURS, ENDING_BATCH)
        for group_id in waited_for:
            await self.fill(group_id)
        for group in ending:
            await self._see_to_the_end(group.group_id)

    async def _see_to_the_end(self, group_id: str) -> None:
        async with self._database.transaction() as tx:
            group = await _locked(tx, group_id)
            if group.ended or group.ends_at <= tx.now:
                await _end(tx, group)
                return
            hours = prepaid.warning_hours(group.ends_at, tx.now, group.warned_hours)
            if hours is not None:
                group = await store.update_group(tx.connection, replace(group, warned_hours=hours))
                await _tell(tx, group, events_pb2.GroupEnding(group=group_message(group), hours=hours))


def _grant(journal: Journal, group: Group, waiting: Sequence[Hold], now: datetime) -> None:
    """What is free, to the first of those that wait."""
    for hold in waiting[: prepaid.grants(group.capacity, group.taken, [hold.count for hold in waiting])]:
        granted = journal.put(replace(transition(hold, HoldState.GRANTED), granted_at=now))
        journal.tell(granted, events_pb2.HoldGranted(hold=hold_message(granted)))


async def _end(tx: Transaction, group: Group) -> None:
    """Orders the stop of all that has its capacity, or waits for it. What waits is over at once: its owner may be gone.

    Of a group that has ended, the same for what an earlier version left waiting.
    """
    holds = await holds_store.lock_open_of_group(tx.connection, group.group_id)
    if not group.ended:
        group = await store.update_group(tx.connection, replace(group, ended=True))
        await _tell(tx, group, events_pb2.GroupEnded(group=group_message(group)))
    if holds:
        journal = await Journal.open(tx, group.account_id, holds)
        for hold in holds:
            journal.order_stop(hold, events_pb2.STOP_REASON_GROUP_ENDED, hold.charged_ms)
            if hold.state is HoldState.WAITING:
                journal.bury(journal.holds[hold.hold_id])
        await journal.write()


def _refusal(group: Group, account: Account, now: datetime) -> Refusal | None:
    if account.state is not AccountState.ACTIVE:
        return Refusal.ACCOUNT_SUSPENDED
    if now < group.starts_at:
        return Refusal.GROUP_NOT_STARTED
    return Refusal.GROUP_ENDED if group.ended or now >= group.ends_at else None


def _check_fit(group: Group, request: HoldRequest) -> None:
    if (group.region_id, group.spec_id) != (request.region_id, request.spec_id):
        raise InvalidArgumentError(
            "GROUP_OF_ANOTHER_SPEC",
            f"resource_group_id: the group is of {group.spec_id} in {group.region_id}, and the start asks for "
            f"{request.spec_id} in {request.region_id}.",
        )
    if request.count > group.capacity:
        raise InvalidArgumentError(
            "COUNT_TOO_LARGE", f"count: the group has {group.capacity} in all, not {request.count}."
        )


def _check_period(starts_at: datetime, ends_at: datetime, now: datetime) -> None:
    if ends_at <= max(starts_at, now):
        raise InvalidArgumentError("PERIOD_INVALID", "end_time: it is later than the start, and than now.")


async def _locked(tx: Transaction, group_id: str) -> Group:
    group = await store.lock_group(tx.connection, group_id)
    if group is None:
        raise NotFoundError("resource_group", group_id)
    return group


async def _tell(tx: Transaction, group: Group, message: Message) -> None:
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, group.group_id, group.revision),
        message,
        account_id=group.account_id,
        work_id=None,
        resource_id=group.group_id,
    )
