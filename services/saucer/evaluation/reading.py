"""What a finished evaluation answers at any threshold: pure arithmetic on what stored.load() brought into memory."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.bad_cases import Fault, FaultKind, FaultRows, ScoreRange, fault_rows
from saucer.evaluation.classifying import answers_by_truth
from saucer.evaluation.domain import AtThreshold
from saucer.evaluation.matching import NONE
from saucer.evaluation.stored import Judged, Loaded
from saucer.evaluation.suspecting import SuspectKind, Suspects, suspects
from saucer.evaluation.thinning import ThinnedPoints
from saucer.lib.errors import InvalidArgumentError

CASES_AT_ONCE = 100
"""Bad cases that are made at a time where all are asked for."""
PAGE_BYTES = 384 * 1024
"""Of what a page of images says of them, about 6,000 boxes and faults, made in a twentieth of a second: with images of
PAGE_IMAGES_BYTES it fits what a gRPC client takes by default (4 MiB). A page has one image at least."""
ENTRY_BYTES = 55
"""That a box or a fault takes of a page at most, besides the name of its class."""
IMAGE_BYTES = 40
"""That an image takes likewise, besides its name."""


class LabelledBox(NamedTuple):
    """Corners in pixels of the image; score is None for truth, which alone may be a crowd.

    `area` in square pixels is the label's own, or the box's.
    """

    corners: tuple[float, float, float, float]
    class_name: str
    score: float | None
    area: float
    crowd: bool = False


class CaseFault(NamedTuple):
    """What is wrong, with the boxes by their place in the case's `truth` and `detections`; None: no box.

    A miss has a detection only in a classification: the answer that is not sure.
    """

    kind: FaultKind
    detection: int | None
    truth: int | None
    iou: float
    class_name: str


@dataclass(frozen=True)
class BadCase:
    """An image with what is wrong on it. `object_name` is its name in the object store, `file_name` its owner's."""

    image_id: int
    file_name: str
    object_name: str
    width: int
    height: int
    faults: tuple[CaseFault, ...]
    truth: tuple[LabelledBox, ...]
    detections: tuple[LabelledBox, ...]


def label_of(classes: Sequence[str], class_name: str) -> int | None:
    """None where no class is named. Raises InvalidArgumentError: CLASS_UNKNOWN."""
    if not class_name:
        return None
    if class_name not in classes:
        raise InvalidArgumentError("CLASS_UNKNOWN", f"class_name: the evaluation knows no class {class_name}.")
    return classes.index(class_name)


def at_threshold(judged: Judged, threshold: float) -> AtThreshold:
    """Everything that moves with the threshold."""
    return AtThreshold(
        threshold,
        judged.curves.overall(threshold),
        tuple(judged.curves.per_class(threshold)),
        None if judged.test_set.whole_images else judged.curves.map_50_above_threshold(threshold),
        judged.bad_images(threshold),
    )


@dataclass(frozen=True)
class ScoreHistogram:
    """Detections by score, of a class or of all (""): those of bin i have edges[i] <= score < edges[i + 1].

    The last bin holds its upper edge too. Ignored detections are in none (M7).
    """

    class_name: str
    edges: tuple[float, ...]
    true_positives: tuple[int, ...]
    false_positives: tuple[int, ...]


def score_histograms(loaded: Loaded, bins: int) -> list[ScoreHistogram]:
    """All classes together, then each class, in so many bins of equal width from 0 to 1."""
    edges = _edges(bins)
    return [_histogram(loaded, name, label, edges) for label, name in ((None, ""), *enumerate(loaded.truth.classes))]


def score_histogram(loaded: Loaded, class_name: str, bins: int) -> ScoreHistogram:
    """Of one class, or of all (""). Raises InvalidArgumentError for an unknown class."""
    return _histogram(loaded, class_name, label_of(loaded.truth.classes, class_name), _edges(bins))


def _edges(bins: int) -> tuple[float, ...]:
    return tuple(number / bins for number in range(bins + 1))


def _histogram(loaded: Loaded, name: str, label: int | None, edges: tuple[float, ...]) -> ScoreHistogram:
    right, wrong = loaded.curves.by_score(label, edges[:-1])
    return ScoreHistogram(name, edges, tuple(right.tolist()), tuple(wrong.tolist()))


@dataclass(frozen=True)
class LabelledImage:
    """An image of the test split with its labels; names as in BadCase."""

    image_id: int
    file_name: str
    object_name: str
    width: int
    height: int
    truth: tuple[LabelledBox, ...]


def find_labelled_images(
    loaded: Loaded, class_name: str, *, offset: int, limit: int
) -> tuple[list[LabelledImage], int]:
    """By image id, those with a label of the class if one is given, and how many.

    There may be fewer than `limit`, since they end where they would exceed PAGE_BYTES. Raises InvalidArgumentError for
    an unknown class.
    """
    truth = loaded.truth
    label = label_of(truth.classes, class_name)
    places: NDArray[np.integer] = (
        np.arange(truth.images.size) if label is None else np.unique(loaded.scored.truth_image[truth.label == label])
    )
    page = places[offset : offset + limit]
    boxes = np.array([loaded.truths_of(place).size for place in page.tolist()], np.int64)
    return [_labelled_image(loaded, place) for place in _fitting(loaded, page, boxes).tolist()], places.size


def _labelled_image(loaded: Loaded, place: int) -> LabelledImage:
    return LabelledImage(
        image_id=int(loaded.truth.images[place]),
        file_name=loaded.test_set.source_names[place],
        object_name=loaded.test_set.object_names[place],
        width=int(loaded.truth.width[place]),
        height=int(loaded.truth.height[place]),
        truth=_truth_boxes(loaded, loaded.truths_of(place).tolist()),
    )


@dataclass(frozen=True)
class SuspectedLabel:
    """A label that may be wrong (M15), with the boxes that say so; None: no box."""

    kind: SuspectKind
    suspicion: float
    image_id: int
    file_name: str
    detection: LabelledBox | None
    truth: LabelledBox | None


def find_suspects(
    loaded: Loaded, threshold: float, kinds: Collection[SuspectKind], *, offset: int, limit: int
) -> tuple[list[SuspectedLabel], int]:
    """The most suspicious first, and how many are told of in all (at most suspecting.MAX_SUSPECTS)."""
    found = suspects(loaded.scored, threshold, kinds or tuple(SuspectKind))
    rows = range(found.kind.size)[offset : offset + limit]
    return [_suspect(loaded, found, row) for row in rows], found.kind.size


def _suspect(loaded: Loaded, found: Suspects, row: int) -> SuspectedLabel:
    place, detection, truth = int(found.image[row]), int(found.detection[row]), int(found.truth[row])
    return SuspectedLabel(
        SuspectKind(int(found.kind[row])),
        float(found.suspicion[row]),
        int(loaded.truth.images[place]),
        loaded.test_set.source_names[place],
        None if detection == NONE else _found_boxes(loaded, [detection])[0],
        None if truth == NONE else _truth_boxes(loaded, [truth])[0],
    )


def curves(loaded: Loaded, max_points: int) -> list[tuple[str, ThinnedPoints]]:
    """A precision-recall curve for each class, thinned to at most so many points (at least 2)."""
    return list(zip(loaded.truth.classes, loaded.thinned(max_points), strict=True))


@dataclass(frozen=True)
class CaseFilter:
    """Which faults are asked for; no kinds: all, an empty class: every one, no range: whatever the score."""

    kinds: Collection[FaultKind] = ()
    class_name: str = ""
    scores: ScoreRange | None = None


def find_bad_cases(
    loaded: Loaded, threshold: float, wanted: CaseFilter, *, offset: int, limit: int
) -> tuple[list[BadCase], int]:
    """Bad cases, most faults first and then by image id, and how many there are in all.

    There may be fewer than `limit`, since they end where they would exceed PAGE_BYTES. Raises InvalidArgumentError for
    an unknown class.
    """
    rows = _wanted_rows(loaded, threshold, wanted)
    counts = rows.counts()
    images = _worst_first(counts)
    page = images[offset : offset + limit]
    boxes = [loaded.truths_of(place).size + loaded.detections_of(place, threshold).size for place in page.tolist()]
    entries = counts[page] + np.array(boxes, np.int64)
    return _cases(loaded, threshold, rows, _fitting(loaded, page, entries)), images.size


def every_bad_case(loaded: Loaded, threshold: float, wanted: CaseFilter) -> Iterator[BadCase]:
    """All of find_bad_cases(), in its order, a few in memory at a time."""
    rows = _wanted_rows(loaded, threshold, wanted)
    images = _worst_first(rows.counts())
    for start in range(0, images.size, CASES_AT_ONCE):
        yield from _cases(loaded, threshold, rows, images[start : start + CASES_AT_ONCE])


def _wanted_rows(loaded: Loaded, threshold: float, wanted: CaseFilter) -> FaultRows:
    label = label_of(loaded.truth.classes, wanted.class_name)
    answers = answers_by_truth(loaded.scored) if loaded.test_set.whole_images else None
    return fault_rows(loaded.scored, threshold, wanted.kinds or tuple(FaultKind), label, wanted.scores, answers)


def _fitting(loaded: Loaded, places: NDArray[np.integer], entries: NDArray[np.int64]) -> NDArray[np.integer]:
    """Of images with so many boxes and faults each, the first that fit into a page; one at least, if there is any."""
    entry_bytes = ENTRY_BYTES + max((len(name.encode()) for name in loaded.truth.classes), default=0)
    names = [len(loaded.test_set.source_names[place].encode()) for place in places.tolist()]
    size_bytes = np.cumsum(IMAGE_BYTES + np.array(names, np.int64) + entries * entry_bytes)
    return places[: max(1, int(np.searchsorted(size_bytes, PAGE_BYTES, "right")))]


def _worst_first(counts: NDArray[np.int64]) -> NDArray[np.intp]:
    """Places of the images with faults, of which each has so many."""
    images = np.flatnonzero(counts)
    return images[np.argsort(-counts[images], kind="stable")]


def _cases(loaded: Loaded, threshold: float, rows: FaultRows, images: NDArray[np.integer]) -> list[BadCase]:
    detections = [loaded.detections_of(place, threshold) for place in images.tolist()]
    truths = [loaded.truths_of(place) for place in images.tolist()]
    none = np.empty(0, np.intp)
    by_id = dict(rows.faults(np.concatenate([none, *detections]), np.concatenate([none, *truths])).by_image())
    return [
        _bad_case(loaded, threshold, image_id, by_id[image_id]) for image_id in loaded.scored.images[images].tolist()
    ]


def _bad_case(loaded: Loaded, threshold: float, image_id: int, faults: list[Fault]) -> BadCase:
    truth = loaded.truth
    place = int(np.searchsorted(truth.images, image_id))
    truths, found = loaded.truths_of(place).tolist(), loaded.detections_of(place, threshold).tolist()
    # The answer of an unsure image is below the threshold, as all its others are.
    found += [fault.detection for fault in faults if fault.kind is FaultKind.MISS and fault.detection is not None]
    place_of_truth = {row: number for number, row in enumerate(truths)}
    place_of_detection = {row: number for number, row in enumerate(found)}
    return BadCase(
        image_id=image_id,
        file_name=loaded.test_set.source_names[place],
        object_name=loaded.test_set.object_names[place],
        width=int(truth.width[place]),
        height=int(truth.height[place]),
        faults=tuple(
            CaseFault(
                fault.kind,
                None if fault.detection is None else place_of_detection[fault.detection],
                None if fault.truth is None else place_of_truth[fault.truth],
                fault.iou,
                _class_of(fault, truth.classes),
            )
            for fault in faults
        ),
        truth=_truth_boxes(loaded, truths),
        detections=_found_boxes(loaded, found),
    )


def _truth_boxes(loaded: Loaded, rows: list[int]) -> tuple[LabelledBox, ...]:
    truth = loaded.truth
    columns = (column[rows].tolist() for column in (truth.box, truth.label, truth.area, truth.crowd))
    return tuple(
        LabelledBox(tuple(corners), truth.classes[label], None, float(area), crowd)
        for corners, label, area, crowd in zip(*columns, strict=True)
    )


def _found_boxes(loaded: Loaded, rows: list[int]) -> tuple[LabelledBox, ...]:
    found, classes = loaded.detections, loaded.truth.classes
    columns = (column[rows].tolist() for column in (found.box, found.label, found.score))
    return tuple(
        LabelledBox((x1, y1, x2, y2), classes[label], score, (x2 - x1) * (y2 - y1))
        for (x1, y1, x2, y2), label, score in zip(*columns, strict=True)
    )


def _class_of(fault: Fault, classes: tuple[str, ...]) -> str:
    """What is missed, else what is wrongly there."""
    label = fault.truth_label if fault.kind is FaultKind.MISS else fault.label
    assert label is not None, "a fault has a detection or a truth"
    return classes[label]
