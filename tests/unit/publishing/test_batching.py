"""What Triton's counters make of a piece of time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.publishing.batching import Counters, CountersAt, by_piece
from saucer.publishing.traffic import PIECE
from tests.unit.publishing.examples import NOW


def read(piece: int, counters: Counters, *, version: int = 1, triton: str = "a") -> CountersAt:
    return CountersAt(version, NOW + piece * PIECE, triton, counters)


def test_what_came_to_the_counters_in_a_piece_is_what_it_shows() -> None:
    readings = [read(0, Counters(100, 50, 80, 4_000)), read(1, Counters(140, 60, 100, 54_000))]
    counted = by_piece(readings)[1, NOW + PIECE]
    assert counted == Counters(40, 10, 20, 50_000)
    assert (counted.batch_size, counted.queue_ms) == (4.0, 2.5)


def test_a_model_that_was_loaded_anew_counts_from_nothing() -> None:
    readings = [read(0, Counters(100, 50, 80, 4_000)), read(1, Counters(6, 3, 6, 900))]
    assert by_piece(readings)[1, NOW + PIECE] == Counters(6, 3, 6, 900)


def test_versions_are_apart_and_the_tritons_of_one_are_added() -> None:
    readings = [
        read(0, Counters(10, 10, 10, 0)),
        read(0, Counters(10, 10, 10, 0), triton="b"),
        read(0, Counters(7, 7, 7, 0), version=2),
        read(1, Counters(12, 11, 12, 0)),
        read(1, Counters(16, 12, 16, 0), triton="b"),
        read(1, Counters(8, 8, 8, 0), version=2),
    ]
    counted = by_piece(readings)
    assert counted[1, NOW + PIECE] == Counters(8, 3, 8, 0)
    assert counted[2, NOW + PIECE] == Counters(1, 1, 1, 0)


def test_without_a_request_there_is_no_size_and_no_wait() -> None:
    nothing = by_piece([read(0, Counters(5, 5, 5, 5)), read(1, Counters(5, 5, 5, 5))])[1, NOW + PIECE]
    assert (nothing.batch_size, nothing.queue_ms) == (0.0, 0.0)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=20))
def test_pieces_add_up_to_the_counters_however_they_lie(steps: list[tuple[int, int]]) -> None:
    total, readings = Counters(), []
    for number, (images, waited_us) in enumerate(steps):
        total = total.plus(Counters(images, min(images, 1), images, waited_us))
        readings.append(read(number, total))
    added = Counters()
    for counted in by_piece(readings).values():
        added = added.plus(counted)
    assert added == total


def test_a_wait_that_is_read_smaller_is_none() -> None:
    assert Counters(2, 2, 2, 10).since(Counters(1, 1, 1, 20)).waited_us == pytest.approx(0)
