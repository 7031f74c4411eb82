"""Checks the annotations of one source against its images and categories, column by column.

The order of the checks is that of `check_annotations`; an annotation is reported for the first thing wrong with it.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saucer.dataset.boxes import clip, own_areas, turn
from saucer.dataset.domain import LabelKind
from saucer.dataset.labels import MAX_BOXES_PER_IMAGE, AnnotationColumns, Labels
from saucer.dataset.report import ItemKind, ItemReason, Report

BOXES_AT_ONCE = 16_384
# Places of images that are not among the accepted ones.
REFUSED = -1
_UNKNOWN = -2


class Places:
    """Of a source's images, by id: the place among the accepted ones, or REFUSED. What is added later counts."""

    def __init__(self) -> None:
        self._id = array("q")
        self._place = array("q")

    def add(self, image_id: int, place: int) -> None:
        """One more."""
        self._id.append(image_id)
        self._place.append(place)

    def of(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]; _UNKNOWN where there is no such image."""
        return _look_up(image_ids, np.asarray(self._id), np.asarray(self._place))


@dataclass(frozen=True)
class AcceptedImages:
    """int64 [m] each, by place: size in pixels of the upright picture, and the EXIF orientation by which the boxes have
    to be turned, 0 for none."""

    width: NDArray[np.int64]
    height: NDArray[np.int64]
    turned: NDArray[np.int64]


@dataclass(frozen=True)
class CheckedAnnotations:
    """What is accepted: `place` int64 [n] of the image, `category` int64 [n], `box` float64 [n, 4] inside the image
    (zeros where labels are of whole images), `area` float64 [n] as boxes.own_areas() gives it, `crowd` bool [n]."""

    place: NDArray[np.int64]
    category: NDArray[np.int64]
    box: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]


class _Rows:
    """The rows not refused so far, in an order that does not depend on the file's."""

    def __init__(self, labels: Labels, name: str, report: Report) -> None:
        # Views: only the boxes are changed, and millions of rows need not lie in memory twice.
        columns = labels.annotations
        self.id = np.asarray(columns.id)
        self.image_id = np.asarray(columns.image_id)
        self.category_id = np.asarray(columns.category_id)
        self.box = columns.boxes()
        self.area = np.asarray(columns.area)
        self.crowd = np.array(columns.crowd, dtype=np.bool_)
        self.boxless = np.array(columns.boxless, dtype=np.bool_)
        self.left = np.lexsort((self.area, self.crowd, *self.box.T[::-1], self.category_id, self.image_id, self.id))
        self._file_of_image = labels.file_of_image
        self._name = name
        self._report = report

    def refuse(self, bad: NDArray[np.bool_], reason: ItemReason, sentence: str) -> None:
        """`bad` is a mask over `left`, which shrinks by it."""
        self._report.refuse_all(
            ItemKind.ANNOTATION,
            reason,
            self.left[bad].tolist(),
            lambda row: self._describe(row, sentence),
        )
        self.left = self.left[~bad]

    def _describe(self, row: int, sentence: str) -> tuple[str, str]:
        box = "" if self.boxless[row] else f" Box {self.box[row].tolist()}."
        if self._file_of_image:
            return self._file_of_image[self.image_id[row]], f"{sentence}{box}"
        return f"{self._name}, annotation {self.id[row]}", f"{sentence} Image {self.image_id[row]}.{box}"


def label_kind(all_labels: Sequence[Labels]) -> LabelKind:
    """Of a whole import: as the source says, else labels are of whole images if there is any, and none has a box."""
    stated = next((labels.kind for labels in all_labels if labels.kind), None)
    if stated:
        return stated
    counts = [(len(labels.annotations), sum(labels.annotations.boxless)) for labels in all_labels]
    some = any(count for count, _ in counts)
    return LabelKind.CLASSES if some and all(count == boxless for count, boxless in counts) else LabelKind.BOXES


def check_annotations(
    labels: Labels,
    name: str,
    kind: LabelKind,
    places: Places,
    class_of_category_id: Mapping[int, int],
    images: AcceptedImages,
    report: Report,
) -> CheckedAnnotations:
    """Refuses what cannot be used, with its reason in the report under the source's `name`, and clips the rest.

    `places` are those in `images`, of which there is one at least. The annotations of `labels` are gone afterwards:
    beside what is accepted of them, of many they would be the most memory that an import takes.
    """
    rows = _Rows(labels, name, report)
    if kind is LabelKind.BOXES:
        rows.refuse(rows.boxless[rows.left], ItemReason.MALFORMED_ANNOTATION, "It has no bbox.")
    rows.refuse(_repeats(rows.id[rows.left]), ItemReason.DUPLICATE_ID, "The annotation's id stands twice.")
    place = places.of(rows.image_id)
    rows.refuse(place[rows.left] == _UNKNOWN, ItemReason.UNKNOWN_IMAGE, "No image has its image_id.")
    rows.refuse(place[rows.left] == REFUSED, ItemReason.IMAGE_REFUSED, "Its image was refused.")
    images_with_annotations = len(np.unique(place[rows.left]))
    ids = np.array(list(class_of_category_id), dtype=np.int64)
    category = _look_up(rows.category_id, ids, np.array(list(class_of_category_id.values()), dtype=np.int64))
    rows.refuse(category[rows.left] == _UNKNOWN, ItemReason.UNKNOWN_CATEGORY, "No category has its category_id.")
    if kind is LabelKind.BOXES:
        if labels.normalised:
            _scale_boxes(rows, place, images)
        _fit_boxes(rows, place, images, report)
        rows.refuse(
            _same_boxes(rows, place, category), ItemReason.DUPLICATE_BOX, "The same box of the same class stands twice."
        )
        rows.refuse(
            _beyond_limit(rows, place),
            ItemReason.TOO_MANY_BOXES,
            f"Its image has more than {MAX_BOXES_PER_IMAGE:,} boxes.",
        )
    else:
        rows.box[:] = 0
        rows.refuse(
            _others_of_image(rows, place), ItemReason.SEVERAL_LABELS, "Its image has several labels, and may have one."
        )
    left = rows.left
    report.emptied_images += images_with_annotations - len(np.unique(place[left]))
    place, category = place[left], category[left]
    box, area, crowd = rows.box[left], rows.area[left], rows.crowd[left]
    del rows
    labels.annotations = AnnotationColumns()
    return CheckedAnnotations(place, category, box, own_areas(area, box), crowd)


def _beyond_limit(rows: _Rows, place: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask over `left` of the boxes beyond MAX_BOXES_PER_IMAGE, by their order in it."""
    order = np.argsort(place[rows.left], kind="stable")
    sorted_places = place[rows.left][order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_places, sorted_places)
    beyond = np.zeros(len(order), dtype=np.bool_)
    beyond[order] = rank >= MAX_BOXES_PER_IMAGE
    return beyond


def _scale_boxes(rows: _Rows, place: NDArray[np.int64], images: AcceptedImages) -> None:
    """From shares of the picture's sides to pixels."""
    left = rows.left
    sides = np.column_stack([images.width[place[left]], images.height[place[left]]])
    with np.errstate(over="ignore", invalid="ignore"):
        rows.box[left] *= np.tile(sides, 2)


def _others_of_image(rows: _Rows, place: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask over `left` of all labels of an image that has more than one: which is right, nobody can tell."""
    _, image, counts = np.unique(place[rows.left], return_inverse=True, return_counts=True)
    several: NDArray[np.bool_] = counts[image] > 1
    return several


def _fit_boxes(rows: _Rows, place: NDArray[np.int64], images: AcceptedImages, report: Report) -> None:
    """Turns and clips the boxes that are left, and refuses those of which nothing is left."""
    left = rows.left
    not_finite, no_area, outside = (np.zeros(len(left), dtype=np.bool_) for _ in range(3))
    # In blocks: what is computed on the way takes four times the memory of the boxes themselves.
    for start in range(0, len(left), BOXES_AT_ONCE):
        block = slice(start, start + BOXES_AT_ONCE)
        at = left[block]
        width, height, turned = images.width[place[at]], images.height[place[at]], images.turned[place[at]]
        box = rows.box[at]
        for orientation in np.unique(turned[turned > 0]).tolist():
            these = turned == orientation
            box[these] = turn(box[these], orientation, width[these], height[these])
        fitted = clip(box, width, height)
        report.clipped_boxes += int(fitted.clipped.sum())
        fine = ~fitted.refused
        rows.box[at[fine]] = fitted.boxes[fine]
        not_finite[block], no_area[block], outside[block] = fitted.not_finite, fitted.no_area, fitted.outside
    rows.refuse(not_finite, ItemReason.BOX_NOT_FINITE, "The box is not finite.")
    finite = ~not_finite
    rows.refuse(no_area[finite], ItemReason.BOX_NO_AREA, "The box has no area.")
    rows.refuse(outside[finite & ~no_area], ItemReason.BOX_OUTSIDE, "The box lies outside its image.")


def _same_boxes(rows: _Rows, place: NDArray[np.int64], category: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask over `left` of all but the first of equal boxes."""
    left = rows.left
    # Sorted where they lie, since copies of all keys would be the most memory that an import takes.
    rank = np.full(len(rows.id), -1, dtype=np.int64)
    rank[left] = np.arange(len(left))
    keys = [rows.crowd, *rows.box.T, category, place]
    by_key = np.lexsort([rank, *keys])
    by_key = by_key[rank[by_key] >= 0]
    repeated = np.zeros(len(left), dtype=np.bool_)
    repeated[rank[by_key]] = np.logical_and.reduce([_repeats(key[by_key]) for key in keys])
    return repeated


def _repeats(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which of the sorted values equal the one before."""
    repeated = np.zeros(len(values), dtype=np.bool_)
    repeated[1:] = values[1:] == values[:-1]
    return repeated


def _look_up(values: NDArray[np.int64], keys: NDArray[np.int64], results: NDArray[np.int64]) -> NDArray[np.int64]:
    """The result of the last key that equals each value, or _UNKNOWN."""
    if not len(keys):
        return np.full(len(values), _UNKNOWN, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    at = order[np.maximum(np.searchsorted(keys, values, side="right", sorter=order) - 1, 0)]
    return np.where(keys[at] == values, results[at], _UNKNOWN)
