"""What an online answer counts is what evaluation counts."""

import numpy as np
import pytest
from numpy.typing import NDArray

from saucer.cli.detecting import above
from saucer.publishing.domain import Version
from saucer.publishing.endpoint import detections
from saucer.publishing.triton import Boxes
from saucer.publishing.v1 import publishing_pb2

SCORES = np.array([0.7, np.nextafter(np.float32(0.7), np.float32(0))], np.float32)
"""That of a threshold of 0.7, and the next below. As a double the first is 0.699999988: less than 0.7."""


def found(scores: NDArray[np.float32]) -> Boxes:
    return Boxes(np.zeros((scores.size, 4), np.float32), scores, np.zeros(scores.size, np.int32), "1")


def test_a_score_of_the_threshold_itself_is_above_it() -> None:
    version = Version(1, "model", "evaluation", ("cup",), (("cup", 0.7),))
    assert [detection.above_threshold for detection in detections(found(SCORES), version)] == [True, False]


@pytest.mark.parametrize(("threshold", "shown"), [(0.7, 1), (0.0, 2), (None, 0)])
def test_so_it_is_at_a_threshold_that_the_caller_names(threshold: float | None, shown: int) -> None:
    answer = publishing_pb2.PredictResponse(
        detections=[publishing_pb2.Detection(class_name="cup", score=score) for score in SCORES.tolist()]
    )
    assert above(answer, threshold) == list(answer.detections[:shown])
