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


def recommend(
    validation: ThresholdCurves, test: ThresholdCurves, classes: int, goals: Mapping[Goal, float | None]
) -> list[Recommendation]:
    """Each goal for all classes together, then for each class; `goals` maps to the precision or recall wanted."""
    found = []
    for label in (None, *range(classes)):
        points = validation.points(label)
        for goal, wanted in goals.items():
            threshold = choose(points, goal, wanted)
            counts = (None, None) if threshold is None else (validation.at(label, threshold), test.at(label, threshold))
            found.append(Recommendation(label, goal, wanted, threshold, *counts))
    return found


def choose(points: PrPoints, goal: Goal, wanted: float | None = None) -> float | None:
    """The threshold of a curve that serves the goal; None where none does (M12)."""
    if goal is Goal.BEST_F1:
        total = points.precision + points.recall
        if not (total > 0).any():
            return None
        f1 = np.divide(2 * points.precision * points.recall, total, out=np.zeros_like(total), where=total > 0)
        # Equal F1 may differ in the last digit, since precision and recall were rounded before.
        return float(points.threshold[int((f1 >= f1.max() * (1 - 1e-12)).argmax())])
    assert wanted is not None, "a precision or a recall is wanted"
    if goal is Goal.PRECISION:
        enough = np.flatnonzero(points.precision >= wanted)
        return float(points.threshold[enough[-1]]) if enough.size else None
    # Recall only grows as the threshold falls.
    first = int(np.searchsorted(points.recall, wanted, "left"))
    return float(points.threshold[first]) if first < points.recall.size else None


def wilson(part: int, whole: int) -> Interval | None:
    """The score interval of a share of independent draws (M13); None of nothing."""
    if not whole:
        return None
    share, z2 = part / whole, _Z**2
    middle = (share + z2 / (2 * whole)) / (1 + z2 / whole)
    half = _Z / (1 + z2 / whole) * math.sqrt(share * (1 - share) / whole + z2 / (4 * whole**2))
    # Rounding may leave a bound a hair outside of what a share can be, or short of it.
    return Interval(0.0 if part == 0 else middle - half, 1.0 if part == whole else middle + half)
