"""What is added to the engine's loops."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import nn

from saucer.worker import hooks
from saucer.worker.checkpoint import RunState
from saucer.worker.hooks import StateHook, StoppableValLoop, averaged
from saucer.worker.job import Checkpoint
from saucer.worker.pace import Pace


class Played:
    """StateHook in a training of one-second iterations, by a clock that moves as told; `saved` are its checkpoints."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.saved: list[int] = []
        self._pace = Pace()
        monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        stopper: Any = SimpleNamespace(clock=SimpleNamespace(elapsed_ms=0))
        self._hook = StateHook(RunState(0, 0, "", []), folder, stopper, self._pace, self._told)
        self._runner: Any = SimpleNamespace(iter=0, epoch=0, save_checkpoint=lambda *_, **__: None)
        self._hook.before_train(self._runner)

    def _told(self, report: object) -> None:
        assert isinstance(report, Checkpoint)
        self.saved.append(report.iteration)

    def iterate(self, iterations: int) -> None:
        for _ in range(iterations):
            self.now_s += 1
            self._hook.after_train_iter(self._runner, 0)
            self._runner.iter += 1

    def validate(self, taken_s: float) -> None:
        self._hook.before_val(self._runner)
        self.now_s += taken_s
        self._pace.validation(taken_s)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(tmp_path, monkeypatch)


def test_before_a_validation_that_takes_long_what_was_trained_is_saved(played: Played) -> None:
    played.iterate(5)
    played.validate(40)
    assert played.saved == [5], "nobody knows how long the first one takes"
    played.iterate(24)
    saved = list(played.saved)
    played.validate(40)
    assert played.saved == [*saved, 29]


def test_before_a_short_validation_a_checkpoint_is_saved_only_if_it_would_be_late(played: Played) -> None:
    played.iterate(1)
    played.validate(3)
    played.iterate(10)
    played.validate(3)
    assert played.saved == [1]
    played.iterate(8)
    assert played.saved == [1]
    played.validate(3)
    assert played.saved == [1, 19]


def test_a_validation_of_what_is_saved_already_saves_nothing(played: Played) -> None:
    played.validate(40)
    assert played.saved == []


def test_a_validation_that_is_cut_short_leaves_the_model_its_own_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = EMAHook("ExponentialMovingAverage", update_buffers=True)
    runner: Any = SimpleNamespace(model=model, hooks=[average], train_loop=SimpleNamespace(stop_training=False))
    runner.call_hook = lambda name: getattr(average, name)(runner)
    average.before_run(runner)
    averaged_weight = averaged(runner).get_parameter("weight")
    with torch.no_grad():
        model.weight.fill_(5)
        averaged_weight.fill_(3)
    loop = StoppableValLoop.__new__(StoppableValLoop)
    loop._runner, loop.dataloader, loop.val_loss = runner, [None], {}
    loop.evaluator = SimpleNamespace(metrics=[SimpleNamespace(results=[1])])
    validated_with = []

    def check() -> str:
        validated_with.append(model.weight.item())
        return "a stop"

    loop.stopper = SimpleNamespace(check=check)  # type: ignore[assignment]
    assert loop._validate() == {}
    assert runner.train_loop.stop_training
    assert validated_with == [3]
    assert (model.weight.item(), averaged_weight.item()) == (5, 3)
