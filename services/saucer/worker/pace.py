"""What a training's iterations and validations take, and so what is left of it."""

from array import array
from collections.abc import Sequence

FORGOTTEN = 0.25
"""The oldest part of what was done, which does not count: a process begins slowly."""


class Pace:
    """Of one attempt. All but the oldest part counts alike: over less, other work of the machine would pass for it."""

    def __init__(self) -> None:
        # Seconds up to the end of each, without the other kind.
        self._iterations_s = array("d", [0.0])
        self._validations_s = array("d", [0.0])

    def iteration(self, taken_s: float) -> None:
        """One more, with all that came with it, as its data and a checkpoint."""
        self._iterations_s.append(self._iterations_s[-1] + taken_s)

    def validation(self, taken_s: float) -> None:
        """One more."""
        self._validations_s.append(self._validations_s[-1] + taken_s)

    @property
    def iteration_s(self) -> float | None:
        """None before the second: the first is slow."""
        return _mean(self._iterations_s, forgotten=1)

    @property
    def validation_s(self) -> float:
        """0 before the first."""
        return _mean(self._validations_s) or 0.0

    def left_s(self, iterations: int, validations: float) -> float | None:
        """What so many will take; None while that is not known."""
        if self.iteration_s is None:
            return None
        return iterations * self.iteration_s + validations * self.validation_s


def _mean(ends_s: Sequence[float], forgotten: int = 0) -> float | None:
    """Of all but the oldest, `forgotten` of these at least; None if nothing is left."""
    last = len(ends_s) - 1
    first = max(forgotten, int(last * FORGOTTEN))
    return (ends_s[last] - ends_s[first]) / (last - first) if last > first else None


def validations_left(iteration: int, iterations: int, interval: int, validated: int) -> int:
    """Of a run that is validated each `interval` iterations and at its end, once `iteration` is finished; `validated`
    is the one that was validated last."""
    first = max(iteration, validated + 1)
    if first > iterations:
        return 0
    return iterations // interval - (first - 1) // interval + (iterations % interval > 0)
