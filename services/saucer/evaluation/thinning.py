"""Curves of few points for drawing, with the greatest distance of what was left out (M8).

Douglas and Peucker's rule (1973), farthest first: of all points left out, that farthest from the line drawn in its
place is taken in, until there are enough. So the points of a smaller number are the first of those of a greater, and
the distance of the next one is the error of those before it: what is done once, for the most, answers any number.

Each point that is taken in asks for the farthest of two gaps. Where right and wrong detections alternate, one of them
stays about as long as the curve, and to go through all its points each time would take minutes. Hershberger and
Snoeyink (1992) find the farthest by convex hulls instead; here quadrilaterals do, since numpy makes them for all points
at once. The points stand in *runs* of equal length, these in runs of runs, and each has a quadrilateral around it. The
distance to a segment is a convex function of the place, so no point of a run is farther than one of the four corners:
a run whose corners are nearer than a point that is known already is passed over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_POINTS = 2
"""A curve has a beginning and an end."""
NEGLIGIBLE = 1e-12
"""A distance below it is rounding and counts as none: a straight curve has no third point."""
ROUNDING = 1e-14
"""By less than this a point may be computed as farther than the corners around it, all being in 0 … 1.

Where a side is so steep that more is lost, its corners lie far outside.
"""
RUN = 64
"""Points of a run, and runs of a run of runs; a multiple of 4, as a run has quarters."""
POINTS_AT_ONCE = 1 << 18
"""So many are looked at while quadrilaterals are made: some 20 MB. It bounds the memory, not the input."""

Rows = NDArray[np.intp]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PrPoints:
    """A precision-recall curve of k points (M8), by falling threshold: one per distinct score.

    `threshold` float32 [k], `recall` and `precision` float64 [k]: at that threshold, both in 0 … 1.
    """

    threshold: NDArray[np.float32]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]

    def only(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> "PrPoints":
        """Some of them."""
        return PrPoints(self.threshold[rows], self.recall[rows], self.precision[rows])


@dataclass(frozen=True, slots=True, eq=False)
class ThinnedPoints:
    """Some points of a curve; every point left out lies within `max_error` of the line drawn through them (M8)."""

    points: PrPoints
    max_error: float


class Thinner:
    """Thins curves to any number of points up to a most; what takes long is done once, for the most."""

    def __init__(self, curves: Sequence[PrPoints], most: int) -> None:
        """Raises ValueError: most < LEAST_POINTS."""
        if most < LEAST_POINTS:
            raise ValueError(f"most: at least {LEAST_POINTS} points")
        self._most = most
        joined = _joined(curves)
        sizes = np.array([curve.recall.size for curve in curves], np.intp)
        ends = np.cumsum(sizes)
        least, self._error = _farthest_first(_Runs(joined.recall, joined.precision), ends - sizes, ends - 1, most)
        kept = np.flatnonzero(least <= most)
        self._points, self._least = joined.only(kept), least[kept]
        self._bounds = np.searchsorted(kept, np.append(0, ends))

    def thin(self, limit: int) -> list[ThinnedPoints]:
        """At most `limit` points of each curve, first and last among them, and the exact greatest distance of the rest.

        Distances are in the plane of recall and precision, to the segment.

        Raises:
            ValueError: `limit` is below LEAST_POINTS or above the most.
        """
        if not LEAST_POINTS <= limit <= self._most:
            raise ValueError(f"limit: {LEAST_POINTS} to {self._most} points")
        kept = self._least <= limit
        points = self._points.only(kept)
        bounds = np.append(0, np.cumsum(kept))[self._bounds].tolist()
        errors = self._error[:, limit - LEAST_POINTS].tolist()
        return [
            ThinnedPoints(points.only(slice(start, end)), error)
            for start, end, error in zip(bounds[:-1], bounds[1:], errors, strict=True)
        ]

    @property
    def size_bytes(self) -> int:
        """What it takes of the memory."""
        points = (self._points.threshold, self._points.recall, self._points.precision)
        return sum(column.nbytes for column in (*points, self._least, self._bounds, self._error))


def _joined(curves: Sequence[PrPoints]) -> PrPoints:
    empty = PrPoints(np.empty(0, np.float32), np.empty(0), np.empty(0))
    return PrPoints(*(np.concatenate([getattr(c, name) for c in (empty, *curves)]) for name in PrPoints.__slots__))


def _farthest_first(runs: "_Runs", first: Rows, last: Rows, most: int) -> tuple[Rows, Numbers]:
    """Of each point the least limit that takes it in, beyond `most` if none does; by curve the error of each limit.

    One point of each curve at a time. A gap stands in a column; of its halves the left one stays there.
    """
    columns = most - LEAST_POINTS + 1
    firsts, lasts, points = (np.zeros((first.size, columns), np.intp) for _ in range(3))
    distances, errors = np.zeros((first.size, columns)), np.zeros((first.size, columns))
    least: Rows = np.full(runs.count, most + 1)
    filled = np.flatnonzero(first <= last)
    least[first[filled]] = least[last[filled]] = LEAST_POINTS
    firsts[:, 0], lasts[:, 0] = first, last
    points[filled, 0], distances[filled, 0] = runs.farthest(first[filled], last[filled])
    for column in range(1, columns + 1):
        gap = distances[:, :column].argmax(axis=1)
        errors[:, column - 1] = distances[np.arange(gap.size), gap]
        curve = np.flatnonzero(errors[:, column - 1])
        if column == columns or not curve.size:
            break
        gap = gap[curve]
        start, middle, end = firsts[curve, gap], points[curve, gap], lasts[curve, gap]
        least[middle] = LEAST_POINTS + column
        lasts[curve, gap], firsts[curve, column], lasts[curve, column] = middle, middle, end
        point, distance = runs.farthest(np.concatenate([start, middle]), np.concatenate([middle, end]))
        points[curve, gap], points[curve, column] = point.reshape(2, -1)
        distances[curve, gap], distances[curve, column] = distance.reshape(2, -1)
    return least, errors


@dataclass(frozen=True, slots=True, eq=False)
class _Around:
    """Quadrilaterals around r runs, of which two sides are upright, and each other one touches a point.

    `outermost` [2, r]: these two points; `x`, `y` [6, r]: of the two and of the four corners.
    """

    outermost: Rows
    x: Numbers
    y: Numbers


class _Runs:
    """Points in a plane, one after the other, among which the one farthest from a segment is found."""

    def __init__(self, x: Numbers, y: Numbers) -> None:
        self.count = x.size
        size = 1
        while size * RUN**2 <= self.count:
            size *= RUN
        # The last run is filled up with its last point.
        self._x, self._y = (np.pad(column, (0, -self.count % size), mode="edge") for column in (x, y))
        self._levels: list[_Around] = []
        while size > 1:
            self._levels.append(self._around(size))
            size //= RUN

    def _around(self, size: int) -> _Around:
        step = max(1, POINTS_AT_ONCE // size)
        pieces = [_around(self._x, self._y, size, run, run + step) for run in range(0, self._x.size // size, step)]
        return _Around(*(np.concatenate([getattr(p, name) for p in pieces], axis=1) for name in _Around.__slots__))

    def farthest(self, first: Rows, last: Rows) -> tuple[Rows, Numbers]:
        """Of the points between two, the one farthest from the segment that joins these, and how far; -1 and 0: none.

        For many pairs at once; of points as far as each other the first.
        """
        point: Rows = np.full(first.size, -1)
        most = np.full(first.size, NEGLIGIBLE)
        segments = _Segments(self._x[first], self._y[first], self._x[last], self._y[last])
        low, high = first + 1, np.maximum(last, first + 1)
        size = RUN ** len(self._levels)
        of, run = _ranges(low // size, -(-high // size))
        for level in self._levels:
            distance = segments.distance(level.x[:, run], level.y[:, run], of)
            outermost = level.outermost[:, run]
            between = (outermost >= low[of]) & (outermost < high[of])
            np.maximum.at(most, of, np.where(between, distance[:2], 0.0).max(axis=0))
            hopeful = distance.max(axis=0) >= most[of] - ROUNDING
            of, run = of[hopeful], run[hopeful]
            size //= RUN
            begin, end = np.maximum(run * RUN, low[of] // size), np.minimum((run + 1) * RUN, -(-high[of] // size))
            which, run = _ranges(begin, end)
            of = of[which]
        distance = segments.distance(self._x[run], self._y[run], of)
        np.maximum.at(most, of, distance)
        found = np.flatnonzero(distance == most[of])[::-1]
        point[of[found]] = run[found]
        return point, np.where(point < 0, 0.0, most)


def _around(x: Numbers, y: Numbers, size: int, begin: int, end: int) -> _Around:
    """Of some of the runs of that many points: from one run up to another."""
    x, y = (column[begin * size : end * size].reshape(-1, size) for column in (x, y))
    run = np.arange(x.shape[0])
    # Not of the first point and the last: a run may hold the end of one curve and the beginning of another.
    left, right = x.min(axis=1), x.max(axis=1)
    points, corners, outermost = [], [], []
    for side in (1.0, -1.0):
        height = side * y
        # Parallel to the line through the highest of the first quarter and of the last, but over all points.
        one = height[:, : size // 4].argmax(axis=1)
        other = height[:, -size // 4 :].argmax(axis=1) + size - size // 4
        way = x[run, other] - x[run, one]
        slope = np.divide(height[run, other] - height[run, one], way, out=np.zeros_like(way), where=way > 0)
        over = height - slope[:, None] * (x - left[:, None])
        highest = over.argmax(axis=1)
        top = over[run, highest]
        points.append((x[run, highest], y[run, highest]))
        corners += [(left, side * top), (right, side * (top + slope * (right - left)))]
        outermost.append(highest + (begin + run) * size)
    xs, ys = zip(*points, *corners, strict=True)
    return _Around(np.stack(outermost), np.stack(xs), np.stack(ys))


class _Segments:
    """Segments of a line, by number."""

    def __init__(self, from_x: Numbers, from_y: Numbers, to_x: Numbers, to_y: Numbers) -> None:
        self._from_x, self._from_y = from_x, from_y
        self._way_x, self._way_y = to_x - from_x, to_y - from_y
        length = self._way_x**2 + self._way_y**2
        # One that ends where it begins has no direction: then the distance is that to the point.
        self._inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)

    def distance(self, x: Numbers, y: Numbers, segment: Rows) -> Numbers:
        """Of points, each to the segment of that number."""
        x, y = x - self._from_x[segment], y - self._from_y[segment]
        way_x, way_y = self._way_x[segment], self._way_y[segment]
        along = np.minimum(np.maximum((x * way_x + y * way_y) * self._inverse[segment], 0.0), 1.0)
        squared: Numbers = (x - along * way_x) ** 2 + (y - along * way_y) ** 2
        return np.sqrt(squared)


def _ranges(begin: Rows, end: Rows) -> tuple[Rows, Rows]:
    """The numbers of all ranges, one range after the other, and before them of which range each is."""
    counts = end - begin
    of = np.repeat(np.arange(begin.size), counts)
    return of, np.arange(of.size) + (begin - np.cumsum(counts) + counts)[of]
