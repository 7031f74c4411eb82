"""What is served is what was evaluated: the same images through Predict, and by the code that made the evaluation.

`make test` sends a few dozen, `make soak` 500: of many sizes, of EXIF's eight orientations, JPEG, PNG, WebP and BMP.
`make soak` also sends 500 to each of the faster runtimes, with a detector that is trained for it.
"""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saucer.publishing.parity import Found, ImageParity, compare, judge
from saucer.publishing.v1 import publishing_pb2
from saucer.serving.detector import Detector, ImageDetections
from saucer.serving.runtime import TOLERANCES
from saucer.worker.job import TrainJob
from tests.integration.publishing.online import Online, lacks
from tests.support.child import Child
from tests.support.graphs import SPEC, write_cells_model
from tests.support.pictures import pictures, written
from tests.support.shapes import CLASSES, write_shapes

# Of a box's sides in pixels of the image, and of a score.
TOLERANCE = 1e-3
# So many are on their way at once, so that Triton batches them.
AT_ONCE = 8


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
        assert active.parity.images == min(count, 200)
        gate = asyncio.Semaphore(AT_ONCE)

        async def differs(number: int) -> float:
            async with gate:
                return difference(await world.predict(active, images[number]), evaluated[number])

        largest = max(await asyncio.gather(*map(differs, range(count))))
    boxes = sum(len(found.scores) for found in evaluated)
    print(f"{count} images, {boxes} boxes, at most {largest:.1g} apart")
    assert boxes > 40 * count
    assert largest <= TOLERANCE


def shapes_of_many_sizes(folder: Path, count: int) -> list[bytes]:
    """Pictures that a detector trained on shapes finds something in."""
    files = sorted(folder.glob("*.jpg"))
    chance = np.random.default_rng(9)
    images = []
    for number in range(count):
        with Image.open(files[number % len(files)]) as scene:
            width = int(np.exp(chance.uniform(np.log(60), np.log(2000))))
            images.append(written(number, scene.resize((width, max(1, width * scene.height // scene.width)))))
    return images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder, and the folder of images that it was trained with."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_shapes(folder / "data", train=80, validation=16, test=16)
    job = TrainJob(
        workdir=str(folder / "work"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        test=str(data.test),
        classes=CLASSES,
        input_size=128,
        epochs=9,
        batch_size=8,
        warmup_iterations=20,
    )
    child = Child(folder / "stderr.txt")
    try:
        made = folder / "model"
        made.mkdir()
        result = child.run(job)
        for kind, name in (("onnx", "model.onnx"), ("model", "model.json")):
            shutil.copyfile(result.files[kind], made / name)
    finally:
        child.close()
    return made, data.images


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("runtime", ["openvino", "openvino_bf16"])
async def test_boxes_of_a_faster_runtime_are_within_its_tolerance_for_500_images(
    world: Online, trained: tuple[Path, Path], runtime: str
) -> None:
    folder, data = trained
    images = shapes_of_many_sizes(data, 500)
    detector = Detector.load(folder, 2)
    evaluated = detector.detect(images)
    async with world.serving():
        account_id = await world.account()
        model_id = await world.model(account_id, made=folder, images=images)
        await world.keep_choice(model_id, runtime)
        active = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED", timeout_s=120)
        assert active.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, active
        gate = await world.gate_of(active)
        if lacks(gate, runtime):
            pytest.skip(gate.runtime_reason)
        assert gate.runtime == runtime, gate.runtime_reason
        once = asyncio.Semaphore(AT_ONCE)

        async def compared(number: int) -> ImageParity:
            async with once:
                answer = await world.predict(active, images[number])
            stored, found = evaluated[number], answer.detections
            served = Found(
                np.array([(one.x1, one.y1, one.x2, one.y2) for one in found], np.float32).reshape(-1, 4),
                np.array([one.score for one in found], np.float32),
                np.array([CLASSES.index(one.class_name) for one in found], np.int32),
            )
            scale = max(stored.width, stored.height) / detector.spec.input_size
            return compare(
                number, Found(stored.boxes, stored.scores, stored.labels), served, TOLERANCES[runtime], scale
            )

        parity = judge(await asyncio.gather(*map(compared, range(len(images)))), TOLERANCES[runtime])
    print(f"{runtime}: {parity.paired} of {parity.boxes} boxes on {parity.images} images within {TOLERANCES[runtime]}")
    assert parity.boxes > len(images)
    assert parity.ok
