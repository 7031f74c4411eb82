"""Accounts and holds: what they are and how a hold may move. Amounts are decided in ledger.py and metering.py."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from saucer.billing.ledger import TransferKind
from saucer.billing.metering import Meter, reserve_micros
from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError

# Before anything was booked.
EPOCH = datetime.fromtimestamp(0, UTC)


class HoldState(StrEnum):
    """Of a hold."""

    # Of a resource group: there is no free capacity yet.
    WAITING = "WAITING"
    GRANTED = "GRANTED"
    REFUSED = "REFUSED"
    RESOLVED = "RESOLVED"
    EXPIRED = "EXPIRED"
    BURIED = "BURIED"


class Refusal(StrEnum):
    """Why a hold was refused."""

    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    ACCOUNT_SUSPENDED = "ACCOUNT_SUSPENDED"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    BUDGET_REACHED = "BUDGET_REACHED"
    GROUP_NOT_STARTED = "GROUP_NOT_STARTED"
    GROUP_ENDED = "GROUP_ENDED"


class AccountState(StrEnum):
    """Of an account."""

    ACTIVE = "ACTIVE"
    # No new start; running work is stopped with its checkpoint.
    SUSPENDED = "SUSPENDED"


class ChargeStatus(StrEnum):
    """What a user sees of the charge."""

    NOT_BILLING = "NOT_BILLING"
    BILLING = "BILLING"
    STOPPED_FOR_ARREARS = "STOPPED_FOR_ARREARS"


class WorkKind(StrEnum):
    """What a hold is for."""

    TASK = "TASK"
    DEPLOYMENT = "DEPLOYMENT"


# The schema has the same, and what a hold may begin as: all but what comes after another state.
TRANSITIONS: Mapping[HoldState, frozenset[HoldState]] = {
    HoldState.WAITING: frozenset({HoldState.GRANTED, HoldState.BURIED}),
    HoldState.GRANTED: frozenset({HoldState.RESOLVED, HoldState.EXPIRED}),
    HoldState.REFUSED: frozenset(),
    HoldState.RESOLVED: frozenset(),
    HoldState.EXPIRED: frozenset(),
    HoldState.BURIED: frozenset(),
}


@dataclass(frozen=True)
class Account:
    """Who pays."""

    account_id: str
    display_name: str
    currency: str
    time_zone: str
    state: AccountState
    available_micros: int
    frozen_micros: int
    created_at: datetime
    # Of the ledger: rises by one with every transfer.
    version: int
    state_changes: int
    warned_hours: int | None
    # The time of the last transfer.
    booked_at: datetime = EPOCH

    @property
    def revision(self) -> int:
        """Rises with every change of the account."""
        return self.version + self.state_changes


@dataclass(frozen=True)
class Quotas:
    """What an account may have at once; None: no limit. `weight` is its share where it competes for workers."""

    account_id: str
    weight: int = 1
    # Runs at work, and tasks that wait to be.
    running: int | None = None
    queued: int | None = None
    storage_bytes: int | None = None
    # 0: none were ever set.
    revision: int = 0


@dataclass(frozen=True)
class TopUp:
    """Money added."""

    account_id: str
    external_reference: str
    amount_micros: int
    # Of the account after it, before anything unpaid was taken.
    available_micros: int
    created_at: datetime
    account_version: int


@dataclass(frozen=True)
class Region:
    """Where machines stand."""

    region_id: str
    display_name: str


@dataclass(frozen=True)
class Spec:
    """A compute shape in a region, at a price."""

    region_id: str
    spec_id: str
    display_name: str
    gpus: int
    cpu_cores: int
    max_count: int
    price_per_hour_micros: int
    currency: str
    withdrawn: bool = False

    def check_offered(self) -> None:
        """Raises FailedPreconditionError for one that is not on offer any more."""
        if self.withdrawn:
            raise FailedPreconditionError(
                "SPEC_WITHDRAWN", f"{self.spec_id} in {self.region_id} is not on offer any more; choose another spec."
            )

    def check_count(self, count: int) -> None:
        """Raises InvalidArgumentError for more than one machine has."""
        if count > self.max_count:
            raise InvalidArgumentError(
                "COUNT_TOO_LARGE", f"count: {self.spec_id} has at most {self.max_count} on one machine, not {count}."
            )


@dataclass(frozen=True)
class HoldRequest:
    """What a hold is asked for. Compared field by field with what its id was first used for."""

    hold_id: str
    account_id: str
    work_kind: WorkKind
    work_id: str
    start_number: int
    region_id: str
    spec_id: str
    count: int
    # Whose capacity is taken; None: money is frozen.
    group_id: str | None = None


@dataclass(frozen=True)
class Hold:
    """Money frozen, or capacity taken, for one start, and its meter. Of capacity, price and amount are 0."""

    hold_id: str
    account_id: str
    work_kind: WorkKind
    work_id: str
    start_number: int
    region_id: str
    spec_id: str
    count: int
    currency: str
    price_per_hour_micros: int
    amount_micros: int
    missing_micros: int
    state: HoldState
    refusal: Refusal | None
    used: bool
    charge_status: ChargeStatus
    stop_ordered: bool
    charged_ms: int
    settled_micros: int
    posted_micros: int
    released_micros: int
    lost_micros: int
    created_at: datetime
    resolved_at: datetime | None
    revision: int
    group_id: str | None
    granted_at: datetime | None
    # Of the account, when money was asked for; 0: none was.
    account_version: int

    @property
    def meter(self) -> Meter:
        """What it costs so far."""
        return Meter(self.price_per_hour_micros, self.count, self.amount_micros, self.charged_ms, self.settled_micros)

    @property
    def rate_micros(self) -> int:
        """What it costs in an hour, while it is charged."""
        charged = self.state is HoldState.GRANTED and self.charge_status is ChargeStatus.BILLING
        return self.price_per_hour_micros * self.count if charged else 0

    @property
    def reserve_micros(self) -> int:
        """What finishing may still cost."""
        return reserve_micros(self.price_per_hour_micros, self.count)

    def answers(self, request: HoldRequest) -> bool:
        """Whether this is the hold that was asked for, or one of the same id for something else."""
        return request == HoldRequest(
            self.hold_id,
            self.account_id,
            self.work_kind,
            self.work_id,
            self.start_number,
            self.region_id,
            self.spec_id,
            self.count,
            self.group_id,
        )


def transition(hold: Hold, state: HoldState) -> Hold:
    """Raises ValueError for a move that the table does not have."""
    if state not in TRANSITIONS[hold.state]:
        raise ValueError(f"A hold does not go from {hold.state} to {state}.")
    return replace(hold, state=state)


@dataclass(frozen=True)
class Group:
    """A resource group: capacity of a spec that an account has bought beforehand, for a time."""

    group_id: str
    account_id: str
    display_name: str
    region_id: str
    spec_id: str
    # Of the spec, at once.
    capacity: int
    starts_at: datetime
    ends_at: datetime
    # The fewest hours before its end that its account was warned of.
    warned_hours: int | None
    # Its end was seen, and what ran was ordered to stop.
    ended: bool
    created_at: datetime
    revision: int
    # Taken by granted holds, and asked for by those that wait.
    taken: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Budget:
    """What a task or deployment, or an account in each calendar month, may cost at most."""

    budget_id: str
    account_id: str
    # None: of the account, by the month.
    work_id: str | None
    amount_micros: int
    updated_at: datetime


@dataclass(frozen=True)
class Spending:
    """What counts against a budget."""

    # Settled and posted, less refunds.
    booked_micros: int
    # Charged by open holds and not yet taken.
    unpaid_micros: int
    # What finishing may still cost, of every open hold.
    reserve_micros: int

    @property
    def sum_micros(self) -> int:
        """What a budget is compared with."""
        return self.booked_micros + self.unpaid_micros + self.reserve_micros


@dataclass(frozen=True)
class Quote:
    """What a start would freeze."""

    spec: Spec
    hold_micros: int
    available_micros: int

    @property
    def missing_micros(self) -> int:
        """0: the balance covers the hold."""
        return max(0, self.hold_micros - self.available_micros)


@dataclass(frozen=True)
class Transfer:
    """A movement as booked."""

    transfer_id: str
    kind: TransferKind
    account_version: int
    hold_id: str | None
    amount_micros: int
    charged_ms: int
    # Of the account, after it.
    available_micros: int
    frozen_micros: int
    # Of a top-up.
    reference: str | None
    # Of a correction.
    reason: str | None
    author: str | None
    created_at: datetime


@dataclass(frozen=True)
class Statement:
    """One start with what was booked for it, or with a part of that."""

    hold: Hold
    transfers: tuple[Transfer, ...]
    # What was settled, posted and lost before the first of these.
    borne_micros: int = 0
    # Whether more of the start's follow.
    more: bool = False


@dataclass(frozen=True)
class Period:
    """A calendar month in an account's time zone, as instants: from `start` on, before `end`."""

    name: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class MonthlyStatement:
    """What was booked for an account in one month; opening + the effect of every line = closing."""

    account: Account
    period: Period
    opening_available_micros: int
    opening_frozen_micros: int
    transfers: tuple[Transfer, ...]
    # Those that the lines are of, by id.
    holds: Mapping[str, Hold]
    # What was settled, posted and lost of each before the page, by id; none: nothing.
    borne_micros: Mapping[str, int]
    # The last line's of the page; the opening ones without a line.
    closing_available_micros: int
    closing_frozen_micros: int
    # Over the whole month: settled and posted, less refunds.
    charged_micros: int
    # Whether lines of the month follow.
    more: bool


def month_of(time: datetime, time_zone: str) -> str:
    """The calendar month that an instant lies in, like 2026-11."""
    return f"{time.astimezone(ZoneInfo(time_zone)):%Y-%m}"


def month(name: str, time_zone: str) -> Period:
    """The month `name`, like 2026-11, in an IANA time zone; daylight saving included. Raises ValueError."""
    year, _, number = name.partition("-")
    zone = ZoneInfo(time_zone)
    start = datetime(int(year), int(number), 1, tzinfo=zone)
    following = datetime(start.year + start.month // 12, start.month % 12 + 1, 1, tzinfo=zone)
    return Period(f"{start.year:04d}-{start.month:02d}", start.astimezone(UTC), following.astimezone(UTC))


@dataclass(frozen=True)
class Record:
    """What an administrator did, why and in whose name."""

    record_id: str
    request_id: str
    action: str
    subject: str
    account_id: str | None
    author: str
    reason: str
    # The call's figures, as JSON.
    detail: str
    created_at: datetime


@dataclass(frozen=True)
class Finding:
    """A row that breaks an invariant."""

    invariant: str
    row: str


@dataclass(frozen=True)
class Audit:
    """The ledger, checked."""

    # Of each broken invariant, the first of its rows.
    findings: tuple[Finding, ...]
    # How many rows break it, by its name.
    broken: Mapping[str, int]
    ledger_sum_micros: int
    frozen_micros: int
    accounts: int
    entries: int
