"""The parity gate: which boxes count, and which are partners."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saucer.publishing.parity import (
    MAX_WORST_IMAGES,
    SCORE_FLOOR,
    Found,
    ImageParity,
    choose_evenly,
    choose_worst,
    compare,
    iou_matrix,
    judge,
)
from saucer.serving.runtime import Tolerance

# Where a runtime computes in fewer bits.
TOLERANCE = Tolerance(box_px=0.5, score=0.01, permille=995)
Row = tuple[tuple[float, float, float, float], float, int]
BOX = (10.0, 10.0, 110.0, 110.0)


def found(*rows: Row) -> Found:
    return Found(
        np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in rows], np.float32),
        np.array([label for _, _, label in rows], np.int32),
    )


def compared(stored: Found, served: Found) -> tuple[int, int]:
    result = compare(1, stored, served, TOLERANCE)
    return result.boxes, result.paired


@pytest.mark.parametrize(
    ("served", "paired"),
    [
        ((BOX, 0.8, 0), 2),
        ((BOX, 0.809, 0), 2),
        ((BOX, 0.82, 0), 0),
        ((BOX, 0.8, 1), 0),
        (((10.4, 10.0, 110.4, 110.0), 0.8, 0), 2),
        (((12.0, 10.0, 112.0, 110.0), 0.8, 0), 0),
    ],
)
def test_partners_have_one_class_nearly_one_place_and_nearly_one_score(served: Row, paired: int) -> None:
    assert compared(found((BOX, 0.8, 0)), found(served)) == (2, paired)


def test_a_box_below_the_floor_does_not_count_but_can_be_the_partner_of_one_above() -> None:
    below, above = found((BOX, SCORE_FLOOR - 0.004, 0)), found((BOX, SCORE_FLOOR + 0.004, 0))
    assert compared(below, above) == (1, 1)
    assert compared(above, below) == (1, 1)
    assert compared(below, below) == (0, 0)
    assert compared(above, found((BOX, SCORE_FLOOR - 0.01, 0))) == (1, 0)


def test_a_box_has_one_partner_at_most() -> None:
    assert compared(found((BOX, 0.8, 0), (BOX, 0.8, 0)), found((BOX, 0.8, 0))) == (3, 2)


def test_the_better_box_takes_the_partner_and_one_below_the_floor_takes_none_from_it() -> None:
    low, high = (BOX, SCORE_FLOOR - 0.002, 0), (BOX, SCORE_FLOOR + 0.002, 0)
    assert compared(found(low, high), found(high)) == (2, 2)


def test_boxes_that_only_one_side_has_count_and_have_no_partner() -> None:
    nothing = found()
    assert compared(found((BOX, 0.8, 0)), nothing) == (1, 0)
    assert compared(nothing, found((BOX, 0.8, 0))) == (1, 0)
    assert compared(nothing, nothing) == (0, 0)


def test_boxes_of_no_area_have_no_overlap_and_no_numbers_that_are_none() -> None:
    point = np.array([[5, 5, 5, 5]], np.float32)
    assert iou_matrix(point, point).tolist() == [[0.0]]


rows = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(51, 300), st.integers(51, 300)),
        st.floats(0, 1, width=32),
        st.integers(0, 2),
    ),
    max_size=12,
)


@given(rows)
def test_what_is_served_as_stored_agrees_in_every_order(made: list[Row]) -> None:
    stored = found(*made)
    boxes, paired = compared(stored, found(*reversed(made)))
    assert boxes == paired == 2 * int(np.sum(stored.scores >= SCORE_FLOOR))


@given(rows, rows)
def test_no_more_boxes_are_paired_than_there_are_partners(first: list[Row], second: list[Row]) -> None:
    stored, served = found(*first), found(*second)
    boxes, paired = compared(stored, served)
    counted = [int(np.sum(side.scores >= SCORE_FLOOR)) for side in (stored, served)]
    assert boxes == sum(counted)
    assert 0 <= paired <= boxes
    assert paired <= 2 * min(len(first), len(second))


@given(rows, rows)
def test_it_does_not_matter_which_side_has_more_where_no_box_has_two_possible_partners(
    first: list[Row], second: list[Row]
) -> None:
    # Far apart from each other, so that only boxes of the same number can be partners.
    def apart(made: list[Row]) -> Found:
        return found(
            *(((1000.0 * n, 0, 1000.0 * n + 500, 500), score, label) for n, (_, score, label) in enumerate(made))
        )

    assert compared(apart(first), apart(second)) == compared(apart(second), apart(first))


def test_the_share_has_an_exact_limit() -> None:
    assert judge([ImageParity(1, 1000, 995)], TOLERANCE).ok
    assert not judge([ImageParity(1, 1000, 994)], TOLERANCE).ok
    nothing = judge([ImageParity(1, 0, 0)], TOLERANCE)
    assert (nothing.ok, nothing.paired_share, nothing.images) == (True, 1.0, 1)


@pytest.mark.parametrize(("scale", "paired"), [(0.1, 0), (1.0, 0), (4.0, 2)])
def test_a_larger_image_allows_as_much_more_and_a_smaller_one_no_less(scale: float, paired: int) -> None:
    stored, served = found((BOX, 0.8, 0)), found(((12.0, 10.0, 112.0, 110.0), 0.8, 0))
    assert compare(1, stored, served, TOLERANCE, scale).paired == paired


def test_what_differs_is_told_by_how_much_and_boxes_of_one_side_apart() -> None:
    far, moved = (500.0, 500.0, 600.0, 600.0), (12.0, 9.0, 111.0, 110.0)
    result = compare(7, found((BOX, 0.8, 0), (far, 0.7, 1)), found((moved, 0.6, 0), (far, 0.7, 0)), TOLERANCE)
    assert (result.boxes, result.paired, result.only_evaluated, result.only_served) == (4, 0, 1, 1)
    assert result.box_px == 2.0
    assert result.score == pytest.approx(0.2)


def test_the_images_that_differ_most_come_first_and_those_that_do_not_are_left_out() -> None:
    images = [
        ImageParity(1, 10, 10),
        ImageParity(2, 10, 10, box_px=0.2),
        ImageParity(3, 10, 10, box_px=0.3, score=0.1),
        ImageParity(4, 10, 8),
        ImageParity(5, 10, 10, score=0.1),
    ]
    assert [image.image_id for image in choose_worst(images)] == [4, 3, 2, 5]


def test_the_worst_images_come_first_and_are_few() -> None:
    images = [ImageParity(number, 20, 20 - number) for number in range(20)]
    assert judge(images, TOLERANCE).worst_images == tuple(range(19, 19 - MAX_WORST_IMAGES, -1))


@given(st.integers(0, 500), st.integers(1, 64))
def test_chosen_indices_are_spread_over_the_whole(count: int, limit: int) -> None:
    chosen = choose_evenly(count, limit)
    assert len(chosen) == min(count, limit)
    assert chosen == sorted(set(chosen))
    if chosen:
        gaps = np.diff([*chosen, count])
        assert chosen[0] == 0
        assert gaps.max() - gaps.min() <= 1
