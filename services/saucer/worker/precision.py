"""bf16 or fp32: whichever this processor trains faster with."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

TRIAL_ROUNDS = 3
TRIAL_S = 4.0
"""On a machine so busy that it takes longer, fewer rounds have to do, but one that counts."""
TRIAL_GAIN = 0.95
"""bf16 is taken if a step takes less than this share of fp32's time: equal speed is no reason to lose digits."""


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):  # type: ignore[misc]  # mmengine ships no types
    """bf16 autocast on the CPU too; mmengine's AmpOptimWrapper insists on an accelerator. bf16 has fp32's range, so no
    loss scaling is needed."""

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


def faster_precision(step: Callable[[], Any], device: str) -> str:
    """The faster of "bf16" and "fp32" on "cpu" or "cuda": `step`, a forward and a backward pass, timed in turns."""
    fp32_s, bf16_s = trial(step, device)
    return "bf16" if bf16_s < TRIAL_GAIN * fp32_s else "fp32"


def trial(step: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of the fastest step in fp32 and in bf16."""
    # On a CPU the time of this process: what else runs beside it must not decide.
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: dict[bool, list[float]] = {False: [], True: []}
    deadline_s = time.monotonic() + TRIAL_S
    for number in range(TRIAL_ROUNDS + 1):
        if number > 1 and time.monotonic() > deadline_s:
            break
        for enabled in (False, True):
            started = clock()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
                step()
            times[enabled].append(clock() - started)
    # The first round warms up and does not count.
    return min(times[False][1:]), min(times[True][1:])


def trial_step(model: torch.nn.Module, size: int, batch: int, device: str) -> Callable[[], Any]:
    """A step through the network of a detector (not its losses), on a copy, so that the model stays as it is."""
    network = copy.deepcopy(model).to(device).train()
    images = torch.zeros(batch, 3, size, size, device=device)

    def step() -> None:
        outputs = network(images, None, mode="tensor")
        sum(level.float().mean() for kind in outputs for level in kind).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step
