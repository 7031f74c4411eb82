"""Since when a process of publishing has been there, as far as its rounds show."""

from datetime import timedelta

import pytest

from saucer.publishing.attendance import ABSENT_AFTER_S, Attendance

BREAK_S = ABSENT_AFTER_S + 0.1


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


@pytest.mark.parametrize(
    ("rounds_s", "asked_s", "lasted_s"),
    [
        ([], 50.0, 0.0),
        ([10.0], 10.0, 0.0),
        ([10.0], 11.0, 1.0),
        ([10.0, 13.0, 16.0], 17.0, 7.0),
        # It was away: what was before does not count.
        ([10.0, 13.0, 13.0 + BREAK_S], 14.0 + BREAK_S, 1.0),
        # It is asked before its next round: it has been away, and does not know since when.
        ([10.0, 13.0], 13.0 + BREAK_S, 0.0),
    ],
)
def test_only_what_rounds_without_a_longer_break_cover_is_attended(
    rounds_s: list[float], asked_s: float, lasted_s: float
) -> None:
    attendance = Attendance()
    for now_s in rounds_s:
        attendance.round(now_s)
    assert attendance.lasted(asked_s) == pytest.approx(seconds(lasted_s), abs=seconds(1e-6))
