"""Which runtime is tried next where a replay does not agree with the evaluation."""

from collections.abc import Mapping

import pytest

from saucer.publishing.gate import Gate, RuntimeChoice, explain, fall_back, outdoes
from saucer.serving.choosing import Choice
from saucer.serving.runtime import TOLERANCES
from tests.unit.publishing.examples import PARITY

PROCESSOR = {"openvino_bf16": 7.2, "openvino": 18.5, "onnxruntime": 21.0}
GPU = {"onnxruntime_tensorrt": 1.1, "onnxruntime_cuda": 1.9, "onnxruntime": 18.3}


@pytest.mark.parametrize(
    ("failed", "measured_ms", "following"),
    [
        ("openvino_bf16", PROCESSOR, "openvino"),
        ("openvino_bf16", PROCESSOR | {"onnxruntime": 18.6}, "onnxruntime"),
        ("openvino", PROCESSOR, "onnxruntime"),
        ("onnxruntime_tensorrt", GPU, "onnxruntime_cuda"),
        ("onnxruntime_cuda", GPU, "onnxruntime"),
        ("openvino", {}, "onnxruntime"),
        ("openvino_bf16", {"openvino_bf16": 7.2}, "onnxruntime"),
    ],
)
def test_after_one_that_differs_the_next_best_is_tried_and_in_the_end_that_of_evaluations(
    failed: str, measured_ms: Mapping[str, float], following: str
) -> None:
    measured = tuple(measured_ms.items())
    gate = Gate(PARITY, (), TOLERANCES[failed], RuntimeChoice(failed, measured, "It was the fastest."))
    choice = fall_back(gate)
    assert (choice.runtime, choice.measured_ms) == (following, measured)
    assert choice.reason.startswith(f"It was the fastest. With {failed} only ")


def test_what_is_served_instead_of_a_runtime_that_failed_is_not_the_last_word() -> None:
    measured_ms = {"onnxruntime": 20.0, "openvino_bf16": 7.0}
    lacking = Choice("openvino_bf16", measured_ms, {"openvino": "OpenVINO is not installed"})
    failed = Choice("openvino_bf16", measured_ms, {"openvino": "MemoryError: "}, ["openvino"])
    assert explain(lacking).complete
    assert not explain(failed).complete
    differing = Gate(PARITY, (), TOLERANCES["openvino_bf16"], explain(failed))
    assert not fall_back(differing).complete


@pytest.mark.parametrize(
    ("kept", "found", "stays"),
    [
        (("onnxruntime_cuda", 2.0, False), ("onnxruntime", 18.0, False), True),
        (("onnxruntime_cuda", 2.0, False), ("onnxruntime", None, False), True),
        (("onnxruntime_cuda", 2.0, True), ("onnxruntime_tensorrt", 1.0, False), True),
        (("onnxruntime_cuda", 2.0, False), ("onnxruntime_tensorrt", 1.0, False), False),
        (("onnxruntime_cuda", 2.0, False), ("onnxruntime", 18.0, True), False),
        (("onnxruntime", None, False), ("onnxruntime", None, False), False),
    ],
)
def test_what_was_kept_goes_for_what_is_measured_whole_or_is_faster(
    kept: tuple[str, float | None, bool], found: tuple[str, float | None, bool], stays: bool
) -> None:
    def choice(runtime: str, took_ms: float | None, complete: bool) -> RuntimeChoice:
        return RuntimeChoice(runtime, () if took_ms is None else ((runtime, took_ms),), "", complete)

    assert outdoes(choice(*kept), choice(*found)) is stays
