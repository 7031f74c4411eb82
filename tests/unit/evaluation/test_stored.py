"""How many points of curves an answer has."""

import numpy as np
import pytest

from saucer.evaluation.messages import curve_message
from saucer.evaluation.stored import MOST_POINTS, points_of_a_curve
from saucer.evaluation.thinning import PrPoints, ThinnedPoints
from saucer.evaluation.v1 import evaluation_pb2

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
