"""What a finished evaluation takes of the memory, and how many points of curves an answer has."""

import numpy as np
import pytest

from saucer.evaluation.manifest import read_manifest
from saucer.evaluation.matching import match
from saucer.evaluation.messages import curve_message
from saucer.evaluation.service import CACHE_BYTES
from saucer.evaluation.stored import MOST_POINTS, LabelledSet, load, points_of_a_curve
from saucer.evaluation.thinning import PrPoints, ThinnedPoints
from saucer.evaluation.truth import from_coco
from saucer.evaluation.v1 import evaluation_pb2
from saucer.serving.detections import Detections
from tests.bench._detections import split

CLIENT_DEFAULT_BYTES = 4 * 1024**2
"""What a gRPC client takes, unless it says otherwise."""


@pytest.mark.parametrize(
    ("wanted", "classes", "points"),
    [(100, 0, 100), (5000, 2, 5000), (5000, 365, 273), (100, 365, 100), (100, 2000, 50), (2, 80_000, 2)],
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
    assert 2 * 100 * loaded.size_bytes >= CACHE_BYTES / 4, "the estimate forgets something"
