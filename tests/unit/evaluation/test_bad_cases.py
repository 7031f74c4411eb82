"""What is said to be wrong at a threshold, by hand and against the plain reference, image by image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation.bad_cases import FaultKind, Faults, TruthState, bad_cases, fault_rows, truth_states
from saucer.evaluation.matching import Scored, match
from saucer.evaluation.metrics import ThresholdCurves
from saucer.evaluation.truth import from_coco
from tests.unit.evaluation.generated import Row, TruthRow, columns, generate, truth_of
from tests.unit.evaluation.reference import answer_at

CUP, PLATE = 0, 1
A = (0.0, 0.0, 10.0, 10.0)
FAR = (70.0, 70.0, 80.0, 80.0)
TENTH_OF_A = (0.0, 0.0, 10.0, 1.0)
"""IoU with A: 0.1 exactly."""
BELOW_HALF_OF_A = (0.0, 0.0, 10.0, 4.0)


def scored_of(truths: list[TruthRow], rows: list[Row], images: tuple[int, ...] = (1,)) -> Scored:
    return match(truth_of(list(images), ["cup", "plate"], truths), columns(list(images), rows))


def told(faults: Faults) -> list[tuple[str, int | None, int | None, float]]:
    """(kind, detection, truth, IoU) of every fault."""
    return [
        (fault.kind.name, fault.detection, fault.truth, round(fault.iou, 6))
        for _, of_image in faults.by_image()
        for fault in of_image
    ]


@pytest.mark.parametrize(
    ("truths", "rows", "expected"),
    [
        pytest.param([(1, CUP, A, False)], [(1, CUP, A, 0.9)], [], id="found"),
        pytest.param([(1, CUP, A, False)], [], [("MISS", None, 0, 0.0)], id="miss"),
        pytest.param([(1, CUP, A, False)], [(1, CUP, A, 0.4)], [("MISS", None, 0, 0.0)], id="miss: score too low"),
        pytest.param([], [(1, CUP, A, 0.9)], [("FALSE_POSITIVE", 0, None, 0.0)], id="nothing there"),
        pytest.param(
            [(1, CUP, A, False)],
            [(1, CUP, A, 0.9), (1, CUP, (0, 0, 10, 8), 0.8)],
            [("FALSE_POSITIVE", 1, 0, 0.8)],
            id="duplicate",
        ),
        pytest.param([(1, CUP, A, False)], [(1, PLATE, A, 0.9)], [("CONFUSED", 0, 0, 1.0)], id="confused, no miss"),
        pytest.param(
            [(1, CUP, A, False)],
            [(1, CUP, A, 0.9), (1, PLATE, A, 0.8)],
            [("CONFUSED", 1, 0, 1.0)],
            id="confused, found",
        ),
        pytest.param(
            [(1, CUP, A, False)], [(1, CUP, TENTH_OF_A, 0.9)], [("POORLY_PLACED", 0, 0, 0.1)], id="poor at exactly 0.1"
        ),
        pytest.param(
            [(1, CUP, A, False)], [(1, CUP, BELOW_HALF_OF_A, 0.9)], [("POORLY_PLACED", 0, 0, 0.4)], id="poor below 0.5"
        ),
        pytest.param(
            [(1, CUP, A, False)],
            [(1, CUP, (0, 0, 10, 0.5), 0.9)],
            [("FALSE_POSITIVE", 0, None, 0.0), ("MISS", None, 0, 0.0)],
            id="below 0.1 has nothing to do with it",
        ),
        pytest.param(
            [(1, CUP, A, False)],
            [(1, PLATE, BELOW_HALF_OF_A, 0.9)],
            [("FALSE_POSITIVE", 0, None, 0.0), ("MISS", None, 0, 0.0)],
            id="another class below 0.5 is no confusion",
        ),
        pytest.param(
            [(1, CUP, BELOW_HALF_OF_A, False), (1, PLATE, A, False)],
            [(1, CUP, A, 0.9)],
            [("MISS", None, 0, 0.0), ("CONFUSED", 0, 1, 1.0)],
            id="confused goes before poorly placed",
        ),
        pytest.param(
            [(1, CUP, A, False), (1, PLATE, (0, 0, 10, 8), False)],
            [(1, CUP, A, 0.9), (1, PLATE, (0, 0, 10, 8), 0.85), (1, CUP, A, 0.8)],
            [("FALSE_POSITIVE", 2, 0, 1.0)],
            id="nearer to a found truth of its class: duplicate, not confused",
        ),
        pytest.param([(1, CUP, A, True)], [(1, CUP, A, 0.9)], [], id="in a crowd"),
        pytest.param([(1, CUP, A, True)], [(1, PLATE, A, 0.9)], [("FALSE_POSITIVE", 0, None, 0.0)], id="wrong crowd"),
    ],
)
def test_verdicts_by_hand_at_half(
    truths: list[TruthRow], rows: list[Row], expected: list[tuple[str, int | None, int | None, float]]
) -> None:
    assert told(bad_cases(scored_of(truths, rows), 0.5)) == expected


def test_a_truth_lost_by_raising_the_threshold_becomes_a_miss() -> None:
    scored = scored_of([(1, CUP, A, False)], [(1, CUP, A, 0.6), (1, PLATE, A, 0.8)])
    assert truth_states(scored, 0.5).tolist() == [TruthState.FOUND]
    assert truth_states(scored, 0.7).tolist() == [TruthState.CONFUSED]
    assert truth_states(scored, 0.9).tolist() == [TruthState.MISSED]


def test_cases_are_filtered_by_kind_and_a_confusion_shows_under_both_classes() -> None:
    scored = scored_of([(1, CUP, A, False), (2, PLATE, A, False)], [(1, PLATE, A, 0.9), (1, CUP, FAR, 0.8)], (1, 2))
    whole = bad_cases(scored, 0.5)
    assert whole.image_ids().tolist() == [1, 2]
    assert {kind: whole.count(kind) for kind in FaultKind} == {
        FaultKind.FALSE_POSITIVE: 1,
        FaultKind.MISS: 1,
        FaultKind.CONFUSED: 1,
        FaultKind.POORLY_PLACED: 0,
    }
    assert told(bad_cases(scored, 0.5, kinds={FaultKind.MISS})) == [("MISS", None, 1, 0.0)]
    assert told(bad_cases(scored, 0.5, label=CUP)) == [("FALSE_POSITIVE", 1, None, 0.0), ("CONFUSED", 0, 0, 1.0)]
    assert told(bad_cases(scored, 0.5, label=PLATE)) == [("CONFUSED", 0, 0, 1.0), ("MISS", None, 1, 0.0)]
    assert len(bad_cases(scored, 0.5, kinds=())) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.integers(0, 20), low=st.integers(0, 20), high=st.integers(0, 20))
def test_a_range_of_scores_and_counts_without_a_list_agree_with_the_list(
    seed: int, level: int, low: int, high: int
) -> None:
    labels, classes, detections = generate(seed)
    scored = match(from_coco(labels, classes), detections)
    whole = bad_cases(scored, level / 20, label=0)
    ranged = bad_cases(scored, level / 20, label=0, scores=(low / 20, high / 20))
    within = (whole.score >= np.float32(low / 20)) & (whole.score <= np.float32(high / 20))
    assert told(ranged) == [entry for entry, inside in zip(told(whole), within.tolist(), strict=True) if inside]
    for faults, scores in ((whole, None), (ranged, (low / 20, high / 20))):
        counts = fault_rows(scored, level / 20, label=0, scores=scores).counts()
        assert counts.tolist() == np.bincount(faults.image, minlength=scored.images.size).tolist()


def test_bad_cases_are_paged_by_image() -> None:
    images = tuple(range(1, 8))
    scored = scored_of([(image, CUP, A, False) for image in images if image != 3], [], images)
    faults = bad_cases(scored, 0.5)
    assert [image for image, _ in faults.by_image(offset=2, limit=3)] == [4, 5, 6]
    assert faults.by_image(offset=6) == []


def test_a_fault_names_score_and_classes() -> None:
    [(_, [fault])] = bad_cases(scored_of([(1, CUP, A, False)], [(1, PLATE, A, 0.5)]), 0.5).by_image()
    assert (fault.kind, fault.image_id, fault.score, fault.label, fault.truth_label) == (
        FaultKind.CONFUSED,
        1,
        0.5,
        PLATE,
        CUP,
    )
    [(_, [miss])] = bad_cases(scored_of([(1, CUP, A, False)], []), 0.5).by_image()
    assert (miss.score, miss.label, miss.truth_label) == (None, None, CUP)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), level=st.integers(0, 20))
def test_bad_cases_equal_the_plain_reference_image_by_image(seed: int, level: int) -> None:
    labels, classes, detections = generate(seed)
    truth = from_coco(labels, classes)
    threshold = float(np.float32(level / 20))
    answer = answer_at(truth, detections, threshold)
    faults = bad_cases(match(truth, detections), threshold)

    ours: dict[int, set[tuple[str, int | None, int | None]]] = {}
    for image, of_image in faults.by_image():
        ours[image] = {(fault.kind.name, fault.detection, fault.truth) for fault in of_image}
        assert len(ours[image]) == len(of_image)
        for fault in of_image:
            if fault.detection is not None:
                assert fault.iou == pytest.approx(answer.overlaps.get(fault.detection, 0.0), abs=1e-6)
    theirs: dict[int, set[tuple[str, int | None, int | None]]] = {}
    for kind, detection, row in answer.faults:
        image = int(truth.image_id[row] if detection is None else detections.image_id[detection])
        theirs.setdefault(image, set()).add((kind, detection, row))
    assert ours == theirs


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(-1, 2, width=32))
def test_faults_and_truth_states_add_up_to_the_counts(seed: int, threshold: float) -> None:
    labels, classes, detections = generate(seed)
    scored = match(from_coco(labels, classes), detections)
    counts = ThresholdCurves(scored).overall(threshold)
    faults, states = bad_cases(scored, threshold), truth_states(scored, threshold).tolist()
    assert len(faults) - faults.count(FaultKind.MISS) == counts.false_positives
    assert states.count(TruthState.FOUND) == counts.true_positives
    assert states.count(TruthState.MISSED) == faults.count(FaultKind.MISS)
    lost = (TruthState.MISSED, TruthState.CONFUSED, TruthState.POORLY_PLACED)
    assert sum(state in lost for state in states) == counts.false_negatives
