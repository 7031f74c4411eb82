"""Which runtime serves a model: the fastest on the machine that serves, as long as its boxes are the evaluation's.

1. Those that are to be tried load the model one after another; what this machine lacks is left out (trial.py).
2. They take turns at one image, ROUNDS times; a runtime's time is its median. So what else the machine does meanwhile
   meets all of them.
3. The runtime of evaluations serves unless another takes at most FASTER of its time: what is gained must be worth boxes
   that differ in their last digits.
4. Publishing replays test images and compares within the tolerance of the runtime that was chosen (runtime.TOLERANCES).
   Where they differ by more, the next best serves, in the end that of evaluations.
5. Publishing keeps the choice, once for each model and spec; one for which a runtime failed that the machine has, only
   for a while, after which the next replay measures anew.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .detector import Detector
from .runtime import EVALUATED_WITH

ROUNDS = 9
MEASURE_S = 2.0
"""No further round after that long."""
FASTER = 0.9


@dataclass(frozen=True)
class Choice:
    """The runtime that serves, the milliseconds that each took for one image (none where only one was tried), why
    others are not used, by runtime, and which of these the machine does have: they failed, and may not the next time.
    """

    runtime: str
    measured_ms: Mapping[str, float] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    failed: Sequence[str] = field(default_factory=list)


def measure(detectors: Mapping[str, Detector]) -> dict[str, float]:
    """Milliseconds that each network takes for one image, once it is warm."""
    took_ms: dict[str, list[float]] = {runtime: [] for runtime in detectors}
    end_s = time.perf_counter() + MEASURE_S
    for number in range(ROUNDS):
        if number > 0 and time.perf_counter() > end_s:
            break
        for runtime, detector in detectors.items():
            begun_s = time.perf_counter()
            detector.compute_blank(1)
            took_ms[runtime].append(1000 * (time.perf_counter() - begun_s))
    return {runtime: statistics.median(durations) for runtime, durations in took_ms.items()}


def choose(measured_ms: Mapping[str, float]) -> str:
    """The fastest, or the one of evaluations if that is nearly as fast. `measured_ms` must not be empty."""
    fastest = min(measured_ms, key=lambda runtime: measured_ms[runtime])
    usual_ms = measured_ms.get(EVALUATED_WITH)
    if usual_ms is not None and measured_ms[fastest] > FASTER * usual_ms:
        return EVALUATED_WITH
    return fastest
