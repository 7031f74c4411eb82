"""The synthetic scenes: reproducible, correctly labelled, of a sensible mixture."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from saucer.local.scene_objects import LEAST_SEEN
from saucer.local.scenes import CLASSES, MIN_IMAGES, MIN_SIDE_PX, SPLITS, Scene, generate, render, split_of

SEED = 11
IMAGES = 24


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render(SEED, index) for index in range(1, 61)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("scenes")
    generate(made, images=IMAGES, seed=SEED)
    return made


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_longer_set_made_by_two_processes_begins_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    generate(tmp_path, images=IMAGES + 4, seed=SEED, processes=2)
    for image in sorted((folder / "images").iterdir()):
        assert image.read_bytes() == (tmp_path / "images" / image.name).read_bytes()
    whole, longer = read(folder / "annotations.json"), read(tmp_path / "annotations.json")
    assert longer["annotations"][: len(whole["annotations"])] == whole["annotations"]


def test_another_seed_draws_another_scene(scenes: list[Scene]) -> None:
    other = render(SEED + 1, 1)
    assert other.pixels.shape != scenes[0].pixels.shape or not np.array_equal(other.pixels, scenes[0].pixels)


def test_boxes_lie_inside_their_image_and_have_an_area(scenes: list[Scene]) -> None:
    for scene in scenes:
        height, width = scene.pixels.shape[:2]
        for box in scene.boxes:
            assert box.x >= 0
            assert box.y >= 0
            assert box.x + box.width <= width
            assert box.y + box.height <= height
            assert min(box.width, box.height) >= MIN_SIDE_PX
            assert 0 < box.area <= box.width * box.height
            assert LEAST_SEEN <= box.seen <= 1


def test_objects_are_20_to_340_pixels_long(scenes: list[Scene]) -> None:
    sides = [max(box.width, box.height) for scene in scenes for box in scene.boxes]
    assert min(sides) >= 20
    assert max(sides) <= 340
    assert max(sides) > 4 * min(sides)


def test_each_class_has_its_share_and_some_images_show_neither(scenes: list[Scene]) -> None:
    labels = [box.label for scene in scenes for box in scene.boxes]
    for name in CLASSES:
        assert 0.35 < labels.count(name) / len(labels) < 0.65
    empty = sum(not scene.boxes for scene in scenes)
    assert 1 <= empty <= len(scenes) * 0.25
    assert 1.5 < len(labels) / len(scenes) < 5


def test_images_differ_in_size_and_light(scenes: list[Scene]) -> None:
    assert len({scene.pixels.shape for scene in scenes}) >= 4
    means = [float(scene.pixels.mean()) for scene in scenes]
    assert max(means) - min(means) > 60


def test_some_objects_are_hidden_in_part(scenes: list[Scene]) -> None:
    seen = [box.seen for scene in scenes for box in scene.boxes]
    assert sum(share < 0.9 for share in seen) > len(seen) * 0.1
    assert sum(share > 0.99 for share in seen) > len(seen) * 0.25


def test_the_width_sets_the_scale() -> None:
    assert render(SEED, 1, width=240).pixels.shape[1] <= 240 * 1.15
    assert render(SEED, 1, width=240).pixels.shape[1] < render(SEED, 1).pixels.shape[1]


def test_the_annotations_are_coco_and_say_that_the_images_are_synthetic(folder: Path) -> None:
    coco = read(folder / "annotations.json")
    assert coco["info"]["synthetic"] is True
    assert "Saucer" in coco["info"]["description"]
    assert [category["name"] for category in coco["categories"]] == list(CLASSES)
    ids = [annotation["id"] for annotation in coco["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for image in coco["images"]:
        pixels = cv2.imread(str(folder / "images" / image["file_name"]))
        assert pixels is not None
        assert pixels.shape == (image["height"], image["width"], 3)
    known = {image["id"] for image in coco["images"]}
    for annotation in coco["annotations"]:
        assert annotation["image_id"] in known
        assert annotation["category_id"] in (1, 2)
        assert annotation["iscrowd"] == 0
        assert annotation["area"] > 0
        assert len(annotation["bbox"]) == 4


def test_the_splits_are_disjoint_and_whole(folder: Path) -> None:
    whole = read(folder / "annotations.json")
    parts = [read(folder / "annotations" / f"{split}.json") for split in SPLITS]
    images = [image["id"] for part in parts for image in part["images"]]
    labels = [annotation["id"] for part in parts for annotation in part["annotations"]]
    assert sorted(images) == [image["id"] for image in whole["images"]]
    assert sorted(labels) == [annotation["id"] for annotation in whole["annotations"]]
    for part in parts:
        own = {image["id"] for image in part["images"]}
        assert {annotation["image_id"] for annotation in part["annotations"]} <= own


def test_the_smallest_set_has_an_image_in_each_split_and_a_large_one_70_15_15() -> None:
    assert {split_of(index) for index in range(1, MIN_IMAGES + 1)} == set(SPLITS)
    counts = [sum(split_of(index) == split for index in range(1, 401)) for split in SPLITS]
    assert counts == [280, 60, 60]


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"images must be {MIN_IMAGES}"):
        generate(tmp_path, images=MIN_IMAGES - 1, seed=SEED)
    assert list(tmp_path.iterdir()) == []
