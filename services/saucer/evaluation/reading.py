"""What a finished evaluation answers at any threshold: pure arithmetic on what stored.load() brought into memory."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.bad_cases import Fault, FaultKind, Faults, bad_cases
from saucer.evaluation.domain import AtThreshold
from saucer.evaluation.metrics import PrPoints, thin
from saucer.evaluation.stored import Loaded


@dataclass(frozen=True)
class LabelledBox:
    """Corners in pixels of the image; score is None for truth."""

    corners: tuple[float, float, float, float]
    class_name: str
    score: float | None


@dataclass(frozen=True)
class CaseFault:
    """What is wrong, with the boxes by their place in the case's `truth` and `detections`; None: no box."""

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


def at_threshold(loaded: Loaded, threshold: float) -> AtThreshold:
    """Everything that moves with the threshold."""
    return AtThreshold(
        threshold,
        loaded.curves.overall(threshold),
        tuple(loaded.curves.per_class(threshold)),
        loaded.curves.map_50_above_threshold(threshold),
        loaded.bad_images(threshold),
    )


def curves(loaded: Loaded, max_points: int) -> list[tuple[str, PrPoints]]:
    """A precision-recall curve for each class, thinned to at most so many points (at least 2)."""
    return [
        (name, thin(loaded.curves.points(label), max_points).points) for label, name in enumerate(loaded.truth.classes)
    ]


def find_bad_cases(
    loaded: Loaded,
    threshold: float,
    *,
    kinds: Collection[FaultKind],
    class_name: str,
    offset: int,
    limit: int,
) -> tuple[list[BadCase], int]:
    """Bad cases, most faults first and then by image id, and how many there are in all. An unknown class has none."""
    classes = loaded.truth.classes
    if class_name and class_name not in classes:
        return [], 0
    label = classes.index(class_name) if class_name else None
    faults = bad_cases(loaded.scored, threshold, kinds or tuple(FaultKind), label)
    images, counts = np.unique(faults.image, return_counts=True)
    chosen = images[np.lexsort((images, -counts))][offset : offset + limit]
    by_id = dict(_only(faults, chosen).by_image())
    ids = loaded.scored.images[chosen].tolist()
    return [_bad_case(loaded, threshold, image_id, by_id[image_id]) for image_id in ids], images.size


def _only(faults: Faults, images: NDArray[np.int32]) -> Faults:
    rows = np.isin(faults.image, images)
    columns = {field.name: getattr(faults, field.name)[rows] for field in fields(Faults) if field.name != "images"}
    return replace(faults, **columns)


def _bad_case(loaded: Loaded, threshold: float, image_id: int, faults: list[Fault]) -> BadCase:
    truth, detections = loaded.truth, loaded.detections
    place = int(np.searchsorted(truth.images, image_id))
    truths, found = loaded.truths_of(place).tolist(), loaded.detections_of(place, threshold).tolist()
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
        truth=tuple(LabelledBox(_corners(truth.box[row]), truth.classes[truth.label[row]], None) for row in truths),
        detections=tuple(
            LabelledBox(
                _corners(detections.box[row]), truth.classes[detections.label[row]], float(detections.score[row])
            )
            for row in found
        ),
    )


def _corners(box: NDArray[np.floating]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return x1, y1, x2, y2


def _class_of(fault: Fault, classes: tuple[str, ...]) -> str:
    """The detection's class where there is one, else the missed truth's."""
    label = fault.label if fault.label is not None else fault.truth_label
    assert label is not None, "a fault has a detection or a truth"
    return classes[label]
