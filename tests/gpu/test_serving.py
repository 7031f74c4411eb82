"""ONNX Runtime with CUDA and with TensorRT against the runtime of evaluations, and the images a second they compute."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saucer.serving.errors import RuntimeUnusable
from saucer.serving.runtime import EVALUATED_WITH, GPU_RUNTIMES, TOLERANCES, Network
from saucer.serving.spec import GRAPH_FILE

BATCHES = (1, 8, 32)
# Of RTMDet-tiny's input, as tests/bench/serving.py exports it.
SIZE_PX = 320
ROUNDS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here: serving on one is unproven")
    from tests.bench.serving import write_rtmdet  # noqa: PLC0415 - the whole engine, for nothing where there is no GPU

    made: Path = tmp_path_factory.mktemp("rtmdet")
    write_rtmdet(made)
    return made


@pytest.fixture(scope="module", params=[runtime for runtime in GPU_RUNTIMES if runtime != EVALUATED_WITH])
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def network(folder: Path, runtime: str) -> Network:
    try:
        return Network(folder / GRAPH_FILE, 1, runtime)
    except RuntimeUnusable as error:
        pytest.skip(f"{error}: serving with {runtime} on this GPU is unproven")


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, SIZE_PX, SIZE_PX, 3), np.uint8)


def test_boxes_are_within_the_tolerance_of_the_runtime_of_evaluations(
    network: Network, runtime: str, folder: Path
) -> None:
    """Anchor by anchor: after the selection, two boxes of almost one score may stand in either order."""
    images, tolerance = pictures(64), TOLERANCES[runtime]
    evaluated = Network(folder / GRAPH_FILE, 4)
    for start in range(0, len(images), 8):
        boxes, scores = network(images[start : start + 8])
        expected_boxes, expected_scores = evaluated(images[start : start + 8])
        apart_px = np.abs(boxes - expected_boxes).max(axis=-1)
        apart = np.abs(scores - expected_scores).max(axis=-1)
        near = (apart_px <= tolerance.box_px) & (apart <= tolerance.score)
        print(f"at most {apart_px.max():.2g} px and {apart.max():.2g} of a score; {near.mean():.4%} within {tolerance}")
        assert near.mean() * 1000 >= tolerance.permille


@pytest.mark.parametrize("batch", BATCHES)
def test_images_a_second_are_more_than_on_the_processor(
    network: Network, runtime: str, folder: Path, batch: int
) -> None:
    images = pictures(batch)
    on_gpu = per_second(network, images)
    on_processor = per_second(Network(folder / GRAPH_FILE, 4), images)
    print(f"batch {batch}: {on_gpu:.0f} images/s with {runtime}, {on_processor:.0f} on 4 threads of the processor")
    assert on_gpu > on_processor


def per_second(compute: Callable[[NDArray[np.uint8]], object], images: NDArray[np.uint8]) -> float:
    """The median of ROUNDS, once it is warm."""
    took_s = []
    for number in range(ROUNDS + 3):
        begun_s = time.perf_counter()
        compute(images)
        if number >= 3:
            took_s.append(time.perf_counter() - begun_s)
    return len(images) / float(np.median(took_s))
