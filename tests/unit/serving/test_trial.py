"""A first load in a child process: what hangs, fails or dies there is a finding, and another runtime may serve."""

import shutil
import sys
from pathlib import Path

import pytest

from saucer import serving
from saucer.serving.choosing import Choice
from saucer.serving.trial import TrialFailed, attempt
from tests.support.graphs import write_model

# A child imports and loads within two seconds; a busy machine takes longer.
TIMEOUT_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version folder, as publishing lays it out."""
    made = write_model(tmp_path / "model")
    shutil.copytree(Path(serving.__path__[0]), made / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    return made


def spoil(folder: Path, runtime: str, statement: str) -> None:
    """Lets the loader of a runtime do something else."""
    with (folder / "serving" / "runtime.py").open("a") as file:
        file.write(f"\n\ndef _spoilt(path, threads):\n    {statement}\n\n\n_LOADERS[{runtime!r}] = _spoilt\n")


def tried(folder: Path, *runtimes: str, timeout_s: float = TIMEOUT_S) -> Choice:
    return attempt(folder, 1, timeout_s, runtimes, python=sys.executable)


def test_one_runtime_is_tried_and_not_measured(folder: Path) -> None:
    assert tried(folder, "onnxruntime") == Choice("onnxruntime")


def test_several_are_measured_and_one_that_the_machine_lacks_is_named(folder: Path) -> None:
    spoil(folder, "openvino_bf16", 'raise RuntimeUnusable("this processor does not compute in bfloat16")')
    spoil(folder, "openvino", "return _onnxruntime(path, threads)")
    choice = tried(folder, "onnxruntime", "openvino", "openvino_bf16")
    assert choice.measured_ms.keys() == {"onnxruntime", "openvino"}
    assert choice.unusable == {"openvino_bf16": "this processor does not compute in bfloat16"}
    assert choice.failed == []


def test_where_the_only_one_wanted_is_lacking_that_of_evaluations_serves(folder: Path) -> None:
    spoil(folder, "openvino", 'raise RuntimeUnusable("OpenVINO is not installed")')
    assert tried(folder, "openvino") == Choice("onnxruntime", {}, {"openvino": "OpenVINO is not installed"})


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("import os; os._exit(3)", "the model ended its process before it had computed: exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "the model ended its process: signal 9"),
        ("import time; time.sleep(100)", "the model did not load and compute within 20 s"),
        ('raise ValueError("no such operator")', "ValueError: no such operator"),
    ],
)
def test_a_runtime_that_fails_is_left_out_and_that_of_evaluations_serves(
    folder: Path, statement: str, reason: str
) -> None:
    spoil(folder, "openvino", statement)
    assert tried(folder, "onnxruntime", "openvino", timeout_s=20.0) == Choice(
        "onnxruntime", {}, {"openvino": reason}, ["openvino"]
    )


def test_what_is_not_done_in_time_costs_only_itself(folder: Path) -> None:
    """As TensorRT may, which makes its engines first: CUDA serves then, and not the processor."""
    spoil(folder, "onnxruntime_cuda", "return _onnxruntime(path, threads)")
    spoil(folder, "onnxruntime_tensorrt", "import time; time.sleep(100)")
    choice = tried(folder, "onnxruntime", "onnxruntime_cuda", "onnxruntime_tensorrt", timeout_s=20.0)
    assert choice.measured_ms.keys() == {"onnxruntime", "onnxruntime_cuda"}
    assert choice.unusable == {"onnxruntime_tensorrt": "the model did not load and compute within 20 s"}
    assert choice.failed == ["onnxruntime_tensorrt"]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("import os; os._exit(0)", "exit status 0"),
        ('raise ModelFolderError("model.onnx cannot be loaded: cut")', "model.onnx cannot be loaded: cut"),
    ],
)
def test_a_model_that_the_runtime_of_evaluations_does_not_take_fails(folder: Path, statement: str, reason: str) -> None:
    spoil(folder, "onnxruntime", statement)
    with pytest.raises(TrialFailed, match=reason):
        tried(folder, "onnxruntime", "openvino")
