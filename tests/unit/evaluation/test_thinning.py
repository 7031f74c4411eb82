"""Curves thinned for drawing, against the rule done one point at a time."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saucer.evaluation import thinning
from saucer.evaluation.thinning import NEGLIGIBLE, PrPoints, Thinner

ROUNDING = 1e-12
SMALL_RUN, FEW_AT_ONCE = 4, 32


def points_of(recall: list[float], precision: list[float]) -> PrPoints:
    """Each of a threshold of its own."""
    thresholds = 1 - np.arange(len(recall)) / (len(recall) + 1)
    return PrPoints(thresholds.astype(np.float32), np.array(recall, np.float64), np.array(precision, np.float64))


def wandering(seed: int, size: int) -> PrPoints:
    """Up and down, in small steps and in great ones."""
    random = np.random.default_rng(seed)
    steps = random.normal(size=size) ** 3
    height = np.cumsum(steps - steps.mean())
    recall = np.sort(random.random(size) ** random.integers(1, 5))
    return points_of(recall.tolist(), ((height - height.min()) / np.ptp(height)).tolist())


def detected(hit: NDArray[np.bool_]) -> PrPoints:
    """Of right and wrong detections, each of a score of its own."""
    seen = np.arange(1, hit.size + 1)
    return PrPoints(
        (1 - seen / (hit.size + 1)).astype(np.float32), np.cumsum(hit) / max(hit.sum(), 1), np.cumsum(hit) / seen
    )


DETECTED = st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1, max_size=60).map(
    lambda steps: detected(np.repeat([good for good, _ in steps], [count for _, count in steps]))
)
# On few places, so that many are equal, equally far, or above each other.
ON_A_GRID = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=60).map(
    lambda places: points_of(sorted(x / 10 for x, _ in places), [y / 10 for _, y in places])
)
ANYWHERE = st.tuples(st.integers(0, 2**32 - 1), st.integers(100, 300)).map(lambda seed: wandering(*seed))
CURVES = st.lists(st.one_of(DETECTED, ON_A_GRID, ANYWHERE), min_size=1, max_size=3)


@pytest.fixture(params=[True, False], ids=["in runs of runs", "without"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(thinning, "RUN", SMALL_RUN)
        monkeypatch.setattr(thinning, "POINTS_AT_ONCE", FEW_AT_ONCE)


def distance(points: PrPoints, row: int, first: int, last: int) -> float:
    """From a point to a segment, in complex numbers."""
    p, a, b = (complex(points.recall[place], points.precision[place]) for place in (row, first, last))
    if a == b:
        return abs(p - a)
    share = ((p - a) * (b - a).conjugate()).real / abs(b - a) ** 2
    return abs(p - (a + min(max(share, 0.0), 1.0) * (b - a)))


def one_by_one(points: PrPoints, kept: list[int]) -> tuple[float, list[int]]:
    """The greatest distance of the points left out where those are kept, and which are so far."""
    left_out = {
        row: distance(points, row, first, last)
        for first, last in itertools.pairwise(kept)
        for row in range(first + 1, last)
    }
    farthest = max(left_out.values(), default=0.0)
    return farthest, [row for row, far in left_out.items() if far > farthest - ROUNDING]


def rows_of(points: PrPoints, thinned: PrPoints) -> list[int]:
    rows: list[int] = np.flatnonzero(np.isin(points.threshold, thinned.threshold)).tolist()
    for name in PrPoints.__slots__:
        np.testing.assert_array_equal(getattr(points, name)[rows], getattr(thinned, name))
    return rows


@pytest.mark.usefixtures("run")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(curves=CURVES, most=st.integers(2, 40))
def test_each_further_point_is_one_of_the_farthest_of_those_left_out(curves: list[PrPoints], most: int) -> None:
    thinner = Thinner(curves, most)
    kept = [sorted({0, points.recall.size - 1}) for points in curves]
    for limit in range(2, most + 1):
        for number, (points, thinned) in enumerate(zip(curves, thinner.thin(limit), strict=True)):
            rows = rows_of(points, thinned.points)
            if limit > 2:
                farthest, candidates = one_by_one(points, kept[number])
                further = set(rows) - set(kept[number])
                assert len(further) == (farthest > NEGLIGIBLE)
                assert further <= set(candidates)
                kept[number] = sorted({*kept[number], *further})
            assert rows == kept[number]
            assert thinned.max_error == pytest.approx(one_by_one(points, rows)[0], abs=ROUNDING)


@settings(max_examples=60, deadline=None)
@given(curves=CURVES, limit=st.integers(2, 30), more=st.integers(0, 30))
def test_what_was_prepared_for_more_points_thins_to_fewer_as_if_prepared_for_them(
    curves: list[PrPoints], limit: int, more: int
) -> None:
    prepared = Thinner(curves, limit + more).thin(limit)
    for found, expected in zip(prepared, Thinner(curves, limit).thin(limit), strict=True):
        assert found.max_error == expected.max_error
        for name in PrPoints.__slots__:
            np.testing.assert_array_equal(getattr(found.points, name), getattr(expected.points, name))


def test_a_half_that_is_farther_off_than_its_whole_was_goes_by_its_own_distance() -> None:
    """M8's example: 0.06 and 0.09 from the line at first, then 0.108 and 0.137."""
    points = points_of([0, 0.25, 0.5, 0.75, 1], [0.5, 0.44, 0.6, 0.41, 0.5])
    thinner = Thinner([points], 5)
    kept = [
        (rows_of(points, thinned.points), round(thinned.max_error, 3)) for [thinned] in map(thinner.thin, (2, 3, 4))
    ]
    assert kept == [([0, 4], 0.1), ([0, 2, 4], 0.137), ([0, 2, 3, 4], 0.108)]


@pytest.mark.timeout(60)
def test_right_and_wrong_in_turn_a_half_million_times_do_not_take_minutes() -> None:
    points = detected(np.arange(500_000) % 2 == 0)
    [thinned] = Thinner([points], 5000).thin(5000)
    assert thinned.points.recall.size == 5000
    rows = rows_of(points, thinned.points)
    assert thinned.max_error == pytest.approx(
        max(distance(points, row, a, b) for a, b in itertools.pairwise(rows) for row in range(a + 1, b)), abs=ROUNDING
    )


def test_a_perfect_models_curve_is_two_points() -> None:
    [thinned] = Thinner([detected(np.ones(30_000, np.bool_))], 100).thin(100)
    assert (thinned.points.recall.tolist(), thinned.max_error) == ([1 / 30_000, 1.0], 0.0)


def test_of_equal_points_the_first_and_the_last_are_kept() -> None:
    points = points_of([0.5] * 1000, [0.5] * 1000)
    [thinned] = Thinner([points], 100).thin(100)
    assert (rows_of(points, thinned.points), thinned.max_error) == ([0, 999], 0.0)


def test_a_corner_is_taken_in_before_a_bulge() -> None:
    """From (0, 1) straight to (0.8, 1), down to (1, 0): the corner, 0.196 from the line, leaves the bulge at 0.02."""
    points = PrPoints(
        np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0.0, 0.4, 0.8, 1.0]), np.array([1.0, 0.98, 1.0, 0.0])
    )
    [thinned] = Thinner([points], 3).thin(3)
    assert thinned.points.threshold.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert thinned.max_error == pytest.approx(0.02)


def test_a_curve_of_one_point_or_none_stays_as_it_is() -> None:
    nothing = PrPoints(np.empty(0, np.float32), np.empty(0), np.empty(0))
    one = PrPoints(np.array([0.5], np.float32), np.array([1.0]), np.array([1.0]))
    sizes = [(thinned.points.recall.size, thinned.max_error) for thinned in Thinner([nothing, one, nothing], 2).thin(2)]
    assert sizes == [(0, 0.0), (1, 0.0), (0, 0.0)]


def test_thinning_to_fewer_than_two_points_or_to_more_than_were_prepared_is_refused() -> None:
    with pytest.raises(ValueError, match="most"):
        Thinner([detected(np.ones(3, np.bool_))], 1)
    thinner = Thinner([detected(np.ones(3, np.bool_))], 5)
    for limit in (1, 6):
        with pytest.raises(ValueError, match="limit"):
            thinner.thin(limit)


def test_of_no_curves_there_are_none() -> None:
    assert Thinner([], 5).thin(3) == []
