"""Reads Pascal VOC: an XML file for each image (host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc, Annotation files).

- Corners are pixels counted from 1, both inclusive, as the development kit has them: a box of 1, 1, W, H is the whole
  image, and x = xmin - 1, width = xmax - xmin + 1.
- `difficult` objects are left out of VOC's own scores, so they become crowd boxes: ignored in training and scoring.
- A file without an object says that nothing is on its image; an image without a file is unlabelled.
- Splits: ImageSets/Main/{train,val,test}.txt, else folders named for a split.
- An XML file is found by its image's name; `filename` in it is not looked at: renamed images keep the old one there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from posixpath import splitext
from xml.parsers import expat

import numpy as np

from saucer.dataset.labels import CategoryEntry, LabelLimits, Labels
from saucer.dataset.layout import split_of
from saucer.dataset.pairing import images_among, listed_splits, pair, split_of_folders
from saucer.dataset.per_image import (
    ImageLabels,
    LabelledBox,
    UnreadableLabelsError,
    category_name,
    read_per_image,
    refuse_annotation,
)
from saucer.dataset.report import ImportReason, ImportRefusedError, ItemKind, ItemReason, Report
from saucer.dataset.splits import Split

# VOC needs 5. Deeper: the image is left out, unreadable_labels.
MAX_DEPTH = 32
# Of one value; the rest is cut, and no value of sense is that long.
MAX_VALUE_CHARS = 1_000

_LISTS = "ImageSets/Main"
# Some tools write the second.
_YES = ("1", "true")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(files: Sequence[str]) -> bool:
    """Whether there is any XML file."""
    return any(_is_xml(file) for file in files)


def read_voc(folder: Path, files: Sequence[str], limits: LabelLimits, report: Report) -> Labels:
    """All labels of a folder; classes in order of their names.

    Raises:
        ImportRefusedError: of limits, and of the lists' encoding and length.
    """
    images = images_among(files)
    label_files = [file for file in files if _is_xml(file)]
    pairs = pair(images, label_files)
    listed = listed_splits(folder, _split_lists(files), images)
    classes = _Classes(limits.max_categories)
    labels = read_per_image(
        folder,
        images,
        pairs,
        lambda image: listed.get(image) if listed else split_of_folders(image),
        lambda data, name: _parse(data, name, classes, report),
        limits,
        report,
    )
    for file in sorted(set(label_files) - pairs.files()):
        report.images_read += 1
        report.refuse(ItemKind.IMAGE, ItemReason.MISSING_IMAGE, file, "No image belongs to this label file.")
    classes.settle(labels)
    return labels


def _split_lists(files: Sequence[str]) -> list[tuple[str, Split]]:
    named = ((file, split_of(splitext(file.rpartition("/")[2])[0])) for file in files if _in_lists(file))
    return [(file, split) for file, split in named if split is not None]


def _in_lists(file: str) -> bool:
    return f"/{file}".rpartition("/")[0].endswith(f"/{_LISTS}") and file.lower().endswith(".txt")


def _is_xml(file: str) -> bool:
    return file.lower().endswith(".xml")


class _Classes:
    """Numbers names as they are met; settle() orders them, so that the order of the files does not matter."""

    def __init__(self, limit: int) -> None:
        self._numbers: dict[str, int] = {}
        self._limit = limit

    def number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self._numbers))
        if len(self._numbers) > self._limit:
            raise ImportRefusedError(
                ImportReason.TOO_MANY_CATEGORIES, f"The source holds more than {self._limit:,} classes."
            )
        return number

    def settle(self, labels: Labels) -> None:
        names = sorted(self._numbers)
        place = np.zeros(len(names), dtype=np.int64)
        for settled, name in enumerate(names):
            place[self._numbers[name]] = settled
        numbers = np.asarray(labels.annotations.category_id)
        numbers[:] = place[numbers] if len(numbers) else numbers
        labels.categories = [CategoryEntry(settled, name) for settled, name in enumerate(names)]
        labels.counts["categories"] = len(names)


class _Document:
    """The values of one file: of its size, and of each object. A document type, where entities are made, is refused."""

    def __init__(self, data: bytes) -> None:
        self.size: dict[str, str] = {}
        self.objects: list[dict[str, str]] = []
        self._path: list[str] = []
        self._text = ""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._read
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.Parse(data, True)

    def _start(self, name: str, _: dict[str, str]) -> None:
        self._path.append(name)
        self._text = ""
        if len(self._path) > MAX_DEPTH:
            raise UnreadableLabelsError(f"It is nested deeper than {MAX_DEPTH} levels.")
        if len(self._path) == 1 and name != "annotation":
            raise UnreadableLabelsError("It is no Pascal VOC file: it does not begin with <annotation>.")
        if self._path[1:] == ["object"]:
            self.objects.append({})

    def _end(self, name: str) -> None:
        match self._path[1:]:
            case ["size", _]:
                self.size[name] = self._text.strip()
            # Parts of an object have boxes of their own, which are deeper.
            case ["object", _] | ["object", "bndbox", _]:
                self.objects[-1][name] = self._text.strip()
        self._path.pop()
        self._text = ""

    def _read(self, text: str) -> None:
        self._text = (self._text + text)[:MAX_VALUE_CHARS]

    def _refuse_doctype(self, *_: object) -> None:
        raise UnreadableLabelsError("It declares a document type, which label files have no use for.")


def _parse(data: bytes, name: str, classes: _Classes, report: Report) -> ImageLabels:
    try:
        document = _Document(data)
    except expat.ExpatError as error:
        raise UnreadableLabelsError(f"{name} is not XML: {error}.") from error
    except (UnicodeError, LookupError, ValueError) as error:
        raise UnreadableLabelsError(f"{name} is in an encoding that cannot be read.") from error
    boxes = []
    for number, entry in enumerate(document.objects, 1):
        class_name = category_name(entry.get("name", ""))
        corners = [_number(entry.get(corner, "")) for corner in _CORNERS]
        if class_name is None or None in corners:
            what = "name" if class_name is None else _CORNERS[corners.index(None)]
            refuse_annotation(report, name, f"object {number}", f"{what} is missing or makes no sense.")
            continue
        x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
        box = (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
        boxes.append(LabelledBox(classes.number(class_name), box, entry.get("difficult", "").lower() in _YES))
    width, height = (_side(document.size.get(side)) for side in ("width", "height"))
    return ImageLabels(boxes, width, height, empty=not document.objects)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _side(text: str | None) -> int | None:
    """Some tools write 0 where they do not know; that, and what is no number, is as if it were not there."""
    side = _number(text or "")
    return int(side) if side is not None and 0 < side < 2**31 else None
