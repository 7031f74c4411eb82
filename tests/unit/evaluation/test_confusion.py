"""The confusion matrix (M11): by hand, and against counting box by box."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation.confusion import confusion_matrix
from saucer.evaluation.matching import match
from saucer.evaluation.metrics import ThresholdCurves
from saucer.evaluation.truth import from_coco
from tests.unit.evaluation.generated import Row, TruthRow, columns, generate, truth_of
from tests.unit.evaluation.reference import confusion_at

CUP, PLATE = 0, 1
A = (0.0, 0.0, 10.0, 10.0)
B = (20.0, 0.0, 30.0, 10.0)
C = (40.0, 0.0, 50.0, 10.0)
THIRD_OF_C = (40.0, 0.0, 50.0, 3.3)
FAR = (80.0, 80.0, 90.0, 90.0)


def matrix(truths: list[TruthRow], rows: list[Row], threshold: float) -> list[list[int]]:
    scored = match(truth_of([1], ["cup", "plate"], truths), columns([1], rows))
    found: list[list[int]] = confusion_matrix(scored, threshold).tolist()
    return found


def test_a_table_by_hand() -> None:
    """Cup A is found, plate B taken for a cup, cup C boxed poorly; a plate is seen where nothing is."""
    truths = [(1, CUP, A, False), (1, PLATE, B, False), (1, CUP, C, False)]
    rows: list[Row] = [(1, CUP, A, 0.9), (1, CUP, B, 0.8), (1, CUP, THIRD_OF_C, 0.7), (1, PLATE, FAR, 0.6)]
    assert matrix(truths, rows, 0.5) == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert matrix(truths, rows, 0.65) == [[1, 0, 1], [1, 0, 0], [1, 0, 0]], "the plate seen is below"
    assert matrix(truths, rows, 0.85) == [[1, 0, 1], [0, 0, 1], [0, 0, 0]], "B is missed now"


def test_a_truth_that_is_found_is_not_confused_and_the_surplus_box_stands_in_the_background() -> None:
    assert matrix([(1, CUP, A, False)], [(1, CUP, A, 0.7), (1, PLATE, A, 0.9)], 0.5) == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_of_two_that_are_confused_with_a_truth_the_better_scored_stands_for_it() -> None:
    scored = match(
        truth_of([1], ["cup", "plate", "bowl"], [(1, CUP, A, False)]),
        columns([1], [(1, 1, A, 0.6), (1, 2, A, 0.8)]),
    )
    assert confusion_matrix(scored, 0.5).tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_crowds_and_what_lies_in_them_count_as_nothing() -> None:
    assert matrix([(1, CUP, A, True)], [(1, CUP, A, 0.9)], 0.5) == [[0] * 3] * 3


def test_a_threshold_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold"):
        matrix([], [], math.nan)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.integers(0, 21))
def test_it_equals_the_plain_reference_and_adds_up_to_the_counts(seed: int, level: int) -> None:
    labels, classes, detections = generate(seed)
    truth = from_coco(labels, classes)
    threshold = float(np.float32(level / 20))
    scored = match(truth, detections)
    found = confusion_matrix(scored, threshold)
    assert found.tolist() == confusion_at(truth, detections, threshold)
    for label, counts in enumerate(ThresholdCurves(scored).per_class(threshold)):
        assert found[label].sum() == counts.truths
        assert found[:, label].sum() == counts.true_positives + counts.false_positives
        assert found[label, label] == counts.true_positives
