"""An evaluation: what it is, how its state may move, and its figures. No I/O."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from saucer.evaluation.metrics import Counts, weighted_mean

DEFAULT_THRESHOLD = 0.5
"""Of what a user sees first, of lists and of the event (PRODUCT 4.3)."""
MAX_MESSAGE = 2000
"""Characters of a sentence about a failure that are kept."""


class EvaluationState(StrEnum):
    """Of an evaluation. The last two are at rest."""

    SCORING = "SCORING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


TRANSITIONS: Mapping[EvaluationState, frozenset[EvaluationState]] = {
    EvaluationState.SCORING: frozenset({EvaluationState.SUCCEEDED, EvaluationState.FAILED}),
    EvaluationState.SUCCEEDED: frozenset(),
    EvaluationState.FAILED: frozenset(),
}


class CannotScoreError(Exception):
    """What was stored cannot be scored, now or later; the message says why."""


class ForbiddenMoveError(ValueError):
    """The table of transitions does not allow it."""


@dataclass(frozen=True)
class StoredFile:
    """An object with the checksum that it must match. An empty key: the model came without this file."""

    key: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """What is scored: labels, and detections of the model on them."""

    manifest: StoredFile
    test: StoredFile
    validation: StoredFile
    image_prefix: str
    classes: tuple[str, ...]
    # Class by name in the manifest, where they differ.
    label_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassFigures:
    """Of one class; a ratio whose denominator is zero is None."""

    name: str
    boxes: int
    share: float | None
    ap: float | None
    ap_50: float | None
    recommended_threshold: float | None


@dataclass(frozen=True)
class CocoNumbers:
    """COCO's twelve numbers less `map` and `map_50` (M4); None: no truth of that size."""

    map_75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None


@dataclass(frozen=True)
class Figures:
    """What no threshold moves. `coco` is None of what was scored before it was kept, too."""

    images: int
    boxes: int
    # Those of which labels say that nothing is on them, too.
    unlabelled_images: int
    map: float | None
    map_50: float | None
    map_50_weighted: float | None
    recommended_threshold: float | None
    classes: tuple[ClassFigures, ...]
    coco: CocoNumbers | None = None
    # Of labels of whole images (M16); all that is COCO's is None then.
    classification: bool = False
    top_1: float | None = None
    top_5: float | None = None

    @property
    def map_weighted(self) -> float | None:
        """Mean of the classes' AP over IoU 0.50:0.95, each weighted by its boxes (M5)."""
        return weighted_mean([entry.ap for entry in self.classes], [entry.boxes for entry in self.classes])


@dataclass(frozen=True)
class AtThreshold:
    """What a threshold moves; `per_class` in the order of the classes."""

    threshold: float
    overall: Counts
    per_class: tuple[Counts, ...]
    map_50_above_threshold: float | None
    bad_images: int


@dataclass(frozen=True)
class Summary:
    """What the row keeps, so that lists and the event need nothing else: the figures, and those at the default."""

    figures: Figures
    at_default: AtThreshold

    def as_json(self) -> dict[str, Any]:
        """Of plain values alone."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Summary":
        """Of what as_json() gave. Raises KeyError or TypeError for anything else."""
        figures, at = stored["figures"], stored["at_default"]
        coco = figures.get("coco")
        return cls(
            Figures(
                **{
                    **figures,
                    "classes": tuple(ClassFigures(**entry) for entry in figures["classes"]),
                    "coco": CocoNumbers(**coco) if coco else None,
                }
            ),
            AtThreshold(
                **{
                    **at,
                    "overall": Counts(**at["overall"]),
                    "per_class": tuple(Counts(**counts) for counts in at["per_class"]),
                }
            ),
        )


@dataclass(frozen=True)
class Sums:
    """SHA-256 of what a scoring left in the store, each empty while it is not there.

    Evaluations that were scored before the validation split was kept have none of that.
    """

    scored: str = ""
    validation: str = ""
    truth: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a test split."""

    evaluation_id: str
    account_id: str
    task_id: str
    run_id: str
    model_id: str
    dataset_version_id: str
    source: Source
    state: EvaluationState
    error_message: str
    # Claims that were not given back, and child processes that died.
    attempts: int
    crashes: int
    # Once it has succeeded.
    summary: Summary | None
    sums: Sums
    duration_ms: int
    created_at: datetime
    ended_at: datetime | None
    revision: int
    # By a run that only predicts, not by the one that trained the model.
    by_prediction: bool = False
    # The trace of the run whose model it scores.
    traceparent: str | None = None

    @property
    def scored(self) -> StoredFile:
        """Where every detection is matched: a matching.Scored."""
        return StoredFile(f"{self._folder}/scored.npz", self.sums.scored)

    @property
    def scored_validation(self) -> StoredFile:
        """The same of the validation split."""
        return StoredFile(f"{self._folder}/validation.npz", self.sums.validation)

    @property
    def truth(self) -> StoredFile:
        """The labels of the test split and the names of its images: a stored.LabelledSet."""
        return StoredFile(f"{self._folder}/truth.npz", self.sums.truth)

    @property
    def _folder(self) -> str:
        return f"system/{self.account_id}/evaluations/{self.evaluation_id}"


def succeed(evaluation: Evaluation, summary: Summary, sums: Sums, duration_ms: int, now: datetime) -> Evaluation:
    """At rest, with its figures. Raises ForbiddenMoveError if it is at rest already."""
    ended = _end(evaluation, EvaluationState.SUCCEEDED, duration_ms, now)
    return replace(ended, summary=summary, sums=sums)


def fail(evaluation: Evaluation, message: str, duration_ms: int, now: datetime) -> Evaluation:
    """At rest, with a sentence. Raises ForbiddenMoveError if it is at rest already."""
    return replace(_end(evaluation, EvaluationState.FAILED, duration_ms, now), error_message=message[:MAX_MESSAGE])


def _end(evaluation: Evaluation, state: EvaluationState, duration_ms: int, now: datetime) -> Evaluation:
    if state not in TRANSITIONS[evaluation.state]:
        raise ForbiddenMoveError(f"{evaluation.state} cannot become {state}")
    return replace(evaluation, state=state, duration_ms=duration_ms, ended_at=now, revision=evaluation.revision + 1)
