"""Thresholds worth starting from, chosen on one set of curves and reported on another (M12, M13)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from saucer.evaluation.metrics import Counts, ThresholdCurves
from saucer.evaluation.thinning import PrPoints

CONFIDENCE = 0.95
"""Of an interval."""
_Z = 1.959963984540054
"""Quantile of the standard normal distribution at (1 + CONFIDENCE) / 2."""


class Goal(StrEnum):
    """What a threshold is chosen for."""

    BEST_F1 = "BEST_F1"
    PRECISION = "PRECISION"
    RECALL = "RECALL"


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a share may lie, with CONFIDENCE; 0 <= low <= high <= 1."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """For a class (its index; None: all together) and a goal: the threshold, and what it does on either split.

    `wanted` is the precision or recall asked for, None for the best F1. Threshold and counts are None where no
    threshold of the validation split reaches the goal.
    """

    label: int | None
    goal: Goal
    wanted: float | None
    threshold: float | None
    validation: Counts | None
    test: Counts | None


class Choices:
    """The thresholds of one curve that a goal can choose (M12): few of its points, so any goal is answered at once."""

    def __init__(self, points: PrPoints) -> None:
        total = points.precision + points.recall
        f1 = np.divide(2 * points.precision * points.recall, total, out=np.zeros_like(total), where=total > 0)
        best = f1.max(initial=0.0)
        # Equal F1 may differ in the last digit, since precision and recall were rounded before.
        self._best_f1 = float(points.threshold[int((f1 >= best * (1 - 1e-12)).argmax())]) if best > 0 else None
        # The last point that reaches a precision is above all that follow it.
        best_after = np.append(np.maximum.accumulate(points.precision[:0:-1])[::-1], -np.inf)[: points.precision.size]
        self._precise = points.only(points.precision > best_after)
        # Recall only grows as the threshold falls; of equal ones the first has fewer false detections.
        self._complete = points.only(np.append(True, points.recall[1:] > points.recall[:-1])[: points.recall.size])

    def of(self, goal: Goal, wanted: float | None = None) -> float | None:
        """The threshold that serves the goal; None where none does. `wanted`: None for the best F1 alone."""
        if goal is Goal.BEST_F1:
            return self._best_f1
        assert wanted is not None, "a precision or a recall is wanted"
        if goal is Goal.PRECISION:
            reaching = int(np.searchsorted(-self._precise.precision, -wanted, "right"))
            return float(self._precise.threshold[reaching - 1]) if reaching else None
        first = int(np.searchsorted(self._complete.recall, wanted, "left"))
        return float(self._complete.threshold[first]) if first < self._complete.recall.size else None

    @property
    def size_bytes(self) -> int:
        """What it takes of the memory."""
        return sum(
            column.nbytes
            for points in (self._precise, self._complete)
            for column in (points.threshold, points.recall, points.precision)
        )


class Recommender:
    """Recommends thresholds on one set of curves; what they offer is worked out once."""

    def __init__(self, curves: ThresholdCurves, classes: int) -> None:
        self._curves = curves
        self._choices = {label: Choices(curves.points(label)) for label in (None, *range(classes))}

    def best_f1(self) -> dict[int | None, float | None]:
        """The threshold with the best F1, overall (None) and by class."""
        return {label: choices.of(Goal.BEST_F1) for label, choices in self._choices.items()}

    def recommend(self, test: ThresholdCurves, goals: Mapping[Goal, float | None]) -> list[Recommendation]:
        """Each goal for all classes together, then for each class; `goals` maps to the precision or recall wanted."""
        found = []
        for label, choices in self._choices.items():
            for goal, wanted in goals.items():
                threshold = choices.of(goal, wanted)
                counts = (
                    (None, None)
                    if threshold is None
                    else (self._curves.at(label, threshold), test.at(label, threshold))
                )
                found.append(Recommendation(label, goal, wanted, threshold, *counts))
        return found

    @property
    def size_bytes(self) -> int:
        """What it takes of the memory, the curves included."""
        return self._curves.size_bytes + sum(choices.size_bytes for choices in self._choices.values())


def wilson(part: int, whole: int) -> Interval | None:
    """The score interval of a share of independent draws (M13); None of nothing."""
    if not whole:
        return None
    share, z2 = part / whole, _Z**2
    middle = (share + z2 / (2 * whole)) / (1 + z2 / whole)
    half = _Z / (1 + z2 / whole) * math.sqrt(share * (1 - share) / whole + z2 / (4 * whole**2))
    # Rounding may leave a bound a hair outside of what a share can be, or short of it.
    return Interval(0.0 if part == 0 else middle - half, 1.0 if part == whole else middle + half)
