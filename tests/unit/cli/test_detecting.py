"""What `saucer detect` shows of an answer."""

import struct

from saucer.cli.detecting import above
from saucer.publishing.v1.publishing_pb2 import Detection, PredictResponse


def test_a_threshold_takes_in_the_score_that_equals_it_in_single_precision() -> None:
    (stored,) = struct.unpack("f", struct.pack("f", 0.7))
    found = PredictResponse(detections=[Detection(score=stored), Detection(score=0.69)])
    assert stored < 0.7
    assert [item.score for item in above(found, 0.7)] == [stored]


def test_without_a_threshold_that_of_the_deployment_decides() -> None:
    found = PredictResponse(detections=[Detection(score=0.9), Detection(score=0.2, above_threshold=True)])
    assert [item.score for item in above(found, None)] == [0.2]
