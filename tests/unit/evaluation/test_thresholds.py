"""Counts, curves and AP at a threshold: by hand, and against filtering first and matching afterwards."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation.matching import MismatchError, Scored, StoredFormError, Verdict, match
from saucer.evaluation.metrics import Counts, ThresholdCurves, coco_metrics
from saucer.evaluation.truth import from_coco
from saucer.serving.detections import Detections
from tests.unit.evaluation.generated import Columns, Row, TruthRow, columns, generate, truth_of
from tests.unit.evaluation.reference import answer_at

CUP, PLATE = 0, 1
CLASSES = ["cup", "plate"]
A = (0.0, 0.0, 10.0, 10.0)
B = (20.0, 0.0, 30.0, 10.0)
C = (40.0, 0.0, 50.0, 10.0)
HALF_OF_A = (0.0, 0.0, 10.0, 5.0)
"""IoU with A: 50 / 100 = 0.5 exactly."""


def curves_of(truths: list[TruthRow], rows: list[Row], images: tuple[int, ...] = (1,)) -> ThresholdCurves:
    return ThresholdCurves(match(truth_of(list(images), CLASSES, truths), columns(list(images), rows)))


def three_cups() -> ThresholdCurves:
    """Truths A, B, C; found: A at 0.9, B at 0.5; a false one at 0.7."""
    return curves_of(
        [(1, CUP, A, False), (1, CUP, B, False), (1, CUP, C, False)],
        [(1, CUP, A, 0.9), (1, CUP, (70, 70, 80, 80), 0.7), (1, CUP, B, 0.5)],
    )


@pytest.mark.parametrize(
    ("threshold", "tp", "fp", "precision", "recall", "f1"),
    [
        (0.0, 2, 1, 2 / 3, 2 / 3, 2 / 3),
        (0.5, 2, 1, 2 / 3, 2 / 3, 2 / 3),
        (0.6, 1, 1, 1 / 2, 1 / 3, 2 / 5),
        (0.8, 1, 0, 1.0, 1 / 3, 1 / 2),
        (0.95, 0, 0, None, 0.0, 0.0),
    ],
)
def test_counts_by_hand(threshold: float, tp: int, fp: int, precision: float | None, recall: float, f1: float) -> None:
    counts = three_cups().of_class(CUP, threshold)
    assert counts == Counts(3, tp, fp)
    assert counts.false_negatives == 3 - tp
    assert (counts.precision, counts.recall, counts.f1) == (precision, recall, f1)
    assert three_cups().overall(threshold) == counts


def test_ap_50_by_hand_and_above_a_threshold() -> None:
    # Recall 1/3 at precision 1, recall 2/3 at precision 2/3: of the 101 recalls 0 … 0.33 are 34, 0.34 … 0.66 are 33.
    curves = three_cups()
    assert curves.map_50_above_threshold(0.0) == pytest.approx((34 * 1 + 33 * 2 / 3) / 101, abs=1e-12)
    # Above 0.8 only A is left: 34 recalls at precision 1.
    assert curves.map_50_above_threshold(0.8) == pytest.approx(34 / 101, abs=1e-12)
    assert curves.map_50_above_threshold(0.95) == 0.0
    assert curves.ap_50_above_threshold(0.8)[PLATE] is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0, 1, width=32))
def test_ap_from_what_is_stored_is_cocos_and_no_threshold_raises_that_of_what_is_above_it(
    seed: int, threshold: float
) -> None:
    labels, classes, detections = generate(seed)
    truth = from_coco(labels, classes)
    coco = coco_metrics(truth, detections)
    curves = ThresholdCurves(match(truth, detections))
    before = curves.ap_50_above_threshold(0.0)
    above = curves.ap_50_above_threshold(threshold)
    assert [value is None for value in before] == [value is None for value in coco.ap_50]
    for all_scores, of_coco, at_threshold in zip(before, coco.ap_50, above, strict=True):
        if all_scores is not None and of_coco is not None and at_threshold is not None:
            assert all_scores == pytest.approx(of_coco, abs=1e-12)
            assert at_threshold <= all_scores


def test_weighted_map_counts_a_class_as_often_as_it_occurs() -> None:
    truth = truth_of([1], CLASSES, [(1, CUP, A, False), (1, CUP, B, False), (1, CUP, C, False), (1, PLATE, A, False)])
    found = coco_metrics(truth, columns([1], [(1, PLATE, A, 0.9)]))
    # Not exact: COCO adds 2.2e-16 to the denominator of precision.
    assert found.ap == pytest.approx((0.0, 1.0), abs=1e-12)
    assert found.map == pytest.approx(0.5, abs=1e-12)
    assert found.map_weighted == pytest.approx(0.25, abs=1e-12)
    assert found.support == (3, 1)


def test_a_score_equal_to_the_threshold_counts_as_float32() -> None:
    curves = curves_of([(1, CUP, A, False)], [(1, CUP, A, 0.7)])
    # 0.7 as float32 is below 0.7 as float64; nobody who asks for 0.7 should have to know.
    assert curves.overall(0.7).true_positives == 1
    assert curves.overall(0.7001).true_positives == 0


def test_iou_of_exactly_half_is_a_match_and_below_is_none() -> None:
    assert curves_of([(1, CUP, A, False)], [(1, CUP, HALF_OF_A, 0.7)]).overall(0).true_positives == 1
    assert curves_of([(1, CUP, A, False)], [(1, CUP, (0, 0, 10, 4.9), 0.7)]).overall(0).true_positives == 0


def test_the_second_detection_of_a_truth_is_a_false_positive_however_good_its_box() -> None:
    curves = curves_of([(1, CUP, A, False)], [(1, CUP, A, 0.6), (1, CUP, HALF_OF_A, 0.7)])
    assert curves.overall(0.0) == Counts(1, 1, 1)
    assert curves.overall(0.65) == Counts(1, 1, 0)


def test_detections_in_a_crowd_count_as_nothing_and_the_crowd_is_not_missed() -> None:
    crowd = (0.0, 0.0, 100.0, 100.0)
    curves = curves_of([(1, CUP, crowd, True)], [(1, CUP, A, 0.9), (1, CUP, B, 0.8), (1, PLATE, A, 0.7)])
    assert curves.of_class(CUP, 0.0) == Counts(0, 0, 0)
    assert curves.of_class(PLATE, 0.0) == Counts(0, 0, 1)


def test_no_truth_leaves_recall_unsaid_and_no_detection_precision() -> None:
    nothing_to_find = curves_of([], [(1, CUP, A, 0.9)]).overall(0.5)
    assert (nothing_to_find.precision, nothing_to_find.recall, nothing_to_find.f1) == (0.0, None, 0.0)
    nothing_found = curves_of([(1, CUP, A, False)], []).overall(0.5)
    assert (nothing_found.precision, nothing_found.recall, nothing_found.f1) == (None, 0.0, 0.0)
    neither = curves_of([], []).overall(0.5)
    assert (neither.precision, neither.recall, neither.f1) == (None, None, None)


def test_a_threshold_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold"):
        three_cups().overall(math.nan)


def test_a_displaced_detection_takes_its_next_best_truth() -> None:
    # By score: the first takes A; the second also likes A best, and has to take the shifted truth.
    shifted = (0.0, 0.0, 10.0, 8.0)
    scored = match(
        truth_of([1], CLASSES, [(1, CUP, A, False), (1, CUP, shifted, False)]),
        columns([1], [(1, CUP, (0, 0, 10, 9.5), 0.4), (1, CUP, A, 0.8)]),
    )
    assert scored.truth.tolist() == [1, 0]
    assert scored.found_score.tolist() == [np.float32(0.8), np.float32(0.4)]


def test_a_detection_pushed_off_its_truth_pushes_the_next_in_turn() -> None:
    # Best first: 0.9 takes A; 0.8 wants A and gets the second; 0.7 wants the second and gets the third.
    second, third = (0.0, 0.0, 10.0, 8.0), (0.0, 0.0, 10.0, 6.5)
    scored = match(
        truth_of([1], CLASSES, [(1, CUP, third, False), (1, CUP, second, False), (1, CUP, A, False)]),
        columns([1], [(1, CUP, second, 0.7), (1, CUP, (0, 0, 10, 9.5), 0.8), (1, CUP, A, 0.9)]),
    )
    assert scored.truth.tolist() == [0, 1, 2]


def test_of_truths_that_overlap_alike_the_last_in_the_label_file_is_taken_first() -> None:
    scored = match(
        truth_of([1], CLASSES, [(1, CUP, A, False), (1, CUP, A, False)]),
        columns([1], [(1, CUP, A, 0.8), (1, CUP, A, 0.8)]),
    )
    assert scored.truth.tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(40))
def test_every_threshold_from_the_one_pass_equals_filtering_first_and_matching_afterwards(seed: int) -> None:
    labels, classes, detections = generate(seed)
    truth = from_coco(labels, classes)
    curves = ThresholdCurves(match(truth, detections))
    every = np.unique(np.append(detections.score, np.array([0.0, 2.0], np.float32)))
    for threshold in every[np.linspace(0, every.size - 1, min(every.size, 8)).astype(int)].tolist():
        answer = answer_at(truth, detections, threshold)
        wrong = [detection for _, detection, _ in answer.faults if detection is not None]
        expected = [
            Counts(
                int(((truth.label == label) & ~truth.crowd).sum()),
                sum(detections.label[detection] == label for detection in answer.found),
                sum(detections.label[detection] == label for detection in wrong),
            )
            for label in range(len(classes))
        ]
        assert curves.per_class(threshold) == expected
        total = curves.overall(threshold)
        assert total.true_positives == len(answer.found)
        assert total.false_positives == len(wrong)
        assert total.truths == int((~truth.crowd).sum())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0, 1, width=32))
def test_dropping_what_is_below_a_threshold_leaves_the_matching_of_the_rest(seed: int, threshold: float) -> None:
    labels, classes, detections = generate(seed)
    truth = from_coco(labels, classes)
    whole, filtered = match(truth, detections), match(truth, detections.above(threshold))
    kept = detections.score >= np.float32(threshold)
    np.testing.assert_array_equal(whole.verdict[kept], filtered.verdict)
    np.testing.assert_array_equal(whole.truth[kept], filtered.truth)
    np.testing.assert_array_equal(whole.iou[kept], filtered.iou)
    np.testing.assert_array_equal(whole.beyond_cap[kept], filtered.beyond_cap)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_points_of_a_curve_are_what_the_counts_say_at_their_thresholds(seed: int) -> None:
    labels, classes, detections = generate(seed)
    curves = ThresholdCurves(match(from_coco(labels, classes), detections))
    for label, points in [(None, curves.points()), *((label, curves.points(label)) for label in range(len(classes)))]:
        assert (np.diff(points.threshold) < 0).all()
        assert (np.diff(points.recall) >= 0).all()
        for threshold, recall, precision in zip(
            points.threshold.tolist(), points.recall.tolist(), points.precision.tolist(), strict=True
        ):
            counts = curves.overall(threshold) if label is None else curves.of_class(label, threshold)
            assert (recall, precision) == (counts.recall, counts.precision)


def test_a_curve_without_truth_has_no_points() -> None:
    assert curves_of([], [(1, CUP, A, 0.9)]).points().threshold.size == 0


def test_the_stored_form_answers_as_the_original() -> None:
    labels, classes, detections = generate(3)
    scored = match(from_coco(labels, classes), detections)
    again = Scored.from_bytes(scored.to_bytes())
    for name in (field.name for field in dataclasses.fields(Scored)):
        np.testing.assert_array_equal(getattr(again, name), getattr(scored, name), strict=True)
    assert ThresholdCurves(again).per_class(0.4) == ThresholdCurves(scored).per_class(0.4)


def test_other_bytes_are_no_stored_form() -> None:
    whole = match(truth_of([1], CLASSES, []), columns([1], [])).to_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2]):
        with pytest.raises(StoredFormError):
            Scored.from_bytes(data)


def test_the_detections_that_serving_stores_are_taken_as_they_are() -> None:
    one = columns([1, 2], [(2, CUP, A, 0.9)])
    stored = Detections(one.images, one.image_id, one.box, one.score, one.label)
    scored = match(truth_of([1, 2], CLASSES, [(2, CUP, A, False)]), stored)
    assert scored.verdict.tolist() == [Verdict.TRUE_POSITIVE]


def broken(**changed: Any) -> Columns:
    return dataclasses.replace(columns([1], [(1, CUP, A, 0.9)]), **changed)


@pytest.mark.parametrize(
    ("detections", "said"),
    [
        (broken(images=np.array([1, 2])), "2"),
        (broken(images=np.array([], np.int64)), "1 images"),
        (broken(image_id=np.array([5])), "not of the test set"),
        (broken(label=np.array([2], np.int32)), "label"),
        (broken(label=np.array([-1], np.int32)), "label"),
        (broken(score=np.array([np.nan], np.float32)), "finite"),
        (broken(box=np.array([[0, 0, np.inf, 1]], np.float32)), "finite"),
        (broken(box=np.array([[5, 0, 1, 1]], np.float32)), "before it begins"),
        (broken(score=np.array([0.5, 0.6], np.float32)), "length"),
    ],
)
def test_detections_that_do_not_fit_the_truth_are_refused(detections: Columns, said: str) -> None:
    truth = truth_of([1], CLASSES, [(1, CUP, A, False)])
    with pytest.raises(MismatchError, match=said):
        match(truth, detections)
    with pytest.raises(MismatchError, match=said):
        coco_metrics(truth, detections)
