"""What a counter costs, when it is taken, and how a hold is resolved. See POLICY.md beside this file.

A meter is not intervals but the greatest `charged_ms` seen; the charge is a floor of the cumulative product, and what
is taken is the difference to what was taken before. So gaps, duplicates, order and a lost last event cannot matter.
"""

from dataclasses import dataclass, replace

from saucer.billing.ledger import Movement, TransferKind
from saucer.lib.money import FINISH_RESERVE_MS, charge_micros

HOLD_HOURS = 2
MS_PER_HOUR = 3_600_000
# A warning goes out once when funds are left for fewer hours than one of these, at the present rate.
WARNING_HOURS = (24, 4, 1)


def reserve_micros(price_per_hour_micros: int, count: int) -> int:
    """What finishing may cost: checkpoint, prediction and export. What is unpaid must not reach into it."""
    return charge_micros(price_per_hour_micros, count, FINISH_RESERVE_MS)


def hold_micros(price_per_hour_micros: int, count: int) -> int:
    """Exactly two hours."""
    return HOLD_HOURS * price_per_hour_micros * count


@dataclass(frozen=True)
class Meter:
    """A granted hold and what was counted against it."""

    price_per_hour_micros: int
    count: int
    amount_micros: int
    charged_ms: int
    settled_micros: int

    @property
    def charge_micros(self) -> int:
        """Of the counter."""
        return charge_micros(self.price_per_hour_micros, self.count, self.charged_ms)

    @property
    def unpaid_micros(self) -> int:
        """Charged and not yet taken from the available balance."""
        return self.charge_micros - self.settled_micros

    @property
    def stop_at_ms(self) -> int:
        """The counter at which what is unpaid reaches the hold less the reserve."""
        limit = self.amount_micros - reserve_micros(self.price_per_hour_micros, self.count)
        seconds = (self.settled_micros + limit) * 3600 // (self.price_per_hour_micros * self.count)
        return seconds * 1000


@dataclass(frozen=True)
class Advance:
    """What follows from a greater counter."""

    # Taken from the available balance now; 0: nothing.
    settle_micros: int
    # An hour was metered that the balance did not cover.
    short: bool
    # What is unpaid has reached the hold less the reserve.
    stop: bool


def advance(meter: Meter, charged_ms: int, available_micros: int) -> Advance:
    """Decides on a counter that has grown from `meter.charged_ms` to `charged_ms`."""
    if not meter.amount_micros or charged_ms == meter.charged_ms:
        # Prepaid, where there is nothing to pay; or it has not grown.
        return Advance(0, short=False, stop=False)
    grown = Meter(meter.price_per_hour_micros, meter.count, meter.amount_micros, charged_ms, meter.settled_micros)
    if charged_ms // MS_PER_HOUR == meter.charged_ms // MS_PER_HOUR:
        if charged_ms < grown.stop_at_ms:
            return Advance(0, short=False, stop=False)
        # Before the order, the balance is looked at again; that it fell short was said at the hour.
        return replace(settle(grown, available_micros), short=False)
    return settle(grown, available_micros)


def settle(meter: Meter, available_micros: int) -> Advance:
    """Takes all that is unpaid if the available balance covers it; else nothing, and the work goes on unpaid."""
    if meter.unpaid_micros <= available_micros:
        return Advance(meter.unpaid_micros, short=False, stop=False)
    return Advance(0, short=True, stop=meter.charged_ms >= meter.stop_at_ms)


@dataclass(frozen=True)
class Resolution:
    """How a hold ends. posted + released = the hold; settled before + settled + posted + lost = the charge."""

    posted_micros: int
    settled_micros: int
    lost_micros: int
    released_micros: int

    def movements(self) -> list[Movement]:
        """In the order in which they are booked; nothing for what is nothing."""
        parts = (
            (TransferKind.POSTING, self.posted_micros),
            (TransferKind.SETTLEMENT, self.settled_micros),
            (TransferKind.LOSS, self.lost_micros),
            (TransferKind.RELEASE, self.released_micros),
        )
        return [Movement(kind, amount) for kind, amount in parts if amount > 0]


def expire(meter: Meter) -> list[Movement]:
    """A hold that nobody used goes back whole."""
    return [Movement(TransferKind.EXPIRY, meter.amount_micros)] if meter.amount_micros else []


def warning_hours(available_micros: int, rate_micros: int, warned_hours: int | None) -> int | None:
    """The least limit of WARNING_HOURS that funds have fallen below, unless it or a lesser one was warned of before.

    Args:
        rate_micros: what all that runs costs in an hour.
    """
    below = [hours for hours in WARNING_HOURS if available_micros < rate_micros * hours]
    if not below or (warned_hours is not None and warned_hours <= min(below)):
        return None
    return min(below)


def catch_up(meter: Meter, borne_micros: int, available_micros: int) -> tuple[int, int]:
    """Of a counter that came after its hold was closed: what is taken from the balance, and what is lost.

    Args:
        borne_micros: what was posted and lost until now.
    """
    due_micros = meter.unpaid_micros - borne_micros
    taken_micros = min(due_micros, available_micros)
    return taken_micros, due_micros - taken_micros


def resolve(meter: Meter, available_micros: int) -> Resolution:
    """Posts what is unpaid from the hold, takes the excess from the balance as far as that reaches, loses the rest."""
    posted = min(meter.unpaid_micros, meter.amount_micros)
    excess = meter.unpaid_micros - posted
    settled = min(excess, available_micros)
    return Resolution(posted, settled, excess - settled, meter.amount_micros - posted)
