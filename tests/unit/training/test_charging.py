"""What of a run's time is charged."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.lib.money import MAX_FINISHING_MS
from saucer.training.charging import (
    LEASE_MS,
    NOWHERE,
    STALL_MS,
    Meter,
    Place,
    begin_attempt,
    count,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
TRAINING, EXPORTING = 2, 3


def at(milliseconds: int) -> datetime:
    return START + timedelta(milliseconds=milliseconds)


def beats(meter: Meter, *steps: tuple[int, float], stage: int = TRAINING, finishing: bool = False) -> Meter:
    """After heartbeats at (milliseconds, iteration)."""
    for milliseconds, done in steps:
        meter = count(meter, at(milliseconds), Place(stage, done), finishing=finishing, free=False)
    return meter


def test_the_first_heartbeat_counts_nothing() -> None:
    assert beats(Meter(), (5_000, 1)).charged_ms == 0


def test_time_between_heartbeats_counts() -> None:
    assert beats(Meter(), (0, 1), (1_000, 2), (2_500, 3)).charged_ms == 2_500


def test_silence_counts_one_lease_length_at_most() -> None:
    assert beats(Meter(), (0, 1), (60_000, 2)).charged_ms == LEASE_MS


def test_a_stall_counts_up_to_its_limit() -> None:
    steps = [(second * 1_000, 1.0) for second in range(STALL_MS // 1_000 + 100)]
    stalled = beats(Meter(), *steps)
    assert stalled.charged_ms == STALL_MS
    last_ms = steps[-1][0]
    assert beats(stalled, (last_ms + 1_000, 2.0), (last_ms + 2_000, 3.0)).charged_ms == STALL_MS + 2_000


def test_work_done_again_after_a_resume_is_not_charged_again() -> None:
    meter = beats(Meter(), (0, 1), (1_000, 140))
    resumed = begin_attempt(meter)
    repeated = beats(resumed, (50_000, 100), (51_000, 120), (52_000, 140))
    assert repeated.charged_ms == 1_000
    assert beats(repeated, (53_000, 141)).charged_ms == 1_000
    assert beats(repeated, (53_000, 141), (54_000, 142)).charged_ms == 2_000


def test_the_gap_between_attempts_is_not_charged() -> None:
    meter = beats(Meter(), (0, 1), (1_000, 2))
    assert beats(begin_attempt(meter), (9_000, 3), (10_000, 4)).charged_ms == 2_000


def test_finishing_counts_up_to_what_the_reserve_leaves_for_it() -> None:
    steps = [(second * 1_000, second / 1_000) for second in range(900)]
    meter = beats(Meter(), *steps, stage=EXPORTING, finishing=True)
    assert (meter.charged_ms, meter.finishing_ms) == (MAX_FINISHING_MS, MAX_FINISHING_MS)


def test_free_work_counts_nothing() -> None:
    meter = Meter()
    for second in range(5):
        meter = count(meter, at(second * 1_000), Place(TRAINING, second), finishing=False, free=True)
    assert meter.charged_ms == 0


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    meter = beats(Meter(), (0, 1), (2_000, 2), (1_000, 3), (2_500, 4))
    assert meter.charged_ms == 2_500


@st.composite
def lives(draw: st.DrawFn) -> list[list[tuple[int, Place, bool]]]:
    """Attempts of heartbeats (time in ms, place, finishing), in order of time."""
    now_ms, attempts = 0, []
    for _ in range(draw(st.integers(1, 4))):
        now_ms += draw(st.integers(0, 600_000))
        attempt = []
        for _ in range(draw(st.integers(0, 30))):
            now_ms += draw(st.integers(0, 2 * LEASE_MS) | st.just(STALL_MS))
            place = Place(draw(st.integers(1, 4)), draw(st.integers(0, 50)))
            attempt.append((now_ms, place, place.stage >= EXPORTING))
        attempts.append(attempt)
    return attempts


@given(lives())
def test_the_counter_never_falls_and_never_exceeds_the_time_in_which_attempts_were_heard(
    attempts: list[list[tuple[int, Place, bool]]],
) -> None:
    meter, heard_ms = Meter(), 0
    for attempt in attempts:
        meter = begin_attempt(meter)
        for index, (now_ms, place, finishing) in enumerate(attempt):
            before = meter
            meter = count(meter, at(now_ms), place, finishing=finishing, free=False)
            if index:
                heard_ms += min(LEASE_MS, now_ms - attempt[index - 1][0])
            assert 0 <= meter.charged_ms - before.charged_ms <= LEASE_MS
            assert meter.counted >= before.counted
        assert meter.charged_ms <= heard_ms
    assert meter.finishing_ms <= min(meter.charged_ms, MAX_FINISHING_MS)


@given(lives())
def test_no_place_is_charged_twice(attempts: list[list[tuple[int, Place, bool]]]) -> None:
    meter = Meter()
    for attempt in attempts:
        meter = begin_attempt(meter)
        counted_before = meter.counted
        for now_ms, place, finishing in attempt:
            before = meter
            meter = count(meter, at(now_ms), place, finishing=finishing, free=False)
            if meter.charged_ms > before.charged_ms:
                assert before.reached > counted_before or counted_before == NOWHERE


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_every_stage_of_a_first_attempt_counts(stage: int) -> None:
    assert beats(Meter(), (0, 0.1), (1_000, 0.2), stage=stage).charged_ms == 1_000
