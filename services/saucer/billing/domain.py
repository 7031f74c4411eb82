"""Accounts and holds: what they are and how a hold may move. Amounts are decided in ledger.py and metering.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from saucer.billing.metering import Meter


class HoldState(StrEnum):
    """Of a hold."""

    GRANTED = "GRANTED"
    REFUSED = "REFUSED"
    RESOLVED = "RESOLVED"
    BURIED = "BURIED"


class ChargeStatus(StrEnum):
    """What a user sees of the charge."""

    NOT_BILLING = "NOT_BILLING"
    BILLING = "BILLING"
    STOPPED_FOR_ARREARS = "STOPPED_FOR_ARREARS"


class WorkKind(StrEnum):
    """What a hold is for."""

    TASK = "TASK"
    DEPLOYMENT = "DEPLOYMENT"


# A hold that does not exist yet is None.
TRANSITIONS: Mapping[HoldState | None, frozenset[HoldState]] = {
    None: frozenset({HoldState.GRANTED, HoldState.REFUSED, HoldState.BURIED}),
    HoldState.GRANTED: frozenset({HoldState.RESOLVED}),
    HoldState.REFUSED: frozenset(),
    HoldState.RESOLVED: frozenset(),
    HoldState.BURIED: frozenset(),
}


def may_move(source: HoldState | None, target: HoldState) -> bool:
    """Whether the table allows it."""
    return target in TRANSITIONS[source]


@dataclass(frozen=True)
class Account:
    """Who pays."""

    account_id: str
    display_name: str
    currency: str
    time_zone: str
    state: str
    available_micros: int
    frozen_micros: int
    created_at: datetime
    version: int


@dataclass(frozen=True)
class TopUp:
    """Money added."""

    account_id: str
    external_reference: str
    amount_micros: int
    available_micros: int
    created_at: datetime


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


@dataclass(frozen=True)
class Hold:
    """Money frozen for one start, and its meter."""

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

    @property
    def meter(self) -> Meter:
        """What it costs so far."""
        return Meter(self.price_per_hour_micros, self.count, self.amount_micros, self.charged_ms, self.settled_micros)

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
        )


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
    kind: str
    amount_micros: int
    charged_ms: int
    created_at: datetime


@dataclass(frozen=True)
class Statement:
    """One start with everything booked for it."""

    hold: Hold
    transfers: tuple[Transfer, ...]


@dataclass(frozen=True)
class Finding:
    """A row that breaks an invariant."""

    invariant: str
    row: str


@dataclass(frozen=True)
class Audit:
    """The ledger, checked."""

    findings: tuple[Finding, ...]
    ledger_sum_micros: int
    frozen_micros: int
    accounts: int
    entries: int
