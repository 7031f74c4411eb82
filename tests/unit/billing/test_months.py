"""Calendar months of an account's time zone."""

from datetime import UTC, datetime

import pytest

from saucer.billing.domain import month, month_of


@pytest.mark.parametrize(
    ("name", "time_zone", "start", "end"),
    [
        ("2026-11", "UTC", datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12", "UTC", datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-01", "Asia/Tokyo", datetime(2025, 12, 31, 15, tzinfo=UTC), datetime(2026, 1, 31, 15, tzinfo=UTC)),
        # An hour shorter, an hour longer.
        ("2026-03", "Europe/Berlin", datetime(2026, 2, 28, 23, tzinfo=UTC), datetime(2026, 3, 31, 22, tzinfo=UTC)),
        ("2026-10", "Europe/Berlin", datetime(2026, 9, 30, 22, tzinfo=UTC), datetime(2026, 10, 31, 23, tzinfo=UTC)),
    ],
)
def test_a_month_ends_where_the_next_begins(name: str, time_zone: str, start: datetime, end: datetime) -> None:
    period = month(name, time_zone)
    assert (period.name, period.start, period.end) == (name, start, end)
    assert month_of(start, time_zone) == name != month_of(end, time_zone)


@pytest.mark.parametrize("name", ["", "2026", "2026-13", "2026-00", "later"])
def test_what_is_no_month_is_refused(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its text is the standard library's
        month(name, "UTC")
