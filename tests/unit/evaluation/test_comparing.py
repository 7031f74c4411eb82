"""Two evaluations side by side (M14): by hand, and what the changes add up to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saucer.evaluation.comparing import Change, ImageChange, compare, difference
from saucer.evaluation.matching import match
from saucer.evaluation.metrics import ErrorsByImage, ThresholdCurves
from saucer.evaluation.stored import LabelledSet, Loaded
from saucer.evaluation.truth import Truth, from_coco
from saucer.serving.detections import Detections
from tests.unit.evaluation.generated import Columns, Row, columns, generate, truth_of

CUP, PLATE = 0, 1
A = (0.0, 0.0, 10.0, 10.0)
FAR = (80.0, 80.0, 90.0, 90.0)


def loaded(truth: Truth, found: Columns) -> Loaded:
    names = tuple(f"i{image}" for image in truth.images.tolist())
    detections = Detections(found.images, found.image_id, found.box, found.score, found.label)
    return Loaded(LabelledSet(truth, names, names), detections, match(truth, detections))


def by_hand() -> tuple[Loaded, Loaded]:
    """Image 1 is right, then missed and wrong besides; 2 is missed, then right; 3 stays right."""
    truth = truth_of([1, 2, 3], ["cup", "plate"], [(1, CUP, A, False), (2, PLATE, A, False), (3, PLATE, A, False)])
    before: list[Row] = [(1, CUP, A, 0.9), (3, PLATE, A, 0.9)]
    after: list[Row] = [(1, CUP, FAR, 0.9), (2, PLATE, A, 0.9), (3, PLATE, A, 0.6), (3, CUP, FAR, 0.4)]
    return loaded(truth, columns([1, 2, 3], before)), loaded(truth, columns([1, 2, 3], after))


def test_changes_by_hand() -> None:
    found = compare(*by_hand(), 0.5, None, offset=0, limit=10)
    assert found.classes == (Change.WORSE, Change.BETTER)
    assert found.images == {Change.BETTER: 1, Change.WORSE: 1, Change.SAME: 1}
    assert found.page == (ImageChange(1, "i1", 0, 2), ImageChange(2, "i2", 1, 0))
    assert compare(*by_hand(), 0.3, None, offset=0, limit=10).images[Change.SAME] == 0


@pytest.mark.parametrize(("change", "ids"), [(Change.BETTER, [2]), (Change.WORSE, [1]), (Change.SAME, [3])])
def test_images_are_filtered_by_how_they_changed(change: Change, ids: list[int]) -> None:
    found = compare(*by_hand(), 0.5, change, offset=0, limit=10)
    assert [image.image_id for image in found.page] == ids
    assert found.total == len(ids)


def test_pages_join_to_the_whole() -> None:
    whole = compare(*by_hand(), 0.5, None, offset=0, limit=10).page
    pages = [compare(*by_hand(), 0.5, None, offset=offset, limit=1).page for offset in range(3)]
    assert sum(pages, ()) == whole


def test_other_labels_or_other_images_are_another_test_set() -> None:
    one, same = by_hand()
    assert difference(one.test_set, same.test_set) is None
    moved = truth_of([1, 2, 3], ["cup", "plate"], [(1, CUP, FAR, False), (2, PLATE, A, False), (3, PLATE, A, False)])
    assert difference(one.test_set, loaded(moved, columns([1, 2, 3], [])).test_set) == "labels"
    fewer = truth_of([1], ["cup", "plate"], [(1, CUP, A, False)])
    assert difference(one.test_set, loaded(fewer, columns([1], [])).test_set) == "images"


def test_the_same_labels_stored_without_their_sizes_are_the_same_test_set() -> None:
    label = (2.02, 0.0, 32.02, 11.0)
    truth = truth_of([1], ["cup"], [(1, CUP, label, False)])
    now = LabelledSet(truth, ("i1",), ("i1",))
    before = replace(now, truth=replace(truth, box_size=truth.box[:, 2:] - truth.box[:, :2]))
    assert not np.array_equal(before.truth.box_size, truth.box_size)
    assert difference(before, now) is None


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (["mug", "plate"], "class names (cup, mug)"),
        (["cup", "plate", "fork"], "class names (fork)"),
        (["plate", "cup"], "class names (in another order)"),
        (list("abcdef"), "class names (a, b, c, cup, d, …)"),
    ],
)
def test_other_class_names_are_named(classes: list[str], says: str) -> None:
    one, _ = by_hand()
    other = truth_of([1, 2, 3], classes, [(1, CUP, A, False), (2, PLATE, A, False), (3, PLATE, A, False)])
    assert difference(one.test_set, loaded(other, columns([1, 2, 3], [])).test_set) == says


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0, 1, width=32))
def test_errors_of_the_images_add_up_to_those_of_the_set(seed: int, threshold: float) -> None:
    labels, classes, detections = generate(seed)
    scored = match(from_coco(labels, classes), detections)
    counts = ThresholdCurves(scored).overall(threshold)
    errors = ErrorsByImage(scored).at(threshold)
    assert errors.sum() == counts.false_positives + counts.false_negatives
    assert errors.dtype == np.int64
