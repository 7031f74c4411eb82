"""Score floor, suppression within a class, limits."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saucer.serving.boxes import MAX_CANDIDATES, select, suppress

A = [10.0, 10.0, 50.0, 50.0]
NEARLY_A = [11.0, 10.0, 51.0, 50.0]
ELSEWHERE = [100.0, 100.0, 140.0, 150.0]


def chosen(
    boxes: list[list[float]], scores: list[list[float]], *, score_floor: float = 0.01, max_detections: int = 300
) -> tuple[list[list[float]], list[float], list[int]]:
    found = select(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        score_floor=score_floor,
        nms_iou=0.65,
        max_detections=max_detections,
    )
    assert [column.dtype for column in found] == [np.float32, np.float32, np.int32]
    return found[0].tolist(), [round(float(score), 4) for score in found[1]], found[2].tolist()


def test_the_weaker_of_two_boxes_on_one_object_is_left_out() -> None:
    assert chosen([NEARLY_A, A, ELSEWHERE], [[0.6], [0.9], [0.3]]) == ([A, ELSEWHERE], [0.9, 0.3], [0, 0])


def test_boxes_of_two_classes_do_not_suppress_each_other() -> None:
    assert chosen([A, NEARLY_A], [[0.9, 0], [0, 0.6]]) == ([A, NEARLY_A], [0.9, 0.6], [0, 1])


def test_one_box_may_stand_for_two_classes() -> None:
    assert chosen([A], [[0.4, 0.7]]) == ([A, A], [0.7, 0.4], [1, 0])


def test_scores_at_or_below_the_floor_are_left_out() -> None:
    assert chosen([A, ELSEWHERE], [[0.25], [0.5]], score_floor=0.25) == ([ELSEWHERE], [0.5], [0])


def test_boxes_without_area_are_left_out() -> None:
    assert chosen([[10, 10, 10, 20], [30, 30, 20, 20], A], [[0.9], [0.8], [0.7]]) == ([A], [0.7], [0])


def test_at_most_max_detections_remain_and_they_are_the_best() -> None:
    boxes = [[100.0 * i, 0, 100 * i + 50, 50] for i in range(10)]
    scores = [[0.1 + 0.05 * i] for i in range(10)]
    assert chosen(boxes, scores, max_detections=3)[1] == [0.55, 0.5, 0.45]


def test_nothing_found_is_empty_columns() -> None:
    assert chosen([A], [[0.0]]) == ([], [], [])


def test_beyond_the_candidate_limit_the_lowest_scores_are_left_out() -> None:
    count = MAX_CANDIDATES + 50
    left = np.arange(count, dtype=np.float32) * 100
    boxes = np.stack([left, left * 0, left + 50, left * 0 + 50], axis=1)
    scores = np.linspace(0.1, 0.9, count, dtype=np.float32)[:, None]
    _, kept, _ = select(boxes, scores, score_floor=0.01, nms_iou=0.65, max_detections=count)
    assert len(kept) == MAX_CANDIDATES
    assert kept.min() > scores[49, 0]


def reference(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], iou: float
) -> list[int]:
    """Greedy suppression as in the textbook."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(labels[index] != labels[other] or overlap(boxes[index], boxes[other]) <= iou for other in kept):
            kept.append(int(index))
    return kept


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = sides.prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_suppression_agrees_with_the_textbook(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (count, 2))], axis=1).astype(np.float32)
    scores = ((rng.permutation(count) + 0.5) / count).astype(np.float32)
    labels = rng.integers(0, 3, count)
    assert suppress(boxes, scores, labels, 0.5).tolist() == reference(boxes, scores, labels, 0.5)
