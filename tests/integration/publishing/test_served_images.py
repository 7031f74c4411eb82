"""What is served is what was evaluated: the same images through Predict, and by the code that made the evaluation.

`make test` sends a few dozen, `make soak` 500: of many sizes, of EXIF's eight orientations, JPEG, PNG, WebP and BMP.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from nats.js import JetStreamContext

from saucer.local.servers import TritonServer
from saucer.publishing.v1 import publishing_pb2
from saucer.serving.detector import Detector, ImageDetections
from tests.integration.publishing.online import Online, online
from tests.support.graphs import SPEC, write_cells_model
from tests.support.pictures import pictures
from tests.support.services import ServiceRunner, Tokens

# Of a box's sides in pixels of the image, and of a score.
TOLERANCE = 1e-3
# So many are on their way at once, so that Triton batches them.
AT_ONCE = 8


@pytest.fixture
async def world(
    run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, triton: TritonServer, tmp_path: Path
) -> AsyncIterator[Online]:
    async with online(run_service, tokens, jetstream, triton, tmp_path) as made:
        yield made


def difference(answer: publishing_pb2.PredictResponse, evaluated: ImageDetections) -> float:
    """The largest of boxes and scores; the same boxes in the same order are taken for granted."""
    assert (answer.width, answer.height) == (evaluated.width, evaluated.height)
    names = [SPEC.classes[label] for label in evaluated.labels]
    assert [found.class_name for found in answer.detections] == names
    served = np.array([(one.x1, one.y1, one.x2, one.y2, one.score) for one in answer.detections]).reshape(-1, 5)
    expected = np.column_stack((evaluated.boxes, evaluated.scores))
    return float(np.max(np.abs(served - expected), initial=0.0))


@pytest.mark.parametrize("count", [48, pytest.param(500, marks=pytest.mark.soak)])
async def test_boxes_served_are_the_boxes_evaluated_for_images_of_every_size_orientation_and_format(
    world: Online, count: int
) -> None:
    images = list(pictures(count))
    folder = write_cells_model(world.folder / "cells")
    evaluated = Detector.load(folder).detect(images)
    async with world.serving():
        account_id = await world.account()
        model_id = await world.model(account_id, made=folder, images=images)
        active = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
        assert active.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, active
        gate = asyncio.Semaphore(AT_ONCE)

        async def differs(number: int) -> float:
            async with gate:
                return difference(await world.predict(active, images[number]), evaluated[number])

        largest = max(await asyncio.gather(*map(differs, range(count))))
    boxes = sum(len(found.scores) for found in evaluated)
    print(f"{count} images, {boxes} boxes, at most {largest:.1g} apart")
    assert boxes > 40 * count
    assert largest <= TOLERANCE
