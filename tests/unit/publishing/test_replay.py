"""The replay: what it compares where next to nothing was found, and images that the model refuses."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from saucer.lib.objects import Objects
from saucer.publishing.gate import RuntimeChoice, make_gate
from saucer.publishing.parity import Found
from saucer.publishing.replay import ImagesRefused, Sample, replay
from saucer.publishing.triton import Boxes, InferRefused, TritonClient
from saucer.serving.runtime import EVALUATED_WITH, TOLERANCES

# Above the floor of every model, and below the one of the gate.
LOW = 0.03
INPUT_SIZE = 64


def boxes(*scores: float, left: float = 0.0) -> Found:
    return Found(
        np.array([[left, 0, left + 50, 50]] * len(scores), np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.zeros(len(scores), np.int32),
    )


class Served(TritonClient):
    """Answers each image with what is set for it; None: it is refused."""

    def __init__(self, answers: dict[bytes, Found | None]) -> None:
        self._answers = answers

    async def infer(self, model: str, image: bytes, version: str = "", timeout_s: float = 1.0) -> Boxes:
        found = self._answers[image]
        if found is None:
            raise InferRefused("IMAGE: it has too many pixels")
        return Boxes(found.boxes, found.scores, found.labels, version)


async def replayed(folder: Path, *pairs: tuple[Found, Found | None]) -> tuple[bool, int, int]:
    """Of images with what is stored and what is served: whether they agree, boxes, and those that are paired."""
    objects, samples, answers = Objects(f"file://{folder}"), [], {}
    for number, (stored, served) in enumerate(pairs):
        image = bytes(cv2.imencode(".png", np.full((8, 8 + number, 3), number, np.uint8))[1])
        key = f"images/{number}"
        await objects.put(key, image)
        samples.append(Sample(number, key, hashlib.sha256(image).hexdigest(), stored))
        answers[image] = served
    compared, probe_key = await replay(
        Served(answers), objects, samples, "m", "1", TOLERANCES[EVALUATED_WITH], INPUT_SIZE
    )
    assert probe_key in {sample.key for sample in samples}
    parity = make_gate(compared, RuntimeChoice(EVALUATED_WITH, (), "")).parity
    assert parity.images == len(pairs)
    return parity.ok, parity.boxes, parity.paired


@pytest.mark.parametrize(
    ("pairs", "outcome"),
    [
        # What counts, counts alone.
        ([(boxes(0.8), boxes(0.8)), (boxes(LOW), boxes(LOW, left=99))], (True, 2, 2)),
        ([(boxes(0.8), boxes(0.8, left=99)), (boxes(), boxes())], (False, 2, 0)),
        # Where nothing does, everything does: a model that was stopped early is compared all the same.
        ([(boxes(LOW), boxes(LOW)), (boxes(), boxes())], (True, 2, 2)),
        ([(boxes(LOW), boxes(LOW, left=99))], (False, 2, 0)),
        ([(boxes(LOW), boxes())], (False, 1, 0)),
        ([(boxes(), boxes(LOW))], (False, 1, 0)),
        # It finds nothing here, and nothing there.
        ([(boxes(), boxes())], (True, 0, 0)),
    ],
)
async def test_boxes_below_the_floor_are_compared_where_no_image_has_one_above(
    tmp_path: Path, pairs: list[tuple[Found, Found]], outcome: tuple[bool, int, int]
) -> None:
    assert await replayed(tmp_path, *pairs) == outcome


@pytest.mark.parametrize("stored", [boxes(0.8), boxes()])
async def test_an_image_that_evaluation_could_read_and_the_model_refuses_ends_the_replay(
    tmp_path: Path, stored: Found
) -> None:
    same = (boxes(0.8), boxes(0.8))
    with pytest.raises(ImagesRefused, match=r"refuses 2 of 4 .* first, image 1: IMAGE: it has too many pixels"):
        await replayed(tmp_path, same, (stored, None), same, (stored, None))
