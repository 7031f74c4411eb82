"""Capacity instead of money: who gets what is free, and when an end is warned of. See POLICY.md beside this file."""

from collections.abc import Sequence
from datetime import datetime, timedelta

# A warning goes out once when a group's end is nearer than one of these.
WARNING_HOURS = (24, 1)


def grants(capacity: int, taken: int, waiting: Sequence[int]) -> int:
    """How many of those that wait are granted now, from the first on.

    First come, first served, without overtaking: a large one waits no longer than those before it run, however many
    small ones come after it.

    Args:
        waiting: the count that each asks for, in the order in which they came.
    """
    free, granted = capacity - taken, 0
    for count in waiting:
        if count > free:
            break
        free -= count
        granted += 1
    return granted


def warning_hours(ends_at: datetime, now: datetime, warned_hours: int | None) -> int | None:
    """The least limit of WARNING_HOURS that the end is nearer than, unless it or a lesser one was warned of before."""
    near = [hours for hours in WARNING_HOURS if ends_at - now < timedelta(hours=hours)]
    if not near or (warned_hours is not None and warned_hours <= min(near)):
        return None
    return min(near)
