"""What an online answer counts is what evaluation counts."""

import numpy as np
import pytest
from numpy.typing import NDArray

from saucer.cli.detecting import above
from saucer.publishing.domain import Version
from saucer.publishing.endpoint import Prediction
from saucer.publishing.rpc import prediction_message
from saucer.publishing.triton import Boxes
from saucer.publishing.v1 import publishing_pb2

SCORES = np.array([0.7, np.nextafter(np.float32(0.7), np.float32(0))], np.float32)
"""That of a threshold of 0.7, and the next below. As a double the first is 0.699999988: less than 0.7."""


def found(scores: NDArray[np.float32]) -> Boxes:
    return Boxes(np.zeros((scores.size, 4), np.float32), scores, np.zeros(scores.size, np.int32), "1")


def test_a_score_of_the_threshold_itself_is_above_it() -> None:
    version = Version(1, "model", "evaluation", ("cup",), (("cup", 0.7),))
    answer = prediction_message(Prediction(found(SCORES), 10, 10, version))
    assert [detection.above_threshold for detection in answer.detections] == [True, False]


def test_each_box_is_told_with_its_class_and_by_the_threshold_of_it() -> None:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], np.float32)
    answered = Boxes(boxes, np.array([0.75, 0.5, 0.25], np.float32), np.array([1, 0, 1], np.int32), "1")
    version = Version(3, "model", "evaluation", ("cup", "plate"), (("plate", 0.8), ("cup", 0.5)))
    answer = prediction_message(Prediction(answered, 640, 480, version))
    assert answer == publishing_pb2.PredictResponse(
        detections=[
            publishing_pb2.Detection(class_name="plate", score=0.75, x1=1, y1=2, x2=3, y2=4, above_threshold=False),
            publishing_pb2.Detection(class_name="cup", score=0.5, x1=5, y1=6, x2=7, y2=8, above_threshold=True),
            publishing_pb2.Detection(class_name="plate", score=0.25, x1=9, y1=10, x2=11, y2=12, above_threshold=False),
        ],
        width=640,
        height=480,
        version_number=3,
        highest_score=0.75,
    )


def test_an_image_in_which_nothing_is_found_has_no_highest_score() -> None:
    version = Version(1, "model", "evaluation", ("cup",), (("cup", 0.7),))
    answer = prediction_message(Prediction(found(np.zeros(0, np.float32)), 10, 20, version))
    assert answer == publishing_pb2.PredictResponse(width=10, height=20, version_number=1)


@pytest.mark.parametrize(("threshold", "shown"), [(0.7, 1), (0.0, 2), (None, 0)])
def test_so_it_is_at_a_threshold_that_the_caller_names(threshold: float | None, shown: int) -> None:
    answer = publishing_pb2.PredictResponse(
        detections=[publishing_pb2.Detection(class_name="cup", score=score) for score in SCORES.tolist()]
    )
    assert above(answer, threshold) == list(answer.detections[:shown])
