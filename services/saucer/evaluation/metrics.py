"""Figures of a detector: COCO's averages, and counts, precision, recall and F1 at any threshold.

COCO's numbers come from hotcoco: its arrays equal pycocotools' (tests/unit/evaluation checks it) in a hundredth of the
time. The definitions are numbered in METRICS.md and named here by number (M1 …). One rule for all: a ratio whose
denominator is zero is None, never NaN and never COCO's -1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import hotcoco
import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.matching import (
    DetectionColumns,
    Scored,
    Verdict,
    at_score_precision,
    check,
    places,
)
from saucer.evaluation.sorting import ascending, falling
from saucer.evaluation.thinning import PrPoints
from saucer.evaluation.truth import Truth

AP_RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision (M4), from cocoeval.Params."""
ALL, SMALL, MEDIUM, LARGE = range(4)
"""Places of COCO's size classes in its arrays: any, below 32², below 96², from 96² square pixels."""


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """COCO's twelve numbers under the names used here, and what follows from the same arrays (M4, M5).

    Per class, in the order of the classes: `ap` (IoU 0.50:0.95), `ap_50`, `support` (truths that are no crowd).
    None: nothing to measure, since no truth of that class or size exists. With truths but no detection: 0.
    """

    map: float | None
    map_50: float | None
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
    map_weighted: float | None
    map_50_weighted: float | None
    ap: tuple[float | None, ...]
    ap_50: tuple[float | None, ...]
    support: tuple[int, ...]


def coco_metrics(truth: Truth, detections: DetectionColumns) -> CocoMetrics:
    """COCO's numbers over all detections: no threshold moves them.

    Raises:
        MismatchError: as matching.match does.
    """
    check(truth, detections)
    support = tuple(np.bincount(truth.label[~truth.crowd], minlength=len(truth.classes)).tolist())
    # Axes: IoU [10], recall [101], class, size, most detections an image (1, 10, 100). -1: no truth.
    arrays = coco_arrays(truth, detections)
    precision, recall = arrays.precision, arrays.recall
    ap = tuple(_mean(precision[:, :, label, ALL, 2]) for label in range(len(support)))
    ap_50 = tuple(_mean(precision[0, :, label, ALL, 2]) for label in range(len(support)))
    return CocoMetrics(
        map=_mean(precision[:, :, :, ALL, 2]),
        map_50=_mean(precision[0, :, :, ALL, 2]),
        map_75=_mean(precision[5, :, :, ALL, 2]),
        map_small=_mean(precision[:, :, :, SMALL, 2]),
        map_medium=_mean(precision[:, :, :, MEDIUM, 2]),
        map_large=_mean(precision[:, :, :, LARGE, 2]),
        ar_1=_mean(recall[:, :, ALL, 0]),
        ar_10=_mean(recall[:, :, ALL, 1]),
        ar_100=_mean(recall[:, :, ALL, 2]),
        ar_small=_mean(recall[:, :, SMALL, 2]),
        ar_medium=_mean(recall[:, :, MEDIUM, 2]),
        ar_large=_mean(recall[:, :, LARGE, 2]),
        map_weighted=weighted_mean(ap, support),
        map_50_weighted=weighted_mean(ap_50, support),
        ap=ap,
        ap_50=ap_50,
        support=support,
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """What stands at a threshold (M7): truths that are no crowd, and the kept detections that are not ignored."""

    truths: int
    true_positives: int
    false_positives: int

    @property
    def false_negatives(self) -> int:
        return self.truths - self.true_positives

    @property
    def precision(self) -> float | None:
        """None where nothing was detected."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """None where there is nothing to find."""
        return _ratio(self.true_positives, self.truths)

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None where there is neither truth nor detection."""
        return _ratio(2 * self.true_positives, self.true_positives + self.false_positives + self.truths)


class _Curve:
    """One class, or all together: scores ascending and, from each score up, the number of true positives."""

    def __init__(self, score: NDArray[np.float32], hit: NDArray[np.bool_], truths: int) -> None:
        """`score` falling; the order of equal ones makes no difference."""
        # A copy even of a single score: else all scores that it is one of stay in memory.
        self.score = score[::-1].copy()
        self.hits_from = np.append(np.cumsum(hit)[::-1], 0)
        self.truths = truths

    def at(self, threshold: np.float32) -> Counts:
        first = int(np.searchsorted(self.score, threshold, "left"))
        hits = int(self.hits_from[first])
        return Counts(self.truths, hits, self.score.size - first - hits)

    def by_score(self, edges: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        firsts = np.append(np.searchsorted(self.score, edges, "left"), self.score.size)
        hits = -np.diff(self.hits_from[firsts])
        return hits, np.diff(firsts) - hits

    @property
    def size_bytes(self) -> int:
        return self.score.nbytes + self.hits_from.nbytes

    def points(self) -> PrPoints:
        first = np.flatnonzero(np.append(True, self.score[1:] != self.score[:-1])[: self.score.size])
        threshold = self.score[first]
        hits, kept = self.hits_from[first], self.score.size - first
        rows = slice(None, None, -1) if self.truths else slice(0)
        return PrPoints(threshold[rows], hits[rows] / max(self.truths, 1), (hits / kept)[rows])


class _Ap50:
    """AP at IoU 0.5 of one class, of all detections from a threshold up, as COCO defines it (M4, M9)."""

    def __init__(self, score: NDArray[np.float32], hit: NDArray[np.bool_], truths: int) -> None:
        """`score` falling, of equal scores in COCO's order: by image id, then as given."""
        place = np.flatnonzero(hit)
        self.score = score[place]
        self.precision = np.arange(1, place.size + 1) / (place + 1)
        self.recall = np.arange(1, place.size + 1) / max(truths, 1)
        self.truths = truths

    @property
    def size_bytes(self) -> int:
        return self.score.nbytes + self.precision.nbytes + self.recall.nbytes

    def above(self, threshold: np.float32) -> float | None:
        if not self.truths:
            return None
        hits = int(np.searchsorted(-self.score, -threshold, "right"))
        # Precision falls between true positives, so the best from a recall on is always at one of them.
        best_from = np.append(np.maximum.accumulate(self.precision[:hits][::-1])[::-1], 0.0)
        return float(best_from[np.searchsorted(self.recall[:hits], AP_RECALLS, "left")].mean())


class ThresholdCurves:
    """Answers any threshold from a Scored: counts in O(log n), overall and per class (M7), and AP50 above it (M9).

    A threshold is rounded to float32, as scores are; detections with score >= threshold count. Every method that
    takes one raises ValueError if it is not a number. A class is given by its index; IndexError beyond the classes.
    """

    def __init__(self, scored: Scored) -> None:
        classes = int(scored.class_count)
        truths = np.bincount(scored.truth_label[~scored.truth_crowd], minlength=classes)
        by_score = np.lexsort((*ascending(scored.image), *falling(scored.score)))
        by_score = by_score[scored.verdict[by_score] != Verdict.IGNORED]
        score, label, capped = scored.score[by_score], scored.label[by_score], ~scored.beyond_cap[by_score]
        hit = scored.verdict[by_score] == Verdict.TRUE_POSITIVE
        self._overall = _Curve(score, hit, int(truths.sum()))
        by_class = np.lexsort(ascending(label))
        score, label, capped, hit = (column[by_class] for column in (score, label, capped, hit))
        self._classes: list[_Curve] = []
        self._ap_50: list[_Ap50] = []
        bounds = np.searchsorted(label, np.arange(classes + 1))
        for index, count in enumerate(truths.tolist()):
            mine = slice(bounds[index], bounds[index + 1])
            self._classes.append(_Curve(score[mine], hit[mine], count))
            self._ap_50.append(_Ap50(score[mine][capped[mine]], hit[mine][capped[mine]], count))

    def overall(self, threshold: float) -> Counts:
        """Counts over all classes together (micro-averaged ratios)."""
        return self._overall.at(at_score_precision(threshold))

    def per_class(self, threshold: float) -> list[Counts]:
        """Counts of each class, in the order of the classes."""
        at = at_score_precision(threshold)
        return [curve.at(at) for curve in self._classes]

    def of_class(self, label: int, threshold: float) -> Counts:
        """Counts of one class, for a threshold of its own."""
        return self._classes[label].at(at_score_precision(threshold))

    def at(self, label: int | None, threshold: float) -> Counts:
        """Counts of one class, or of all together."""
        return self.overall(threshold) if label is None else self.of_class(label, threshold)

    def by_score(self, label: int | None, edges: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """True and false positives of one class, or of all, from each edge to the next, and from the last one up.

        `edges` [k] ascend, and are rounded as thresholds are; int64 [k] each.
        """
        curve = self._overall if label is None else self._classes[label]
        return curve.by_score(np.array(edges, np.float32))

    def points(self, label: int | None = None) -> PrPoints:
        """The precision-recall curve of a class, or of all together; no points where there is no truth."""
        return (self._overall if label is None else self._classes[label]).points()

    def ap_50_above_threshold(self, threshold: float) -> list[float | None]:
        """AP at IoU 0.5 of each class, of the detections with score >= threshold alone; None without truth."""
        at = at_score_precision(threshold)
        return [curve.above(at) for curve in self._ap_50]

    def map_50_above_threshold(self, threshold: float) -> float | None:
        """Mean of the above over the classes that have truth; None if none has."""
        values = [value for value in self.ap_50_above_threshold(threshold) if value is not None]
        return math.fsum(values) / len(values) if values else None

    @property
    def size_bytes(self) -> int:
        """What it takes of the memory."""
        curves = sum(curve.size_bytes for curve in (self._overall, *self._classes))
        return curves + sum(ap_50.size_bytes for ap_50 in self._ap_50)


class ErrorsByImage:
    """FP + FN (M7) of each image at any threshold, found among those that make them alone."""

    def __init__(self, scored: Scored) -> None:
        wrong = np.flatnonzero((scored.verdict != Verdict.TRUE_POSITIVE) & (scored.verdict != Verdict.IGNORED))
        wrong = wrong[_rising(scored.score[wrong])]
        self._wrong_score, self._wrong_image = scored.score[wrong], scored.image[wrong]
        truth = np.flatnonzero(~scored.truth_crowd)
        truth = truth[_rising(scored.found_score[truth])]
        self._found_score, self._truth_image = scored.found_score[truth], scored.truth_image[truth]
        self._images = scored.images.size

    def at(self, threshold: float) -> NDArray[np.int64]:
        """int64 [images]. Raises ValueError for a threshold that is not a number."""
        at = at_score_precision(threshold)
        wrong = self._wrong_image[np.searchsorted(self._wrong_score, at, "left") :]
        lost = self._truth_image[: np.searchsorted(self._found_score, at, "left")]
        return np.bincount(wrong, minlength=self._images) + np.bincount(lost, minlength=self._images)

    @property
    def size_bytes(self) -> int:
        """What it takes of the memory."""
        columns = (self._wrong_score, self._wrong_image, self._found_score, self._truth_image)
        return sum(column.nbytes for column in columns)


def _rising(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Places of the scores, the least first."""
    order: NDArray[np.intp] = np.lexsort(falling(scores))[::-1]
    return order


@dataclass(frozen=True, slots=True, eq=False)
class CocoArrays:
    """What pycocotools accumulates, under its names; -1 where no truth exists.

    `precision` and `scores` float64 [10, 101, classes, 4, 3], `recall` float64 [10, classes, 4, 3]: by IoU, recall,
    class, size and most detections an image.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]


def coco_arrays(truth: Truth, detections: DetectionColumns) -> CocoArrays:
    """As pycocotools' evaluate and accumulate leave them."""
    evaluation = coco_evaluation(truth, detections)
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    if arrays is None:
        raise RuntimeError("hotcoco accumulated nothing")
    return CocoArrays(arrays["precision"], arrays["recall"], arrays["scores"])


def coco_evaluation(truth: Truth, detections: DetectionColumns) -> hotcoco.COCOeval:
    """Labels and detections in hotcoco's form, not yet evaluated."""

    def place(image_id: NDArray[np.int64]) -> NDArray[np.int64]:
        # Ids go through float64 columns; places among the ascending ids keep COCO's order and are always exact.
        return places(truth.images, image_id).astype(np.int64) + 1

    sizes = zip(place(truth.images).tolist(), truth.width.tolist(), truth.height.tolist(), strict=True)
    labels = hotcoco.COCO.from_arrays(
        [{"id": image, "width": width, "height": height} for image, width, height in sizes],
        [{"id": label + 1, "name": name} for label, name in enumerate(truth.classes)],
        place(truth.image_id),
        truth.label + 1,
        np.concatenate([truth.box[:, :2], truth.box_size], axis=1),
        area=truth.area,
        iscrowd=truth.crowd,
    )
    # Image, left, top, width, height, score, class.
    rows = np.empty((detections.score.size, 7))
    rows[:, 0] = place(detections.image_id)
    rows[:, 1:5] = detections.box
    rows[:, 3:5] -= rows[:, 1:3]
    rows[:, 5] = detections.score
    rows[:, 6] = detections.label + 1
    return hotcoco.COCOeval(labels, labels.load_res(rows), "bbox")


def _mean(values: NDArray[np.float64]) -> float | None:
    """As cocoeval.summarize: over what exists."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def weighted_mean(ap: Sequence[float | None], support: Sequence[int]) -> float | None:
    """Of the classes' AP, each weighted by its support (M5); None where no class has any."""
    measured = [(value, count) for value, count in zip(ap, support, strict=True) if value is not None]
    return _ratio(math.fsum(value * count for value, count in measured), sum(count for _, count in measured))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
