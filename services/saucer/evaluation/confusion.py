"""Which class is taken for which at a threshold, with a background for what is not there or not found (M11)."""

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.bad_cases import TruthState, truth_states
from saucer.evaluation.matching import NONE, Scored, Verdict, at_score_precision


def confusion_matrix(scored: Scored, threshold: float) -> NDArray[np.int64]:
    """Boxes, int64 [c + 1, c + 1] for c classes: by the truth's class down and the detection's across, background last.

    Each class's row adds up to its support, each class's column to its detections that count (M7); the background has
    no cell with itself. In O(n + t). Raises ValueError for a threshold that is not a number.
    """
    at = at_score_precision(threshold)
    classes = int(scored.class_count)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    states = truth_states(scored, threshold)
    found = np.bincount(scored.truth_label[states == TruthState.FOUND], minlength=classes)
    matrix[np.arange(classes), np.arange(classes)] = found
    confused = np.flatnonzero(states == TruthState.CONFUSED)
    np.add.at(matrix, (scored.truth_label[confused], scored.label[_taken_for(scored)[confused]]), 1)
    support = np.bincount(scored.truth_label[~scored.truth_crowd], minlength=classes)
    kept = (scored.score >= at) & (scored.verdict != Verdict.IGNORED)
    counted = np.bincount(scored.label[kept], minlength=classes)
    matrix[:classes, classes] = support - matrix[:classes, :classes].sum(axis=1)
    matrix[classes, :classes] = counted - matrix[:classes, :classes].sum(axis=0)
    return matrix


def _taken_for(scored: Scored) -> NDArray[np.int64]:
    """Of each truth the best-scored detection that is confused with it, of equal scores the first; NONE without."""
    taken_for = np.full(scored.truth_label.size, NONE, np.int64)
    confused = np.flatnonzero(scored.verdict == Verdict.CONFUSED)
    best = confused[scored.score[confused] == scored.confused_score[scored.truth[confused]]]
    # Of repeated indices numpy keeps the last assignment, which is the first row.
    taken_for[scored.truth[best[::-1]]] = best[::-1]
    return taken_for
