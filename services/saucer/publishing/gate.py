"""The gate of a version: the replay's result, what differed most, and the runtime that serves it and why. No I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from saucer.publishing.domain import Parity
from saucer.publishing.parity import ImageParity, choose_worst, judge
from saucer.serving.choosing import Choice, choose
from saucer.serving.runtime import EVALUATED_WITH, TOLERANCES, Tolerance


@dataclass(frozen=True)
class RuntimeChoice:
    """The runtime that serves a model on a spec: what each took for one image there, and why this one.

    It is complete if no runtime failed when it was to be measured.
    """

    runtime: str
    measured_ms: tuple[tuple[str, float], ...]
    reason: str
    complete: bool = True


@dataclass(frozen=True)
class Gate:
    """One replay of test images, with the runtime that served them and the tolerance that it was judged by."""

    parity: Parity
    worst: tuple[ImageParity, ...]
    tolerance: Tolerance
    choice: RuntimeChoice
    replayed_at: datetime | None = None


def make_gate(images: Sequence[ImageParity], choice: RuntimeChoice) -> Gate:
    """Of what was compared within the tolerance of the choice's runtime."""
    tolerance = TOLERANCES[choice.runtime]
    return Gate(judge(images, tolerance), choose_worst(images), tolerance, choice)


def explain(found: Choice) -> RuntimeChoice:
    """What the model's machine found, in a sentence or two."""
    measured = sorted(found.measured_ms.items(), key=lambda item: item[1])
    sentences = [f"{runtime} is not used: {reason}." for runtime, reason in sorted(found.unusable.items())]
    if measured:
        took = ", ".join(f"{runtime} {milliseconds:.1f} ms" for runtime, milliseconds in measured)
        sentences.insert(0, f"For one image there: {took}.")
    elif not sentences:
        sentences = ["It was not measured against others."]
    return RuntimeChoice(found.runtime, tuple(measured), " ".join(sentences), complete=not found.failed)


def outdoes(kept: RuntimeChoice, found: RuntimeChoice) -> bool:
    """Whether what was found later, when a runtime failed, is no reason to give up what was kept."""
    return not found.complete and (kept.complete or _took_ms(kept) < _took_ms(found))


def fall_back(failed: Gate) -> RuntimeChoice:
    """The next best, since what was served with a faster one differed too much; in the end that of evaluations."""
    choice, parity = failed.choice, failed.parity
    found = f"With {choice.runtime} only {parity.paired} of {parity.boxes} boxes agreed with the evaluation."
    took_ms = _took_ms(choice)
    slower_ms = {runtime: milliseconds for runtime, milliseconds in choice.measured_ms if milliseconds > took_ms}
    runtime = choose(slower_ms) if slower_ms else EVALUATED_WITH
    return RuntimeChoice(runtime, choice.measured_ms, f"{choice.reason} {found}", choice.complete)


def _took_ms(choice: RuntimeChoice) -> float:
    """Infinite where it was not measured."""
    return dict(choice.measured_ms).get(choice.runtime, math.inf)
