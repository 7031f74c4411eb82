"""What is told of the time that is left, against what came true of runs whose beats were recorded."""

import json
from pathlib import Path

import pytest

from saucer.worker.pace import Pace, validations_left

# Milliseconds of each iteration and, below zero, of each validation.
RECORDED: dict[str, list[int]] = json.loads((Path(__file__).parent / "recorded_beats.json").read_text())
# With less left, the time between two tells counts for more than the pace.
LEAST_LEFT_MS = 5_000


def worst_error(beats: list[int]) -> float:
    """Of what is told after each iteration from a third of the time on, as a share of what was truly left."""
    pace, iteration, validated, done_ms, errors = Pace(), 0, 0, 0, [0.0]
    iterations = sum(beat >= 0 for beat in beats)
    places = [sum(beat >= 0 for beat in beats[:place]) for place, beat in enumerate(beats) if beat < 0]
    for beat in beats:
        done_ms += abs(beat)
        if beat < 0:
            pace.validation(-beat / 1000)
            validated = iteration
            continue
        pace.iteration(beat / 1000)
        iteration += 1
        interval = max(1, places[-2] - places[-3])
        left_s = pace.left_s(iterations - iteration, validations_left(iteration, iterations, interval, validated))
        truly_left_ms = sum(map(abs, beats)) - done_ms
        if done_ms >= sum(map(abs, beats)) / 3 and truly_left_ms >= LEAST_LEFT_MS:
            assert left_s is not None
            errors.append(abs(1000 * left_s / truly_left_ms - 1))
    return max(errors)


@pytest.mark.parametrize("name", RECORDED)
def test_from_a_third_of_the_way_on_the_time_left_is_right_within_a_quarter(name: str) -> None:
    assert worst_error(RECORDED[name]) <= 0.25


def test_a_slow_beginning_does_not_count_and_one_slow_iteration_hardly() -> None:
    pace = Pace()
    for taken_s in [5.0] * 20 + [0.1] * 59 + [1.0]:
        pace.iteration(taken_s)
    assert pace.iteration_s == pytest.approx(0.1, rel=0.2)


def test_nothing_is_told_before_the_second_iteration() -> None:
    pace = Pace()
    pace.validation(1.0)
    assert pace.left_s(10, 1) is None
    pace.iteration(5.0)
    assert pace.left_s(10, 1) is None
    pace.iteration(0.5)
    assert pace.left_s(10, 2) == pytest.approx(10 * 0.5 + 2 * 1.0)


@pytest.mark.parametrize(
    ("iteration", "validated", "left"),
    [
        (0, 0, 4),
        (29, 0, 4),
        (30, 0, 4),
        (30, 30, 3),
        (31, 30, 3),
        (90, 90, 1),
        (99, 90, 1),
        (100, 90, 1),
        (100, 100, 0),
    ],
)
def test_validations_that_are_left(iteration: int, validated: int, left: int) -> None:
    assert validations_left(iteration, 100, 30, validated) == left
    assert validations_left(60, 90, 30, 60) == 1
