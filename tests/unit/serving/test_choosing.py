"""Which runtime serves: the fastest, unless the one of evaluations is nearly as fast."""

from collections.abc import Mapping

import pytest

from saucer.serving.choosing import ROUNDS, choose, measure


@pytest.mark.parametrize(
    ("measured_ms", "runtime"),
    [
        ({"onnxruntime": 18.3, "openvino": 18.5, "openvino_bf16": 7.2}, "openvino_bf16"),
        ({"onnxruntime": 18.3, "openvino": 16.4}, "openvino"),
        ({"onnxruntime": 18.3, "openvino": 16.6}, "onnxruntime"),
        ({"onnxruntime": 18.3, "openvino": 18.3}, "onnxruntime"),
        ({"openvino": 20.0, "openvino_bf16": 19.9}, "openvino_bf16"),
    ],
)
def test_a_runtime_takes_the_place_of_that_of_evaluations_if_it_saves_a_tenth(
    measured_ms: Mapping[str, float], runtime: str
) -> None:
    assert choose(measured_ms) == runtime


class Scripted:
    """A network that takes as long as a clock of the test's own says."""

    def __init__(self, clock: list[float], takes_s: list[float]) -> None:
        self._clock = clock
        self._takes_s = iter(takes_s)

    def compute_blank(self, batch: int) -> None:
        assert batch == 1
        self._clock[0] += next(self._takes_s)


def test_runtimes_take_turns_and_their_medians_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("saucer.serving.choosing.time.perf_counter", lambda: clock[0])
    usual = Scripted(clock, [0.02] * (ROUNDS - 2) + [0.5, 0.5])
    faster = Scripted(clock, [0.4] + [0.01] * (ROUNDS - 1))
    measured = measure({"onnxruntime": usual, "openvino": faster})  # type: ignore[dict-item]
    assert measured == {"onnxruntime": pytest.approx(20.0), "openvino": pytest.approx(10.0)}


def test_a_slow_model_is_measured_once_at_least_and_no_more_than_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("saucer.serving.choosing.time.perf_counter", lambda: clock[0])
    measured = measure({"onnxruntime": Scripted(clock, [1.5]), "openvino": Scripted(clock, [0.7])})  # type: ignore[dict-item]
    assert measured == {"onnxruntime": pytest.approx(1500.0), "openvino": pytest.approx(700.0)}
