"""What `saucer detect` shows of an answer."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from saucer.cli.detecting import above, draw_boxes
from saucer.drawing import images
from saucer.publishing.v1.publishing_pb2 import (
    Candidate,
    ClassThreshold,
    Deployment,
    Detection,
    PredictResponse,
    Version,
)


def test_a_threshold_takes_in_the_score_that_equals_it_in_single_precision() -> None:
    (stored,) = struct.unpack("f", struct.pack("f", 0.7))
    found = PredictResponse(detections=[Detection(score=stored), Detection(score=0.69)])
    assert stored < 0.7
    assert [item.score for item in above(found, 0.7)] == [stored]


def test_without_a_threshold_that_of_the_deployment_decides() -> None:
    found = PredictResponse(detections=[Detection(score=0.9), Detection(score=0.2, above_threshold=True)])
    assert [item.score for item in above(found, None)] == [0.2]


@pytest.mark.parametrize(
    ("number", "score", "marked", "threshold", "classes"),
    [
        (1, 0.7, True, 0.6, ["cup"]),
        (1, 0.5, False, 0.8, ["cup"]),
        (2, 0.5, True, 0.3, ["plate", "cup"]),
        (2, 0.2, False, 0.4, ["plate", "cup"]),
        # It has been replaced meanwhile.
        (3, 0.25, True, 0.25, ["cup"]),
    ],
)
def test_what_is_drawn_is_what_the_version_that_answered_has_marked_by_its_own_thresholds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    score: float,
    marked: bool,
    threshold: float,
    classes: Sequence[str],
) -> None:
    def thresholds(cup: float, plate: float) -> list[ClassThreshold]:
        given = {"cup": cup, "plate": plate}
        return [ClassThreshold(class_name=name, threshold=value) for name, value in given.items()]

    drawn: list[Any] = []

    def draw(*given: Any) -> bytes:
        drawn.append(given)
        return b"png"

    monkeypatch.setattr(images, "boxes_on_image", draw)
    candidate = Version(number=2, classes=["plate", "cup"], thresholds=thresholds(0.3, 0.4))
    online = Deployment(
        version_number=1,
        classes=["cup"],
        thresholds=thresholds(0.6, 0.8),
        candidate=Candidate(version=candidate),
    )
    found = PredictResponse(version_number=number)
    found.detections.add(class_name="cup", score=score, above_threshold=marked)
    draw_boxes(tmp_path / "a.png", b"", online, found, None)
    (_, (box,), colours, least) = drawn[0]
    assert (box.score, colours, least) == (score, classes, threshold)
