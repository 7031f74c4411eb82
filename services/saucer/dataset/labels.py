"""Labels as read from their files, whatever the format, and unchecked against images: columns of machine numbers.

An annotation takes about 70 bytes, so that MAX_ANNOTATIONS of them take some 170 MB, and a whole import at that limit
stays below 1 GiB (measured: 0.85, and 0.05 more where each states an area).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saucer.dataset.domain import LabelKind
from saucer.dataset.splits import Split

# Entries of all label files of one import, refused ones included. Above it: the import is refused, too_many_….
MAX_IMAGES = 250_000
MAX_ANNOTATIONS = 2_500_000
MAX_CATEGORIES = 1_000
# Of one image, after all other checks; those beyond are left out, too_many_boxes.
MAX_BOXES_PER_IMAGE = 10_000
# Of one label file (COCO's own largest has 470 MB). Above it: refused, label_file_too_large, before reading.
MAX_LABEL_FILE_BYTES = 2 * 1024**3
# Longer names make their item malformed.
MAX_FILE_NAME_CHARS = 1_024
MAX_CATEGORY_NAME_CHARS = 100

_NO_BOX = (math.nan,) * 4
_SECTIONS = ("images", "annotations", "categories")
_SPLITS = (None, *Split)


@dataclass(frozen=True)
class LabelLimits:
    max_images: int = MAX_IMAGES
    max_annotations: int = MAX_ANNOTATIONS
    max_categories: int = MAX_CATEGORIES
    max_label_file_bytes: int = MAX_LABEL_FILE_BYTES

    def after(self, labels: Labels) -> LabelLimits:
        """What is left for the next file."""
        return LabelLimits(
            self.max_images - labels.counts["images"],
            self.max_annotations - labels.counts["annotations"],
            self.max_categories,
            self.max_label_file_bytes,
        )


class ImageEntry(NamedTuple):
    """`width` and `height` are None where the file does not say; `split` likewise. `source_name` is the image's name
    for its owner, where that is not the file name. `empty`: the file says that nothing is on it."""

    file_name: str
    id: int
    width: int | None
    height: int | None
    split: Split | None
    source_name: str | None = None
    empty: bool = False


@dataclass
class ImageColumns:
    """Images as they stand in the file, by row: of 100,000 of them a list of entries would take twice the memory."""

    file_name: list[str] = field(default_factory=list)
    id: array[int] = field(default_factory=lambda: array("q"))
    # 0: the file does not say.
    width: array[int] = field(default_factory=lambda: array("q"))
    height: array[int] = field(default_factory=lambda: array("q"))
    # 1, 2, … in the order of Split; 0: none.
    split: array[int] = field(default_factory=lambda: array("b"))
    source_name: dict[int, str] = field(default_factory=dict)
    empty: array[int] = field(default_factory=lambda: array("b"))

    def add(self, entry: ImageEntry) -> None:
        """One more."""
        if entry.source_name is not None:
            self.source_name[len(self.id)] = entry.source_name
        self.file_name.append(entry.file_name)
        self.id.append(entry.id)
        self.width.append(entry.width or 0)
        self.height.append(entry.height or 0)
        self.split.append(_SPLITS.index(entry.split))
        self.empty.append(entry.empty)

    def __len__(self) -> int:
        return len(self.id)

    def __getitem__(self, row: int) -> ImageEntry:
        return ImageEntry(
            self.file_name[row],
            self.id[row],
            self.width[row] or None,
            self.height[row] or None,
            _SPLITS[self.split[row]],
            self.source_name.get(row),
            bool(self.empty[row]),
        )

    def order(self) -> NDArray[np.int64]:
        """Rows by split, file name, id and size: int64 [n], whatever the order in the file."""
        by_id = np.lexsort((self.height, self.width, self.id))
        by_name = np.array(sorted(by_id.tolist(), key=self.file_name.__getitem__), dtype=np.int64)
        return by_name[np.argsort(np.asarray(self.split)[by_name], kind="stable")]


class CategoryEntry(NamedTuple):
    id: int
    name: str


@dataclass
class AnnotationColumns:
    """Annotations as they stand in the file, unchecked against images and categories.

    `box` has 4 entries for each, NaN where the annotation has no box at all (`boxless`): a label of the whole image.
    `area` is NaN where the annotation states none.
    """

    id: array[int] = field(default_factory=lambda: array("q"))
    image_id: array[int] = field(default_factory=lambda: array("q"))
    category_id: array[int] = field(default_factory=lambda: array("q"))
    box: array[float] = field(default_factory=lambda: array("d"))
    area: array[float] = field(default_factory=lambda: array("d"))
    crowd: array[int] = field(default_factory=lambda: array("b"))
    boxless: array[int] = field(default_factory=lambda: array("b"))

    def add(
        self,
        number: int,
        image_id: int,
        category_id: int,
        box: Sequence[float] | None,
        *,
        area: float | None = None,
        crowd: bool = False,
    ) -> None:
        """One more; `box` is x, y, width, height."""
        self.id.append(number)
        self.image_id.append(image_id)
        self.category_id.append(category_id)
        self.box.extend(_NO_BOX if box is None else box)
        self.area.append(math.nan if area is None else area)
        self.crowd.append(crowd)
        self.boxless.append(box is None)

    def __len__(self) -> int:
        return len(self.id)

    def boxes(self) -> NDArray[np.float64]:
        """float64 [n, 4]: x, y, width, height; what is written to it is written to `box`."""
        return np.asarray(self.box).reshape(-1, 4)


@dataclass
class Labels:
    """One label file, or all of a format that has one for each image.

    `counts` are entries read for each section, malformed ones included. `normalised`: boxes are in shares of the
    upright picture's sides, not in pixels. `file_of_image` names the label file of each image id, where each has one.
    `kind` is None where only the labels tell.
    """

    images: ImageColumns = field(default_factory=ImageColumns)
    categories: list[CategoryEntry] = field(default_factory=list)
    annotations: AnnotationColumns = field(default_factory=AnnotationColumns)
    # Ids of malformed images, so that their annotations are reported as such.
    malformed_image_ids: set[int] = field(default_factory=set)
    # Of images of which a malformed annotation was to say something, so that they do not count as empty.
    misread_image_ids: array[int] = field(default_factory=lambda: array("q"))
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SECTIONS, 0))
    normalised: bool = False
    file_of_image: list[str] = field(default_factory=list)
    kind: LabelKind | None = None
