"""The served model in a real Triton answers what the same package answers in this process."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

import saucer.serving
from saucer.local.servers import TritonServer
from saucer.publishing.repository import write_version
from saucer.publishing.triton import TritonClient
from saucer.serving.detector import Detector, ImageDetections
from saucer.serving.triton_config import config_pbtxt
from tests.support.graphs import write_model

Columns = tuple[NDArray[Any], ...]
MODEL = "serving-brightness"


@pytest.fixture(scope="module")
async def files(triton: TritonServer, triton_client: TritonClient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, which Triton serves as MODEL."""
    folder = write_model(tmp_path_factory.mktemp("model"))
    write_version(
        triton.repository,
        MODEL,
        3,
        files=folder,
        serving_source=Path(saucer.serving.__file__).parent,
        config=config_pbtxt(MODEL, version=3),
    )
    await triton_client.load(MODEL)
    return folder


def jpeg(level: int, width: int, height: int) -> bytes:
    ramp = np.full((height, width, 3), level, np.uint8)
    ramp[: height // 2] //= 2
    return cv2.imencode(".jpg", ramp)[1].tobytes()


async def infer(triton: TritonServer, images: list[bytes]) -> InferResult:
    tensor = InferInput("IMAGE", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], object))
    async with InferenceServerClient(triton.grpc_address) as client:
        return await client.infer(MODEL, [tensor])


def rows(result: InferResult, index: int) -> Columns:
    count = int(result.as_numpy("COUNT")[index, 0])
    return tuple(result.as_numpy(name)[index, :count] for name in ("BOXES", "SCORES", "LABELS"))


def assert_same(found: Columns, expected: ImageDetections) -> None:
    assert found[2].tolist() == expected.labels.tolist()
    assert np.allclose(found[0], expected.boxes, atol=1e-3)
    assert np.allclose(found[1], expected.scores, atol=1e-5)


async def test_one_image_is_answered_without_padding(triton: TritonServer, files: Path) -> None:
    image = jpeg(200, 320, 240)
    result = await infer(triton, [image])
    assert result.as_numpy("BOXES").shape == (1, 2, 4)
    assert_same(rows(result, 0), Detector.load(files).detect([image])[0])


async def test_several_images_in_one_request_are_padded_to_the_most_boxes(triton: TritonServer, files: Path) -> None:
    # The second is so flat that the model's only box lies in the border below it.
    images = [jpeg(40, 100, 90), jpeg(90, 640, 100), jpeg(250, 500, 700)]
    result = await infer(triton, images)
    assert result.as_numpy("COUNT").reshape(-1).tolist() == [2, 0, 2]
    assert result.as_numpy("BOXES").shape == (3, 2, 4)
    for index, expected in enumerate(Detector.load(files).detect(images)):
        assert_same(rows(result, index), expected)


async def test_an_unreadable_image_is_an_error_of_its_request_only(triton: TritonServer, files: Path) -> None:
    with pytest.raises(InferenceServerException, match="IMAGE: not a JPEG, PNG, WebP or BMP image"):
        await infer(triton, [b"hello"])
    with pytest.raises(InferenceServerException, match="IMAGE:"):
        await infer(triton, [jpeg(1, 50, 50), jpeg(1, 50, 50)[:40]])
    assert (await infer(triton, [jpeg(200, 64, 64)])).as_numpy("COUNT").tolist() == [[2]]


async def test_no_bytecode_is_written_into_the_version_folder(triton: TritonServer, files: Path) -> None:
    await infer(triton, [jpeg(200, 64, 64)])
    assert not list((triton.repository / MODEL).rglob("*.pyc"))
