"""From bytes to boxes through a real, tiny graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from saucer.serving.detector import MAX_BATCH, Detector
from saucer.serving.errors import ModelFolderError, RuntimeUnusable, UnreadableImage
from saucer.serving.spec import GRAPH_FILE, SPEC_FILE, ModelSpec
from saucer.serving.triton_config import config_pbtxt
from tests.support.graphs import SPEC, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def grey(level: int, width: int = 64, height: int = 64) -> bytes:
    return bytes(cv2.imencode(".png", np.full((height, width, 3), level, np.uint8))[1])


def test_boxes_are_in_source_pixels_and_sorted_by_score(folder: Path) -> None:
    found = Detector.load(folder).detect([grey(51, 640, 640)])[0]
    assert found.boxes.tolist() == [[160, 160, 480, 480]] * 2
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.8, 0.2])
    assert (found.width, found.height) == (640, 640)


def test_detections_do_not_depend_on_the_batch(folder: Path) -> None:
    detector = Detector.load(folder)
    images = [grey(level, 40 + level, 90) for level in range(20, 20 + 2 * MAX_BATCH + 3)]
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        alone = detector.detect([image])[0]
        assert (found.width, found.height) == (alone.width, alone.height)
        assert found.labels.tolist() == alone.labels.tolist()
        assert np.allclose(found.boxes, alone.boxes, atol=1e-4)
        assert np.allclose(found.scores, alone.scores, atol=1e-6)


def test_what_lies_in_the_border_only_is_left_out(folder: Path) -> None:
    assert len(Detector.load(folder).detect([grey(128, 640, 100)])[0].scores) == 0


def test_no_images_are_no_detections(folder: Path) -> None:
    assert Detector.load(folder).detect([]) == []


def test_an_unreadable_image_is_named_as_such(folder: Path) -> None:
    with pytest.raises(UnreadableImage):
        Detector.load(folder).detect([grey(1), b"no image"])


def test_a_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=SPEC_FILE):
        Detector.load(tmp_path)
    (tmp_path / SPEC_FILE).write_text(SPEC.to_json())
    with pytest.raises(ModelFolderError, match=GRAPH_FILE):
        Detector.load(tmp_path)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / GRAPH_FILE).write_bytes(b"no graph")
    with pytest.raises(ModelFolderError, match="cannot be loaded"):
        Detector.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2}',
        '{"format": 1}',
        SPEC.to_json().replace('"input_size": 64', '"input_size": 0'),
        SPEC.to_json().replace('"score_floor": 0.01', '"score_floor": "high"'),
    ],
)
def test_a_description_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ModelFolderError):
        ModelSpec.from_json(text)


def test_a_description_is_read_as_it_was_written() -> None:
    spec = ModelSpec(("Tasse", "Teller", "杯"), 192, 0.02, 0.6, 100)
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize(("runtime", "name"), [("onnxruntime_cuda", "CUDA"), ("onnxruntime_tensorrt", "Tensorrt")])
def test_a_gpu_that_onnxruntime_does_not_have_is_said_to_be_lacking_and_the_processor_does_not_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, name: str
) -> None:
    if f"{name}ExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip(f"this build of ONNX Runtime has {name}: tests/gpu tries it")
    folder = write_model(tmp_path)
    with pytest.raises(RuntimeUnusable, match=f"this build of ONNX Runtime has no {name}"):
        Detector.load(folder, runtime=runtime)
    # As where the build has it, and the machine does not.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [f"{name}ExecutionProvider"])
    with (
        pytest.warns(UserWarning, match=f"{name}ExecutionProvider"),
        pytest.raises(RuntimeUnusable, match=f"cannot use {name}"),
    ):
        Detector.load(folder, runtime=runtime)


def test_a_gpu_whose_memory_is_taken_has_failed_and_is_not_said_to_be_lacking(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Short(onnxruntime.InferenceSession):  # type: ignore[misc] # it has no types
        def _create_inference_session(self, providers: Sequence[Any], *others: Any) -> None:
            if "CUDAExecutionProvider" in str(providers):
                raise RuntimeError("CUDA failure 2: out of memory")
            super()._create_inference_session(providers, *others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Short)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ModelFolderError, match="cannot be loaded: CUDA failure 2: out of memory"):
        Detector.load(folder, runtime="onnxruntime_cuda")


def test_the_triton_configuration_names_model_and_version() -> None:
    text = config_pbtxt("cup-plate.3", version=4, instances=2, threads=1)
    assert 'name: "cup-plate.3"' in text
    assert "specific { versions: [ 4 ] }" in text
    assert "kind: KIND_CPU, count: 2" in text
    assert "kind: KIND_GPU, gpus: [ 0 ], count: 3" in config_pbtxt("cups", instances=3, gpu=True)
    for name in ("", "../other", 'a"b', "x" * 129):
        with pytest.raises(ValueError, match="not a model name"):
            config_pbtxt(name)
