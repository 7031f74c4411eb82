"""Who gets a group's capacity, and when its end is warned of."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.billing.prepaid import grants, warning_hours

END = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("capacity", "taken", "waiting", "granted"),
    [
        (4, 0, [], 0),
        (4, 0, [1, 2, 1], 3),
        (4, 4, [1], 0),
        (4, 3, [1, 1], 1),
        # The large one is not overtaken.
        (4, 2, [3, 1], 0),
        (4, 1, [3, 1], 1),
        # Capacity that was made smaller than is taken: nobody is.
        (2, 3, [1], 0),
    ],
)
def test_those_who_came_first_are_granted_first_and_nobody_overtakes(
    capacity: int, taken: int, waiting: list[int], granted: int
) -> None:
    assert grants(capacity, taken, waiting) == granted


@given(st.integers(1, 20), st.integers(0, 20), st.lists(st.integers(1, 8), max_size=20))
def test_never_more_than_the_capacity_and_never_fewer_than_fit(capacity: int, taken: int, waiting: list[int]) -> None:
    granted = grants(capacity, taken, waiting)
    given = sum(waiting[:granted])
    assert not granted or taken + given <= capacity
    assert granted == len(waiting) or taken + given + waiting[granted] > capacity


@pytest.mark.parametrize(
    ("left_hours", "warned", "expected"),
    [
        (25.0, None, None),
        (24.0, None, None),
        (23.9, None, 24),
        (23.9, 24, None),
        (0.9, 24, 1),
        (0.9, None, 1),
        (0.9, 1, None),
    ],
)
def test_each_limit_before_the_end_is_warned_of_once(
    left_hours: float, warned: int | None, expected: int | None
) -> None:
    assert warning_hours(END, END - timedelta(hours=left_hours), warned) == expected
