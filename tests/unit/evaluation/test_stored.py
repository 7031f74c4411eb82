"""What a finished evaluation takes of the memory, and how many points of curves an answer has."""

import io
import json
from typing import Any

import numpy as np
import pytest

from saucer.evaluation.classifying import match_answers
from saucer.evaluation.columns import packed
from saucer.evaluation.manifest import read_manifest
from saucer.evaluation.matching import match
from saucer.evaluation.messages import curve_message
from saucer.evaluation.service import CACHE_BYTES
from saucer.evaluation.stored import MOST_POINTS, NAME_BYTES, LabelledSet, load, points_of_a_curve
from saucer.evaluation.thinning import PrPoints, ThinnedPoints
from saucer.evaluation.truth import from_coco
from saucer.evaluation.v1 import evaluation_pb2
from saucer.serving.detections import Detections
from tests.bench._detections import split
from tests.unit.evaluation.generated import truth_of

CLIENT_DEFAULT_BYTES = 4 * 1024**2
"""What a gRPC client takes, unless it says otherwise."""


@pytest.mark.parametrize(
    ("wanted", "classes", "points"),
    [(100, 0, 100), (5000, 2, 5000), (5000, 365, 136), (100, 365, 100), (100, 2000, 25), (2, 80_000, 2)],
)
def test_of_many_classes_each_has_fewer_points(wanted: int, classes: int, points: int) -> None:
    assert points_of_a_curve(wanted, classes) == points


@pytest.mark.parametrize("classes", [20, 365, 1000])
def test_all_curves_of_an_answer_fit_what_a_client_takes_by_default(classes: int) -> None:
    points = points_of_a_curve(5000, classes)
    column = np.full(points, 0.7)
    curve = ThinnedPoints(PrPoints(column.astype(np.float32), column, column), 0.1)
    answer = evaluation_pb2.PrecisionRecallCurves(
        curves=[
            curve_message(f"a class with a rather long name, number {number}", 0.5, curve) for number in range(classes)
        ]
    )
    assert points * classes > MOST_POINTS * 0.9
    assert answer.ByteSize() < CLIENT_DEFAULT_BYTES


OF_A_TEST_SET = ("images", "width", "height", "image_id", "box", "label", "crowd", "area")
"""The columns that were stored before the sizes of labels were."""


def labelled_set() -> LabelledSet:
    truth = truth_of([4], ["cup"], [(4, 0, (2.02, 0.0, 32.02, 11.0), False)])
    return LabelledSet(truth, ("i4",), ("Foto 4.jpg",))


def test_a_test_set_that_was_stored_without_sizes_has_them_from_its_corners() -> None:
    kept = labelled_set()
    names = {"classes": ["cup"], "object_names": ["i4"], "source_names": ["Foto 4.jpg"], "whole_images": False}
    read = LabelledSet.from_bytes(
        packed(
            {"format_version": np.array(1), "names": np.frombuffer(json.dumps(names).encode(), np.uint8)}
            | {name: getattr(kept.truth, name) for name in OF_A_TEST_SET}
        )
    )
    assert (read.truth.classes, read.object_names, read.source_names) == (("cup",), ("i4",), ("Foto 4.jpg",))
    for name in OF_A_TEST_SET:
        np.testing.assert_array_equal(getattr(read.truth, name), getattr(kept.truth, name), strict=True)
    assert read.truth.box_size.tolist() == [[2.02 + 30 - 2.02, 11]]


def test_a_replica_that_does_not_know_of_sizes_reads_what_is_stored_with_them() -> None:
    kept = labelled_set()
    with np.load(io.BytesIO(kept.to_bytes()), allow_pickle=False) as stored:
        assert int(stored["format_version"]) == 1
        for name in OF_A_TEST_SET:
            np.testing.assert_array_equal(stored[name], getattr(kept.truth, name), strict=True)


def test_two_evaluations_of_the_largest_size_stay_in_memory_by_default_so_that_comparing_them_reads_neither_again() -> (
    None
):
    """50,000 images, 2.5 million detections and 365 classes, here a hundredth of that."""
    made = split(500, 365, 50.0, validation_images=100)
    manifest = read_manifest(made.manifest)
    truth = from_coco(manifest.split("test"), made.classes)
    names = tuple(f"i{image_id}" for image_id in truth.images.tolist())
    validation = match(from_coco(manifest.split("validation"), made.classes), Detections.from_bytes(made.validation))
    loaded = load(
        LabelledSet(truth, names, names).to_bytes(),
        made.test,
        match(truth, Detections.from_bytes(made.test)).to_bytes(),
        validation.to_bytes(),
    )
    assert 2 * 100 * loaded.size_bytes <= CACHE_BYTES
    assert loaded.size_bytes == array_bytes(loaded) + NAME_BYTES * truth.images.size, "the estimate forgets something"


def test_of_answers_with_a_score_each_the_memory_is_told_too() -> None:
    """Classification: many points of a curve serve some goal. Of one class there is a single answer."""
    random = np.random.default_rng(0)
    images, classes = 2000, ["cup", "plate", "fork", "bowl"]
    document = {
        "images": [{"id": image, "width": 64, "height": 48} for image in range(images)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes)],
        "annotations": [
            {"id": image, "image_id": image, "category_id": label}
            for image, label in enumerate(random.integers(0, 3, images).tolist())
        ],
    }
    answers = Detections(
        images=np.arange(images),
        image_id=np.arange(images),
        box=np.tile(np.array([0, 0, 64, 48], np.float32), (images, 1)),
        score=random.random(images).astype(np.float32),
        label=np.append(random.integers(0, 3, images - 1), 3).astype(np.int32),
    )
    truth = from_coco(document, classes)
    names = tuple(f"i{image}" for image in range(images))
    scored = match_answers(truth, answers).to_bytes()
    loaded = load(LabelledSet(truth, names, names, whole_images=True).to_bytes(), answers.to_bytes(), scored, scored)
    assert loaded.size_bytes == array_bytes(loaded) + NAME_BYTES * images


def array_bytes(kept: Any) -> int:
    """Of all arrays that hang on it, each counted once, and whole where only a part of it is used."""
    arrays: dict[int, int] = {}
    seen: set[int] = set()
    left = [kept]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            while isinstance(one.base, np.ndarray):
                one = one.base
            arrays[id(one)] = one.nbytes
        elif isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, list | tuple):
            left.extend(one)
        elif type(one).__module__.startswith("saucer."):
            left.extend(getattr(one, name) for name in (vars(one) if hasattr(one, "__dict__") else one.__slots__))
    return sum(arrays.values())
