"""The test set in columns: what the labels say, read from a COCO document, and statistics of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.manifest import (
    Manifest,
    ManifestBox,
    ManifestCategory,
    ManifestError,
    ManifestImage,
    manifest_of,
)


class TruthError(ValueError):
    """The labels cannot be used; the text names the entry and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Labelled boxes of a test set, as columns. Rows keep the order of the document.

    Shapes, for m images and t boxes; boxes are in pixels of the image, corners x1, y1, x2, y2:

    - `images` int64 [m]: image ids, ascending; `width`, `height` int32 [m].
    - `image_id` int64 [t], `label` int32 [t] (index into `classes`), `box` float64 [t, 4],
      `box_size` float64 [t, 2] (width and height as labelled, which the corners give only rounded), `crowd` bool [t]
      (COCO's iscrowd), `area` float64 [t] (COCO's area, by which its size classes go).
    """

    classes: tuple[str, ...]
    images: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    image_id: NDArray[np.int64]
    box: NDArray[np.float64]
    box_size: NDArray[np.float64]
    label: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """Labels of one class. `share` is of all boxes of the set; None where the set has no box."""

    name: str
    boxes: int
    crowd_boxes: int
    images: int
    share: float | None


@dataclass(frozen=True, slots=True)
class TruthStatistics:
    """What a test set holds. `boxes` leaves crowd boxes out; an image is without boxes if it has neither kind."""

    images: int
    images_without_boxes: int
    boxes: int
    crowd_boxes: int
    classes: tuple[ClassStatistics, ...]


def from_coco(document: Manifest | Mapping[str, Any], classes: Sequence[str]) -> Truth:
    """Reads a COCO detection document (cocodataset.org/#format-data).

    Categories are joined to `classes` by name, so that label i is the model's class i whatever ids the document
    uses. `bbox` is x, y, width, height. A missing `area` is width × height; a missing `iscrowd` is 0. Where no
    annotation has a bbox, each is the label of its whole image (M16).

    Raises:
        TruthError: a missing or unreadable field, an id used twice, a box of negative or infinite size, an annotation
            of an unknown image, of an unknown category or of one that is not in `classes`; or two labels of a whole
            image.
    """
    names = tuple(classes)
    if len(set(names)) != len(names):
        raise TruthError("classes: a name stands twice")
    try:
        manifest = document if isinstance(document, Manifest) else manifest_of(document)
    except ManifestError as error:
        raise TruthError(str(error)) from error
    images, width, height = _images(manifest.images)
    if manifest.labels_whole_images:
        manifest = _with_whole_boxes(manifest)
    boxes = manifest.annotations
    unplaced = next((box for box in boxes if box.bbox is None), None)
    if unplaced is not None:
        raise TruthError(f"annotation {unplaced.id}: it has no bbox, and others have")
    named = [box.id for box in boxes if box.id is not None]
    if len(set(named)) != len(named):
        raise TruthError("annotations: an id stands twice")
    image_id = np.array([box.image_id for box in boxes], np.int64)
    category = np.array([box.category_id for box in boxes], np.int64)
    corners = [box.bbox or _NO_BOX for box in boxes]
    flat = np.fromiter(chain.from_iterable(corners), np.float64, 4 * len(boxes))
    x, y, w, h = flat.reshape(-1, 4).T
    area = np.array(
        [corner[2] * corner[3] if box.area is None else box.area for box, corner in zip(boxes, corners, strict=True)],
        np.float64,
    )
    known, label = _labels(category, manifest.categories, names)

    def refuse(wrong: NDArray[np.bool_], why: Callable[[ManifestBox], str]) -> None:
        if wrong.any():
            box = boxes[int(wrong.argmax())]
            raise TruthError(f"annotation {'?' if box.id is None else box.id}: {why(box)}")

    refuse(~np.isin(image_id, images), lambda box: f"there is no image {box.image_id}")
    refuse(~known, lambda box: f"category {box.category_id} is not among the model's classes")
    refuse(
        (w < 0) | (h < 0) | ~np.isfinite(area) | ~np.isfinite(flat.reshape(-1, 4)).all(axis=1),
        lambda box: f"bbox {list(box.bbox or ())}, area {box.area}: finite numbers, width and height >= 0",
    )
    return Truth(
        classes=names,
        images=images,
        width=width,
        height=height,
        image_id=image_id,
        box=np.stack([x, y, x + w, y + h], axis=1),
        box_size=np.stack([w, h], axis=1),
        label=label,
        crowd=np.array([bool(box.iscrowd) for box in boxes], np.bool_),
        area=area,
    )


def statistics(truth: Truth) -> TruthStatistics:
    """Counts per class and over the whole set (PRODUCT 4.2)."""
    boxes = int((~truth.crowd).sum())
    per_class = []
    for label, name in enumerate(truth.classes):
        mine = truth.label == label
        crowd = int((mine & truth.crowd).sum())
        count = int(mine.sum()) - crowd
        images = np.unique(truth.image_id[mine]).size
        per_class.append(ClassStatistics(name, count, crowd, images, count / boxes if boxes else None))
    return TruthStatistics(
        images=truth.images.size,
        images_without_boxes=truth.images.size - np.unique(truth.image_id).size,
        boxes=boxes,
        crowd_boxes=int(truth.crowd.sum()),
        classes=tuple(per_class),
    )


def _with_whole_boxes(manifest: Manifest) -> Manifest:
    size = {image.id: (0.0, 0.0, float(image.width), float(image.height)) for image in manifest.images}
    seen: set[int] = set()
    labels = []
    for label in manifest.annotations:
        if label.image_id in seen:
            raise TruthError(f"annotation {label.id}: image {label.image_id} has another label already")
        seen.add(label.image_id)
        # Of an unknown image: whoever reads on refuses it.
        box = size.get(label.image_id, _NO_BOX)
        labels.append(ManifestBox(label.image_id, label.category_id, box, box[2] * box[3], 0, label.id))
    return Manifest(manifest.images, labels, manifest.categories)


_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def _images(entries: Sequence[ManifestImage]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    rows = sorted((image.id, image.width, image.height) for image in entries)
    table = np.asarray(rows, np.int64).reshape(-1, 3)
    if np.any(table[1:, 0] == table[:-1, 0]):
        raise TruthError("images: an id stands twice")
    return table[:, 0].copy(), table[:, 1].astype(np.int32), table[:, 2].astype(np.int32)


def _labels(
    category: NDArray[np.int64], entries: Sequence[ManifestCategory], classes: tuple[str, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Which boxes are of one of the classes, and of which; a category without a box need not be one."""
    index = {name: label for label, name in enumerate(classes)}
    label_of: dict[int, int] = {}
    for entry in entries:
        if entry.id in label_of:
            raise TruthError(f"categories: id {entry.id} stands twice")
        label_of[entry.id] = index.get(entry.name, -1)
    used, place = np.unique(category, return_inverse=True)
    label = np.array([label_of.get(number, -1) for number in used.tolist()], np.int32)[place]
    return label >= 0, label
