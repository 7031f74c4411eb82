"""What is added to the engine's loops."""

from types import SimpleNamespace
from typing import Any

import torch
from mmengine.hooks import EMAHook
from torch import nn

from saucer.worker.hooks import StoppableValLoop, averaged


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
