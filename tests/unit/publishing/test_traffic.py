"""Requests counted in pieces of time."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.publishing import endpoint, traffic
from saucer.publishing.fleet import Fleet
from saucer.publishing.limits import Limits
from saucer.publishing.traffic import PIECE, Piece, Traffic, merge
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


class NeverStored:
    """In place of the deployments' monitoring: PostgreSQL does not answer."""

    def __init__(self) -> None:
        self.monitoring, self.asked = self, asyncio.Event()

    async def store_pieces(self, replica: str, pieces: Sequence[Piece]) -> None:
        self.asked.set()
        await asyncio.Event().wait()


async def test_what_is_being_stored_when_that_is_cancelled_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LAST_TRAFFIC_S", 0.1)
    silent: Any = NeverStored()
    made: Any = endpoint.Endpoint(silent, Fleet(silent, "", silent), Limits(1, 1))
    made._traffic.record("d", 1, 0.010, False, NOW)
    telling = asyncio.create_task(made.tell_traffic("replica"))
    await silent.asked.wait()
    telling.cancel()
    await asyncio.wait([telling])
    await made.tell_last_traffic("replica")
    (piece,) = made._traffic.take_all()
    assert (piece.requests, piece.began_at) == (1, NOW)


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


def test_in_an_outage_the_newest_pieces_wait_and_the_oldest_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MAX_WAITING", 4)
    made = Traffic()
    for piece in range(6):
        for number in (1, 2):
            made.record("d", number, 1, False, NOW + piece * PIECE)
        # The next piece has begun before the answer that nothing was stored.
        pieces = made.take_ended(NOW + (piece + 1) * PIECE)
        made.record("d", 1, 1, False, NOW + (piece + 1) * PIECE)
        made.put_back(pieces)
    assert [(piece.began_at, piece.version_number) for piece in made.take_ended(NOW + 9 * PIECE)] == [
        (NOW + 4 * PIECE, 2),
        (NOW + 5 * PIECE, 1),
        (NOW + 5 * PIECE, 2),
        (NOW + 6 * PIECE, 1),
    ]
