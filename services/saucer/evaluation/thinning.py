"""Curves of few points for drawing, with the greatest distance of what was left out (M8).

Douglas and Peucker's rule (1973), worst first: of all points left out, that farthest from the line drawn in its place
is taken in, until there are enough. Here it is done for all curves at once and level by level, since a thousand small
steps in Python for each class take seconds: each gap between two points is split at its farthest point, and so on. A
point can be taken in once those that split the gaps around it are; so its *rank* is the least distance on the way to
it, the rule takes in those of best rank, and a gap whose rank is below that of enough others need not be split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_POINTS = 2
"""A curve has a beginning and an end."""


@dataclass(frozen=True, slots=True, eq=False)
class PrPoints:
    """A precision-recall curve of k points (M8), by falling threshold: one per distinct score.

    `threshold` float32 [k], `recall` and `precision` float64 [k]: at that threshold, both in 0 … 1.
    """

    threshold: NDArray[np.float32]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]

    def only(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> "PrPoints":
        """Some of them."""
        return PrPoints(self.threshold[rows], self.recall[rows], self.precision[rows])


@dataclass(frozen=True, slots=True, eq=False)
class ThinnedPoints:
    """Some points of a curve; every point left out lies within `max_error` of the line drawn through them (M8)."""

    points: PrPoints
    max_error: float


@dataclass(frozen=True, slots=True)
class _Gaps:
    """Between points that may be taken in; `point` is the farthest of those in it, -1 where it is empty.

    `parent`: number of the gap that this one is a half of, -1 of a whole curve.
    """

    curve: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    parent: NDArray[np.int64]
    point: NDArray[np.int64]
    distance: NDArray[np.float64]
    rank: NDArray[np.float64]


def thin(curves: Sequence[PrPoints], limit: int) -> list[ThinnedPoints]:
    """At most `limit` points of each curve, first and last among them, and the exact greatest distance of the others.

    Distances are in the plane of recall and precision, to the segment.

    Raises:
        ValueError: limit < LEAST_POINTS.
    """
    if limit < LEAST_POINTS:
        raise ValueError(f"limit: at least {LEAST_POINTS} points")
    bent = [curve.only(_ends_of_runs(curve.recall)) for curve in curves]
    sizes = np.array([curve.recall.size for curve in bent], np.int64)
    starts = np.cumsum(sizes) - sizes
    plane = (
        np.concatenate([np.empty(0), *(curve.recall for curve in bent)]),
        np.concatenate([np.empty(0), *(curve.precision for curve in bent)]),
    )
    gaps = _all_gaps(plane, starts, sizes, limit - LEAST_POINTS)
    taken = _taken(gaps, sizes.size, limit - LEAST_POINTS)
    # The distance that a gap leaves counts where it is not split, but the one that it is a half of is.
    left = ~taken & ((gaps.parent < 0) | taken[gaps.parent])
    error = np.zeros(sizes.size)
    np.maximum.at(error, gaps.curve[left], gaps.distance[left])
    kept = np.zeros(plane[0].size, np.bool_)
    kept[gaps.point[taken]] = True
    kept[starts[sizes > 0]] = kept[(starts + sizes - 1)[sizes > 0]] = True
    return [
        ThinnedPoints(curve.only(kept[start : start + size]), float(most))
        for curve, start, size, most in zip(bent, starts.tolist(), sizes.tolist(), error.tolist(), strict=True)
    ]


def _ends_of_runs(recall: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Points of equal recall lie on a line, and the distance to a segment is greatest at one of its ends."""
    ends = np.ones(recall.size, np.bool_)
    ends[1:-1] = (recall[1:-1] != recall[:-2]) | (recall[1:-1] != recall[2:])
    return ends


def _all_gaps(
    plane: tuple[NDArray[np.float64], NDArray[np.float64]],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    wanted: int,
) -> _Gaps:
    """Of those that matter for so many points of each curve, and their halves; parents before halves."""
    some = np.flatnonzero(sizes > 0)
    curve: NDArray[np.int64] = some
    first, last = starts[some], (starts + sizes - 1)[some]
    parent: NDArray[np.int64] = np.full(some.size, -1)
    rank: NDArray[np.float64] = np.full(some.size, np.inf)
    levels: list[_Gaps] = []
    known = 0
    while curve.size:
        point, distance = _farthest(plane, first, last)
        levels.append(_Gaps(curve, first, last, parent, point, distance, np.minimum(rank, distance)))
        level = levels[-1]
        enough = _enough(levels, sizes.size, wanted)
        split = np.flatnonzero((level.rank > 0) & (level.rank >= enough[level.curve]))
        middle = level.point[split]
        curve, rank = np.tile(level.curve[split], 2), np.tile(level.rank[split], 2)
        first, last = np.concatenate([level.first[split], middle]), np.concatenate([middle, level.last[split]])
        parent = np.tile(known + split, 2)
        known += level.curve.size
    return _joined(levels)


def _joined(levels: Sequence[_Gaps]) -> _Gaps:
    nothing = np.empty(0, np.int64)
    empty = _Gaps(nothing, nothing, nothing, nothing, nothing, np.empty(0), np.empty(0))
    return _Gaps(*(np.concatenate([getattr(gaps, name) for gaps in (empty, *levels)]) for name in _Gaps.__slots__))


def _farthest(
    plane: tuple[NDArray[np.float64], NDArray[np.float64]], first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In each gap the point that is farthest from its segment, and how far; -1 and 0 of an empty gap."""
    point, farthest = np.full(first.size, -1), np.zeros(first.size)
    filled = np.flatnonzero(last - first > 1)
    if not filled.size:
        return point, farthest
    start, end = first[filled], last[filled]
    inside = end - start - 1
    begins = np.cumsum(inside) - inside
    within = np.arange(inside.sum()) + np.repeat(start + 1 - begins, inside)
    x, y = (column[within] - np.repeat(column[start], inside) for column in plane)
    way_x, way_y = (column[end] - column[start] for column in plane)
    length = way_x**2 + way_y**2
    # A gap that ends where it begins has no direction: then the distance is that to the point.
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    along = np.clip(
        x * np.repeat(way_x * inverse, inside) + y * np.repeat(way_y * inverse, inside),
        0.0,
        1.0,
    )
    distance = np.hypot(x - along * np.repeat(way_x, inside), y - along * np.repeat(way_y, inside))
    most = np.maximum.reduceat(distance, begins)
    places = np.where(distance == np.repeat(most, inside), within, np.iinfo(np.int64).max)
    point[filled], farthest[filled] = np.minimum.reduceat(places, begins), most
    return point, farthest


def _enough(levels: Sequence[_Gaps], curves: int, wanted: int) -> NDArray[np.float64]:
    """By curve the rank that so many gaps have reached so far; 0 where there are not so many."""
    curve = np.concatenate([gaps.curve for gaps in levels])
    rank = np.concatenate([gaps.rank for gaps in levels])
    order = np.lexsort((-rank, curve))
    ends = np.cumsum(np.bincount(curve, minlength=curves))
    place = ends - np.bincount(curve, minlength=curves) + wanted - 1
    enough = np.full(curves, np.inf if wanted == 0 else 0.0)
    if wanted:
        reached = place < ends
        enough[reached] = rank[order[place[reached]]]
    return enough


def _taken(gaps: _Gaps, curves: int, wanted: int) -> NDArray[np.bool_]:
    """The gaps whose point is taken in: of each curve the best-ranked, of equal ones those split first."""
    order = np.lexsort((np.arange(gaps.curve.size), -gaps.rank, gaps.curve))
    counts = np.bincount(gaps.curve, minlength=curves)
    place = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = np.zeros(order.size, np.bool_)
    taken[order] = place < wanted
    return taken & (gaps.distance > 0)
