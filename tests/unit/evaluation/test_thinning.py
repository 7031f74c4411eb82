"""Curves thinned for drawing, against the rule done one point at a time."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation.thinning import PrPoints, thin

Steps = list[tuple[bool, int]]
STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=1, max_size=80)


def curve(steps: Steps) -> PrPoints:
    """Of runs of right and wrong detections, each of a score of its own."""
    hit = np.array(list(itertools.chain.from_iterable([good] * count for good, count in steps)), np.bool_)
    seen = np.arange(1, hit.size + 1)
    return PrPoints(
        (1 - seen / (hit.size + 1)).astype(np.float32), np.cumsum(hit) / max(hit.sum(), 1), np.cumsum(hit) / seen
    )


def distance(points: PrPoints, row: int, first: int, last: int) -> float:
    """From a point to a segment, in complex numbers."""
    p, a, b = (complex(points.recall[place], points.precision[place]) for place in (row, first, last))
    if a == b:
        return abs(p - a)
    share = ((p - a) * (b - a).conjugate()).real / abs(b - a) ** 2
    return abs(p - (a + min(max(share, 0.0), 1.0) * (b - a)))


def one_by_one(points: PrPoints, limit: int) -> float:
    """The error that Douglas and Peucker's rule leaves, worst first."""

    def gap(first: int, last: int) -> tuple[float, int, int, int]:
        inside = [(-distance(points, row, first, last), row) for row in range(first + 1, last)]
        worst = min(inside, default=(0.0, first))
        return worst[0], first, worst[1], last

    gaps = [gap(0, points.recall.size - 1)]
    for _ in range(limit - 2):
        if gaps[0][0] > -1e-12:
            break
        _, first, worst, last = heapq.heappop(gaps)
        heapq.heappush(gaps, gap(first, worst))
        heapq.heappush(gaps, gap(worst, last))
    return -gaps[0][0]


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, limit=st.integers(2, 30))
def test_a_thinned_curve_keeps_ends_limit_and_stated_error(steps: Steps, limit: int) -> None:
    points = curve(steps)
    [thinned] = thin([points], limit)
    kept = np.flatnonzero(np.isin(points.threshold, thinned.points.threshold))
    assert kept.size <= limit
    assert kept[0] == 0
    assert kept[-1] == points.recall.size - 1
    off = 0.0
    for first, last in itertools.pairwise(kept.tolist()):
        for row in range(first + 1, last):
            off = max(off, distance(points, row, first, last))
    assert off == pytest.approx(thinned.max_error, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_many_curves_at_once_are_thinned_as_the_rule_says_of_each(seed: int) -> None:
    random = np.random.default_rng(seed)
    curves = [
        curve(
            [
                (bool(good), int(count))
                for good, count in np.column_stack([random.random(n) < 0.6, random.integers(1, 4, n)])
            ]
        )
        for n in random.integers(1, 120, 4).tolist()
    ]
    limit = int(random.integers(2, 25))
    for points, thinned in zip(curves, thin(curves, limit), strict=True):
        assert thinned.max_error == pytest.approx(one_by_one(points, limit), abs=1e-12)


def test_a_corner_is_taken_in_before_a_bulge() -> None:
    """From (0, 1) straight to (0.8, 1), down to (1, 0): the corner, 0.196 from the line, leaves the bulge at 0.02."""
    points = PrPoints(
        np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0.0, 0.4, 0.8, 1.0]), np.array([1.0, 0.98, 1.0, 0.0])
    )
    [thinned] = thin([points], 3)
    assert thinned.points.threshold.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert thinned.max_error == pytest.approx(0.02)


def test_a_curve_of_one_point_or_none_stays_as_it_is() -> None:
    nothing = PrPoints(np.empty(0, np.float32), np.empty(0), np.empty(0))
    one = PrPoints(np.array([0.5], np.float32), np.array([1.0]), np.array([1.0]))
    sizes = [(thinned.points.recall.size, thinned.max_error) for thinned in thin([nothing, one, nothing], 2)]
    assert sizes == [(0, 0.0), (1, 0.0), (0, 0.0)]


def test_thinning_to_fewer_than_two_points_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        thin([curve([(True, 3)])], 1)
