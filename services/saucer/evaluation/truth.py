"""The test set in columns: what the labels say, read from a COCO document, and statistics of it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class TruthError(ValueError):
    """The labels cannot be used; the text names the entry and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Labelled boxes of a test set, as columns. Rows keep the order of the document.

    Shapes, for m images and t boxes; boxes are in pixels of the image, corners x1, y1, x2, y2:

    - `images` int64 [m]: image ids, ascending; `width`, `height` int32 [m].
    - `image_id` int64 [t], `label` int32 [t] (index into `classes`), `box` float64 [t, 4],
      `crowd` bool [t] (COCO's iscrowd), `area` float64 [t] (COCO's area, by which its size classes go).
    """

    classes: tuple[str, ...]
    images: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    image_id: NDArray[np.int64]
    box: NDArray[np.float64]
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


def from_coco(document: Mapping[str, Any], classes: Sequence[str]) -> Truth:
    """Reads `images`, `annotations` and `categories` of a COCO detection document (cocodataset.org/#format-data).

    Categories are joined to `classes` by name, so that label i is the model's class i whatever ids the document
    uses. `bbox` is x, y, width, height. A missing `area` is width × height; a missing `iscrowd` is 0.

    Raises:
        TruthError: a missing or unreadable field, an id used twice, a box of negative or infinite size, or an
            annotation of an unknown image, of an unknown category or of one that is not in `classes`.
    """
    names = tuple(classes)
    if len(set(names)) != len(names):
        raise TruthError("classes: a name stands twice")
    try:
        images, width, height = _images(document["images"])
        label_of = _label_of_category(document["categories"], names)
        annotations = list(document["annotations"])
    except KeyError as error:
        raise TruthError(f"the document has no field {error}") from error
    known = set(images.tolist())
    rows = [_row(annotation, known, label_of) for annotation in annotations]
    ids = [int(annotation["id"]) for annotation in annotations if "id" in annotation]
    if len(set(ids)) != len(ids):
        raise TruthError("annotations: an id stands twice")
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    x, y, w, h = np.asarray(columns[2], np.float64).reshape(-1, 4).T
    return Truth(
        classes=names,
        images=images,
        width=width,
        height=height,
        image_id=np.asarray(columns[0], np.int64),
        box=np.stack([x, y, x + w, y + h], axis=1),
        label=np.asarray(columns[1], np.int32),
        crowd=np.asarray(columns[3], np.bool_),
        area=np.asarray(columns[4], np.float64),
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


def _images(
    entries: Iterable[Mapping[str, Any]],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    try:
        rows = sorted((int(image["id"]), int(image["width"]), int(image["height"])) for image in entries)
        table = np.asarray(rows, np.int64).reshape(-1, 3)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TruthError(f"images: id, width and height must be integers ({error!r})") from error
    if np.any(table[1:, 0] == table[:-1, 0]):
        raise TruthError("images: an id stands twice")
    return table[:, 0].copy(), table[:, 1].astype(np.int32), table[:, 2].astype(np.int32)


def _label_of_category(entries: Iterable[Mapping[str, Any]], classes: tuple[str, ...]) -> dict[int, int | None]:
    index = {name: label for label, name in enumerate(classes)}
    label_of: dict[int, int | None] = {}
    for category in entries:
        try:
            category_id, name = int(category["id"]), category["name"]
        except (KeyError, TypeError, ValueError) as error:
            raise TruthError(f"categories: id and name are needed ({error!r})") from error
        if category_id in label_of:
            raise TruthError(f"categories: id {category_id} stands twice")
        # A category that the model was not trained on does no harm while no box has it.
        label_of[category_id] = index.get(name)
    return label_of


def _row(
    annotation: Mapping[str, Any], images: set[int], label_of: Mapping[int, int | None]
) -> tuple[int, int, tuple[float, float, float, float], bool, float]:
    """One annotation as (image id, label, x y w h, crowd, area)."""
    try:
        image_id, category_id = int(annotation["image_id"]), int(annotation["category_id"])
        x, y, w, h = map(float, annotation["bbox"])
        area = annotation.get("area")
        area = w * h if area is None else float(area)
        crowd = bool(annotation.get("iscrowd", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise TruthError(
            f"{_named(annotation)}: image_id, category_id and a bbox of four numbers are needed ({error!r})"
        ) from error
    if image_id not in images:
        raise TruthError(f"{_named(annotation)}: there is no image {image_id}")
    label = label_of.get(category_id)
    if label is None:
        raise TruthError(f"{_named(annotation)}: category {category_id} is not among the model's classes")
    if w < 0 or h < 0 or not all(map(math.isfinite, (x, y, w, h, area))):
        raise TruthError(
            f"{_named(annotation)}: bbox {[x, y, w, h]}, area {area}: finite numbers, width and height >= 0"
        )
    return image_id, label, (x, y, w, h), crowd, area


def _named(annotation: Mapping[str, Any]) -> str:
    return f"annotation {annotation.get('id', '?')}"
