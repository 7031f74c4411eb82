"""What a version holds: counts for each class and split, and sizes, from which defaults for training are derived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from saucer.dataset.domain import LabelKind
from saucer.dataset.splits import Split


@dataclass(frozen=True)
class ClassCount:
    """`images` have at least one label of the class; `share` is of all boxes of the set or split, or of all labelled
    images where labels are of whole images, 0 where there is none. Crowd boxes count in neither."""

    name: str
    boxes: int
    images: int
    share: float


@dataclass(frozen=True)
class Counts:
    """`boxes` leaves crowd boxes out; an image is unlabelled if it has neither kind, and nobody said that nothing is on
    it. Labels of whole images are no boxes."""

    images: int
    unlabelled_images: int
    boxes: int
    crowd_boxes: int
    classes: tuple[ClassCount, ...]


@dataclass(frozen=True)
class Spread:
    """All 0 where there is nothing to measure."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Statistics:
    """`width_px` and `height_px` are of images; `box_area_share` is box area ÷ image area and `boxes_per_image` counts
    boxes of images that have one, both without crowd boxes. `splits` is keyed by train, validation and test, always all
    three. `classes_without_boxes` are kept in the version and cannot be learnt."""

    total: Counts
    splits: dict[Split, Counts]
    classes_without_boxes: tuple[str, ...]
    width_px: Spread
    height_px: Spread
    box_area_share: Spread
    boxes_per_image: Spread

    def as_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Columns:
    """Accepted images (m) and labels (n): `width`, `height` int64 [m] in pixels; `empty` bool [m], of images without a
    label: somebody said that nothing is on them, never so where labels are of whole images; `image` int64 [n] (row of
    the image), `category` int64 [n], `box` float64 [n, 4], zeros where labels are of whole images, `area` float64 [n]
    in square pixels, NaN where it is the box's, `crowd` bool [n]."""

    kind: LabelKind
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    empty: NDArray[np.bool_]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]


def describe(columns: Columns, splits: Sequence[Split], class_names: Sequence[str]) -> Statistics:
    """Statistics of a whole version; `splits` has the split of each image."""
    split_of_image = np.array([split.value for split in splits], dtype=object)
    everything = np.ones(len(splits), dtype=np.bool_)
    total = _count(columns, everything, class_names)
    plain = ~columns.crowd & (columns.kind is LabelKind.BOXES)
    areas = columns.box[plain, 2] * columns.box[plain, 3]
    image_areas = (columns.width * columns.height)[columns.image[plain]]
    per_image = np.bincount(columns.image[plain], minlength=len(splits))
    return Statistics(
        total=total,
        splits={split: _count(columns, split_of_image == split.value, class_names) for split in Split},
        classes_without_boxes=tuple(c.name for c in total.classes if not c.images),
        width_px=_spread(columns.width),
        height_px=_spread(columns.height),
        box_area_share=_spread(areas / image_areas),
        boxes_per_image=_spread(per_image[per_image > 0]),
    )


def _count(columns: Columns, chosen: NDArray[np.bool_], class_names: Sequence[str]) -> Counts:
    """Counts over the chosen images, bool [m]."""
    inside = chosen[columns.image]
    plain = inside & ~columns.crowd
    labels = np.bincount(columns.category[plain], minlength=len(class_names))
    pairs = np.unique(columns.category[plain] * len(chosen) + columns.image[plain])
    images = np.bincount(pairs // len(chosen), minlength=len(class_names))
    boxes = labels if columns.kind is LabelKind.BOXES else np.zeros_like(labels)
    all_labels = int(labels.sum())
    return Counts(
        images=int(chosen.sum()),
        unlabelled_images=int((chosen & ~columns.empty).sum()) - len(np.unique(columns.image[inside])),
        boxes=int(boxes.sum()),
        crowd_boxes=int((inside & columns.crowd).sum()),
        classes=tuple(
            ClassCount(name, int(boxes[i]), int(images[i]), float(labels[i] / all_labels) if all_labels else 0.0)
            for i, name in enumerate(class_names)
        ),
    )


def _spread(values: NDArray[np.int64] | NDArray[np.float64]) -> Spread:
    if not len(values):
        return Spread(0.0, 0.0, 0.0)
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))
