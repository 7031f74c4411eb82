"""Requests counted in pieces of time."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.publishing import traffic
from saucer.publishing.traffic import PIECE, Traffic, merge
from tests.unit.publishing.examples import NOW


def test_a_piece_is_taken_once_it_is_over_and_one_that_was_not_stored_comes_again() -> None:
    made = Traffic()
    made.record("d", 1, 0.010, False, NOW)
    made.record("d", 1, 0.010, True, NOW + timedelta(seconds=14))
    made.record("d", 2, 0.010, False, NOW)
    assert made.take_ended(NOW + timedelta(seconds=14)) == []
    first, second = made.take_ended(NOW + PIECE)
    assert (first.requests, first.errors, first.began_at, second.version_number) == (2, 1, NOW, 2)
    assert made.take_ended(NOW + PIECE) == []
    made.put_back([first])
    assert made.take_ended(NOW + PIECE) == [first]


def test_what_no_model_was_asked_is_an_error_without_a_duration() -> None:
    made = Traffic()
    made.record("d", 1, 0.010, False, NOW)
    for _ in range(9):
        made.refuse("d", 1, NOW)
    (piece,) = made.take_ended(NOW + PIECE)
    assert (piece.requests, piece.errors, piece.busy_ms) == (10, 9, 10)
    assert piece.percentile_ms(0.01) >= 10


@given(st.lists(st.floats(0.001, 16), min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_at_most_a_fifth_above_the_true_one(durations_s: list[float], share: float) -> None:
    made = Traffic()
    for duration_s in durations_s:
        made.record("d", 1, duration_s, False, NOW)
    (piece,) = made.take_ended(NOW + PIECE)
    place = next(n for n in range(1, len(durations_s) + 1) if n >= share * len(durations_s))
    true_ms = sorted(durations_s)[place - 1] * 1000
    assert true_ms <= piece.percentile_ms(share) * (1 + 1e-9)
    assert piece.percentile_ms(share) <= true_ms * 1.19 + 1e-9


def test_replicas_are_added_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Traffic(), Traffic()
    one.record("d", 1, 1.5, False, NOW)
    other.record("d", 1, 1.5, True, NOW)
    (piece,) = merge([*one.take_ended(NOW + PIECE), *other.take_ended(NOW + PIECE)])
    assert (piece.requests, piece.errors, piece.load) == (2, 1, 0.2)
    monkeypatch.setattr(traffic, "MAX_WAITING", 3)
    for number in range(10):
        one.record("d", number, 1, False, NOW)
    assert [piece.version_number for piece in one.take_ended(NOW + PIECE)] == [7, 8, 9]
