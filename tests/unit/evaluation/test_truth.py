"""Reading labels from a COCO document, and counting them."""

import copy
from typing import Any

import pytest

from saucer.evaluation.truth import ClassStatistics, TruthError, from_coco, statistics

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 9, "width": 64, "height": 48},
        {"id": 4, "width": 32, "height": 32},
        {"id": 6, "width": 8, "height": 8},
    ],
    "categories": [{"id": 3, "name": "plate"}, {"id": 8, "name": "cup"}, {"id": 1, "name": "fork"}],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 8, "bbox": [0, 0, 4, 5]},
        {"id": 3, "image_id": 9, "category_id": 8, "bbox": [0.5, 0, 4, 5], "iscrowd": 1},
        {"id": 5, "image_id": 9, "category_id": 8, "bbox": [3, 3, 1, 1]},
    ],
}


def test_columns_follow_the_document_with_labels_by_class_name() -> None:
    truth = from_coco(DOCUMENT, ["cup", "plate"])
    assert truth.images.tolist() == [4, 6, 9]
    assert truth.width.tolist() == [32, 8, 64]
    assert truth.image_id.tolist() == [9, 4, 9, 9]
    assert truth.label.tolist() == [1, 0, 0, 0]
    assert truth.box.tolist() == [[1, 2, 11, 22], [0, 0, 4, 5], [0.5, 0, 4.5, 5], [3, 3, 4, 4]]
    assert truth.box_size.tolist() == [[10, 20], [4, 5], [4, 5], [1, 1]]
    assert truth.crowd.tolist() == [False, False, True, False]
    assert truth.area.tolist() == [150.5, 20, 20, 1]
    assert [column.dtype.name for column in (truth.box, truth.label, truth.image_id)] == ["float64", "int32", "int64"]


def test_a_size_is_kept_as_it_is_labelled_since_the_corners_round_it() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][1]["bbox"] = [2.02, 0, 30, 11]
    truth = from_coco(document, ["cup", "plate"])
    assert truth.box[1].tolist() == [2.02, 0, 2.02 + 30, 11]
    assert truth.box[1, 2] - truth.box[1, 0] != 30
    assert truth.box_size[1].tolist() == [30, 11]
    assert truth.area[1] == 330


def test_statistics_by_hand() -> None:
    found = statistics(from_coco(DOCUMENT, ["cup", "plate", "fork"]))
    assert (found.images, found.images_without_boxes, found.boxes, found.crowd_boxes) == (3, 1, 3, 1)
    assert found.classes == (
        ClassStatistics("cup", boxes=2, crowd_boxes=1, images=2, share=2 / 3),
        ClassStatistics("plate", boxes=1, crowd_boxes=0, images=1, share=1 / 3),
        ClassStatistics("fork", boxes=0, crowd_boxes=0, images=0, share=0.0),
    )


def test_a_set_without_boxes_has_no_shares() -> None:
    truth = from_coco({**DOCUMENT, "annotations": []}, ["cup"])
    assert truth.box.shape == (0, 4)
    assert statistics(truth).classes[0].share is None
    assert statistics(truth).images_without_boxes == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 5}, "annotation 2: there is no image 5"),
        ({"category_id": 1}, "category 1 is not among the model's classes"),
        ({"category_id": 77}, "category 77"),
        ({"bbox": [0, 0, 4]}, r"annotations\[1\].bbox"),
        ({"bbox": [0, 0, -4, 5]}, "width and height >= 0"),
        ({"bbox": [0, 0, float("nan"), 5]}, "finite"),
        ({"area": float("inf")}, "finite"),
        ({"bbox": None}, "annotation 2: it has no bbox"),
        ({"image_id": 2**63}, r"annotations\[1\].image_id"),
        ({"id": 1}, "id stands twice"),
    ],
)
def test_an_unusable_annotation_is_named(change: dict[str, Any], said: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][1].update(change)
    with pytest.raises(TruthError, match=said):
        from_coco(document, ["cup", "plate"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"id": 9, "width": 1, "height": 1}] * 2}, "images: an id stands twice"),
        ({"images": [{"id": 9}]}, "width"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "categories: id 3"),
        ({"categories": [{"name": "a"}]}, "categories"),
    ],
)
def test_an_unusable_document_is_refused_with_the_reason(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TruthError, match=said):
        from_coco({**DOCUMENT, **change}, ["cup", "plate"])


def test_a_missing_part_and_a_class_named_twice_are_refused() -> None:
    with pytest.raises(TruthError, match="annotations"):
        from_coco({"images": [], "categories": []}, ["cup"])
    with pytest.raises(TruthError, match="name stands twice"):
        from_coco(DOCUMENT, ["cup", "cup"])
