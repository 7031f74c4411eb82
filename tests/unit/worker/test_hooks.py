"""What is added to the engine's loops."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import nn

from saucer.worker import hooks
from saucer.worker.checkpoint import RunState
from saucer.worker.hooks import ProgressHook, StateHook, StoppableValLoop, averaged
from saucer.worker.job import Checkpoint, EndReason, Progress, TrainJob
from saucer.worker.pace import Pace


class Played:
    """StateHook in a training whose clock moves as told; `saved` are its checkpoints, each of which is kept `upload_s`
    later, and `lost` is the most that a kill had cost so far: iterations, and seconds of training."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.saved: list[int] = []
        self.upload_s = 0.0
        self.lost = (0, 0.0)
        self.stop: EndReason | None = None
        self._done_s = {0: 0.0}
        self._kept_at_s = {0: 0.0}
        self._pace = Pace()
        monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: self.now_s, sleep=self._sleep))
        clock = SimpleNamespace(elapsed_ms=0)
        stopper: Any = SimpleNamespace(clock=clock, check=lambda: self.stop, kept_iteration=0)
        self._stopper = stopper
        state = RunState(0, 0, "", [])
        self._hook = StateHook(state, folder, stopper, self._pace, self._told, waits_for_kept=True)
        self._runner: Any = SimpleNamespace(iter=0, epoch=0, save_checkpoint=lambda *_, **__: None, logger=logging)
        self._hook.before_train(self._runner)

    def _told(self, report: object) -> None:
        assert isinstance(report, Checkpoint)
        self.saved.append(report.iteration)
        self._kept_at_s[report.iteration] = self.now_s + self.upload_s

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._stopper.kept_iteration = max(i for i, at_s in self._kept_at_s.items() if at_s <= self.now_s)

    def iterate(self, iterations: int, iteration_s: float = 1.0) -> None:
        for _ in range(iterations):
            self._sleep(iteration_s)
            done, kept = self._runner.iter + 1, self._stopper.kept_iteration
            self._done_s[done] = self._done_s[done - 1] + iteration_s
            self.lost = max(self.lost[0], done - kept), max(self.lost[1], self._done_s[done] - self._done_s[kept])
            self._hook.after_train_iter(self._runner, 0)
            self._runner.iter += 1

    def validate(self, taken_s: float) -> None:
        self._hook.before_val(self._runner)
        self._sleep(taken_s)
        self._pace.validation(taken_s)
        self._hook.after_val(self._runner)


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


@pytest.mark.parametrize("upload_s", [0.1, 4.0, 200.0])
@pytest.mark.parametrize("iteration_s", [0.01, 0.2, 1.0, 7.0])
def test_whatever_an_upload_takes_a_kill_costs_no_more_than_it_may(
    played: Played, iteration_s: float, upload_s: float
) -> None:
    played.upload_s = upload_s
    played.iterate(200, iteration_s)
    iterations, seconds = played.lost
    assert iterations <= hooks.LOST_ITERATIONS
    assert seconds < hooks.LOST_S + iteration_s, "what an iteration takes is known at its end"


def test_training_does_not_wait_where_uploads_keep_up(played: Played) -> None:
    played.upload_s = 4.0
    began_s = played.now_s
    played.iterate(300, 0.8)
    assert played.now_s - began_s == pytest.approx(300 * 0.8)


def test_the_time_of_a_validation_is_none_that_a_kill_costs(played: Played) -> None:
    played.iterate(3)
    played.validate(100)
    played.upload_s = 10.0
    began_s = played.now_s
    played.iterate(20)
    assert played.now_s - began_s == pytest.approx(20)


def test_an_order_to_stop_ends_the_waiting(played: Played) -> None:
    played.upload_s = 200.0
    played.stop = EndReason.STOPPED
    played.iterate(100)
    assert played.now_s < 1000 + 101


def test_without_an_object_store_training_goes_on_after_a_while(played: Played) -> None:
    played.upload_s = math.inf
    played.iterate(60, 0.1)
    assert played.now_s == pytest.approx(1000 + 60 * 0.1 + hooks.MAX_HOLD_S, abs=1)


def test_a_validation_tells_how_far_it_is_and_from_which_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: now_s))
    told: list[Any] = []
    pace = Pace()
    for _ in range(2):
        pace.iteration(1.0)
    pace.validation(8.0)
    job = TrainJob("", "", "", ("any",), epochs=10)
    state, stopper = (
        RunState(20, 0, "", [], validation_interval=20),
        SimpleNamespace(clock=SimpleNamespace(elapsed_ms=0)),
    )
    hook = ProgressHook(job, state, pace, 10, stopper, told.append)  # type: ignore[arg-type]  # has but a clock
    runner: Any = SimpleNamespace(iter=18, val_loop=SimpleNamespace(dataloader=[None] * 7))
    hook.after_train_iter(runner, 0)
    runner.iter = 20
    hook.before_val(runner)
    for batch in range(7):
        now_s += 0.3
        hook.after_val_iter(runner, batch)
    runner.iter = 20
    now_s += 0.5
    hook.after_train_iter(runner, 0)
    assert all(isinstance(report, Progress) for report in told)
    assert [(report.iteration, report.validated) for report in told] == [
        (19, 0),
        *((20, validated) for validated in (0, 2 / 8, 4 / 8, 6 / 8)),
        (21, 0),
    ]
    assert [report.left_ms for report in told[1:5]] == [1_000 * (80 + 40 - done) for done in (0, 2, 4, 6)]


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
