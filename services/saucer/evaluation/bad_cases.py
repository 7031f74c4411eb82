"""What is wrong at a threshold, box by box and image by image, read off the one pass (M10)."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.matching import NEVER, NONE, Scored, Verdict, at_score_precision

Column = TypeVar("Column", bound=np.generic)


class FaultKind(IntEnum):
    FALSE_POSITIVE = 0
    MISS = 1
    CONFUSED = 2
    POORLY_PLACED = 3


class TruthState(IntEnum):
    """What became of a truth at a threshold; the first that applies, in this order."""

    CROWD = 0
    FOUND = 1
    CONFUSED = 2
    POORLY_PLACED = 3
    MISSED = 4


ScoreRange = tuple[float, float]
"""From … to, both within; rounded to float32 as scores are."""

_KIND_OF_VERDICT = {
    Verdict.FALSE_POSITIVE: FaultKind.FALSE_POSITIVE,
    Verdict.CONFUSED: FaultKind.CONFUSED,
    Verdict.POORLY_PLACED: FaultKind.POORLY_PLACED,
}
_KINDS = tuple(FaultKind)
_ROWS_AT_ONCE = 2**17
# By Verdict; what is no fault has a kind that nobody asks for.
_KINDS_OF_VERDICTS = np.array([_KIND_OF_VERDICT.get(verdict, FaultKind.MISS) for verdict in sorted(Verdict)], np.uint8)


class Fault(NamedTuple):
    """One fault. A miss has no detection, score and label, but of whole images those of the answer that is not sure; a
    false positive that is no duplicate has no truth.

    `detection` and `truth` are row numbers of the columns that were matched; `iou` is that of the two boxes, 0 where
    one is missing.
    """

    kind: FaultKind
    image_id: int
    detection: int | None
    truth: int | None
    iou: float
    score: float | None
    label: int | None
    truth_label: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Faults:
    """Faults as columns of k rows, ordered by image id, then kind, then falling score, then row number.

    `image` int32 [k] indexes Scored.images; `kind` uint8 (FaultKind); `detection` and `truth` int32, `label` and
    `truth_label` int32: NONE where there is none; `iou` float32; `score` float32, NEVER where there is no detection.
    """

    images: NDArray[np.int64]
    image: NDArray[np.int32]
    kind: NDArray[np.uint8]
    detection: NDArray[np.int32]
    truth: NDArray[np.int32]
    iou: NDArray[np.float32]
    score: NDArray[np.float32]
    label: NDArray[np.int32]
    truth_label: NDArray[np.int32]

    def __len__(self) -> int:
        return self.kind.size

    def image_ids(self) -> NDArray[np.int64]:
        """Ids of the images with at least one of these faults, ascending: the bad cases."""
        return self.images[np.unique(self.image)]

    def count(self, kind: FaultKind) -> int:
        return int((self.kind == kind).sum())

    def by_image(self, offset: int = 0, limit: int | None = None) -> list[tuple[int, list[Fault]]]:
        """Bad cases number `offset` and following, at most `limit`, by image id: the id and its faults."""
        bad = np.unique(self.image)[offset : None if limit is None else offset + limit]
        firsts, ends = np.searchsorted(self.image, bad, "left"), np.searchsorted(self.image, bad, "right")
        return [
            (int(self.images[image]), list(self._rows(first, end)))
            for image, first, end in zip(bad.tolist(), firsts.tolist(), ends.tolist(), strict=True)
        ]

    def _rows(self, first: int, end: int) -> Iterator[Fault]:
        columns = (
            self.kind,
            self.image,
            self.detection,
            self.truth,
            self.iou,
            self.score,
            self.label,
            self.truth_label,
        )
        # Of thousands of rows plain numbers take a third of the time that numpy's own take.
        for kind, image, detection, truth, iou, score, label, truth_label in zip(
            *(column[first:end].tolist() for column in columns), strict=True
        ):
            yield Fault(
                kind=_KINDS[kind],
                image_id=int(self.images[image]),
                detection=_some(detection),
                truth=_some(truth),
                iou=iou,
                score=None if score == NEVER else score,
                label=_some(label),
                truth_label=_some(truth_label),
            )


def truth_states(scored: Scored, threshold: float) -> NDArray[np.uint8]:
    """TruthState of every truth, uint8 [t]. Raises ValueError for a threshold that is not a number."""
    at = at_score_precision(threshold)
    states = np.full(scored.truth_label.size, TruthState.MISSED, np.uint8)
    states[_reached(scored.poor_score, at)] = TruthState.POORLY_PLACED
    states[_reached(scored.confused_score, at)] = TruthState.CONFUSED
    states[_reached(scored.found_score, at)] = TruthState.FOUND
    states[scored.truth_crowd] = TruthState.CROWD
    return states


@dataclass(frozen=True, slots=True, eq=False)
class FaultRows:
    """Which rows the faults at a threshold are of, before one is put together: detections that are wrong (`wrong`, bool
    [n]), truths that are missed (`missing`, bool [t]); and `answers` as fault_rows() got them."""

    scored: Scored
    wrong: NDArray[np.bool_]
    missing: NDArray[np.bool_]
    answers: NDArray[np.integer] | None

    def counts(self) -> NDArray[np.int64]:
        """How many faults each image has, int64 [m]."""
        images = self.scored.images.size
        return _count(self.scored.image, self.wrong, images) + _count(self.scored.truth_image, self.missing, images)

    def faults(
        self, detections: NDArray[np.integer] | None = None, truths: NDArray[np.integer] | None = None
    ) -> Faults:
        """Those of these rows; of all where none are given."""
        scored, wrong, missing = self.scored, _among(self.wrong, detections), _among(self.missing, truths)
        detection = np.concatenate([wrong, _unsure(self.answers, missing)])
        truth = np.concatenate([scored.truth[wrong], missing])
        kind = _KINDS_OF_VERDICTS[scored.verdict[wrong]]
        faults = Faults(
            images=scored.images,
            image=np.concatenate([scored.image[wrong], scored.truth_image[missing]]),
            kind=np.concatenate([kind, np.full(missing.size, FaultKind.MISS, np.uint8)]),
            detection=detection.astype(np.int32),
            truth=truth.astype(np.int32),
            iou=_taken(scored.iou, detection, 0),
            score=_taken(scored.score, detection, NEVER),
            label=_taken(scored.label, detection, NONE),
            truth_label=_taken(scored.truth_label, truth, NONE),
        )
        rows = np.lexsort((faults.truth, faults.detection, -faults.score, faults.kind, faults.image))
        columns = {field.name: getattr(faults, field.name) for field in fields(Faults)}
        return Faults(**{name: values if name == "images" else values[rows] for name, values in columns.items()})


def bad_cases(
    scored: Scored,
    threshold: float,
    kinds: Collection[FaultKind] = tuple(FaultKind),
    label: int | None = None,
    scores: ScoreRange | None = None,
) -> Faults:
    """All that fault_rows() finds."""
    return fault_rows(scored, threshold, kinds, label, scores).faults()


def fault_rows(
    scored: Scored,
    threshold: float,
    kinds: Collection[FaultKind] = tuple(FaultKind),
    label: int | None = None,
    scores: ScoreRange | None = None,
    answers: NDArray[np.integer] | None = None,
) -> FaultRows:
    """Faults of the detections with score >= threshold and of the truths that they leave, in O(n + t).

    `kinds`, `label` and `scores` filter; a fault is of a class if its detection or its truth is, so that a confusion
    shows under both. A miss is of its truth's class alone, and without a score it lies in no range. `answers`, of whole
    images: classifying.answers_by_truth(). Raises ValueError for a threshold that is not a number.
    """
    wrong = np.zeros(scored.verdict.size, np.bool_)
    for verdict, kind in _KIND_OF_VERDICT.items():
        if kind in kinds:
            wrong |= scored.verdict == verdict
    wrong &= scored.score >= at_score_precision(threshold)
    if FaultKind.MISS in kinds and (scores is None or answers is not None):
        # A truth that a confused or poorly placed detection names is told of there, and not as a miss again.
        missing = truth_states(scored, threshold) == TruthState.MISSED
    else:
        missing = np.zeros(scored.truth_label.size, np.bool_)
    if scores is not None:
        low, high = map(at_score_precision, scores)
        wrong &= (scored.score >= low) & (scored.score <= high)
        if answers is not None:
            score = _taken(scored.score, answers, NEVER)
            missing &= _reached(score, low) & (score <= high)
    if label is not None:
        rows = np.flatnonzero(wrong)
        wrong[rows] = (scored.label[rows] == label) | (_taken(scored.truth_label, scored.truth[rows], NONE) == label)
        missing &= scored.truth_label == label
    return FaultRows(scored, wrong, missing, answers)


def _unsure(answers: NDArray[np.integer] | None, truths: NDArray[np.integer]) -> NDArray[np.intp]:
    """The row of the answer that is not sure about each of these truths; NONE where there is none."""
    return np.full(truths.size, NONE, np.intp) if answers is None else answers[truths].astype(np.intp)


def _among(mask: NDArray[np.bool_], rows: NDArray[np.integer] | None) -> NDArray[np.integer]:
    """Rows that the mask has, of these or of all."""
    return np.flatnonzero(mask) if rows is None else rows[mask[rows]]


def _count(image: NDArray[np.int32], mask: NDArray[np.bool_], images: int) -> NDArray[np.int64]:
    """Rows of each image that the mask has. In steps whose copies stay in the processor's cache: of two million rows
    at once those came from the kernel page by page, which took up to 80 ms."""
    counts = np.zeros(images, np.int64)
    for first in range(0, image.size, _ROWS_AT_ONCE):
        step = slice(first, first + _ROWS_AT_ONCE)
        counts += np.bincount(image[step][mask[step]], minlength=images)
    return counts


def _taken(column: NDArray[Column], rows: NDArray[np.integer], nothing: float | np.float32) -> NDArray[Column]:
    """The column at these rows; `nothing` where the row is NONE."""
    values = np.full(rows.size, nothing, column.dtype)
    values[rows != NONE] = column[rows[rows != NONE]]
    return values


def _reached(score: NDArray[np.float32], threshold: np.float32) -> NDArray[np.bool_]:
    # NEVER is no score: a threshold of minus infinity must not make it one.
    reached: NDArray[np.bool_] = (score >= threshold) & (score != NEVER)
    return reached


def _some(index: int) -> int | None:
    return None if index == NONE else index
