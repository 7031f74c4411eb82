"""The manifest of a version: one COCO file, the same bytes for the same images and labels in whatever order they came.

Beyond COCO, each image has `split` (train, validation, test) and `source_name`, the name by which its owner knows it;
`file_name` is the SHA-256 of its bytes, in hex. One of which the labels say that nothing is on it has `empty`, true:
without it, an image without annotations is one that nobody labelled. Images are ordered by hash and annotations by
image, class and place; ids count from 1, category ids from 0. `area` is what the annotation's label file stated, of a
segmentation say, where that is less than the box's, else the box's. An annotation that labels the whole image has no
bbox, area and iscrowd.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from saucer.dataset.boxes import box_area
from saucer.dataset.domain import LabelKind
from saucer.dataset.splits import Split
from saucer.dataset.statistics import Columns

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class ManifestImage:
    sha256: str
    width: int
    height: int
    split: Split
    source_name: str
    empty: bool


@dataclass(frozen=True)
class ManifestHashes:
    """`content` covers images, labels, classes and split, not the names that files had; `file` covers every byte."""

    content: str
    file: str


def write_manifest(
    path: Path, class_names: Sequence[str], images: Iterable[ManifestImage], columns: Columns
) -> ManifestHashes:
    """Writes the manifest line by line; both hashes are SHA-256 in hex.

    Args:
        path: written anew.
        images: ordered by hash; row i gets id i + 1.
        columns: boxes ordered by image, category and place; row i gets id i + 1.
    """
    content, whole = hashlib.sha256(), hashlib.sha256()
    with path.open("wb") as file:
        for line, hashed in _lines(class_names, images, columns):
            file.write(line)
            whole.update(line)
            content.update(hashed)
    return ManifestHashes(content.hexdigest(), whole.hexdigest())


def _lines(
    class_names: Sequence[str], images: Iterable[ManifestImage], columns: Columns
) -> Iterator[tuple[bytes, bytes]]:
    """Each line as written, and as it enters the content's hash."""
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names)]
    yield _both(b'{"categories":' + _json(categories) + b',\n"images":[')
    for row, image in enumerate(images):
        start, entry = _start(row), _image(row, image)
        yield start + _json(entry | {"source_name": image.source_name}), start + _json(entry)
    yield _both(b'\n],\n"annotations":[')
    for row in range(len(columns.image)):
        yield _both(_start(row) + _json(_annotation(row, columns)))
    yield _both(b"\n]}\n")


def _both(line: bytes) -> tuple[bytes, bytes]:
    return line, line


def _start(row: int) -> bytes:
    return b",\n" if row else b"\n"


def _image(row: int, image: ManifestImage) -> dict[str, object]:
    return {
        "id": row + 1,
        "file_name": image.sha256,
        "width": image.width,
        "height": image.height,
        "split": image.split.value,
    } | ({"empty": True} if image.empty else {})


def _annotation(row: int, columns: Columns) -> dict[str, object]:
    label: dict[str, object] = {
        "id": row + 1,
        "image_id": int(columns.image[row]) + 1,
        "category_id": int(columns.category[row]),
    }
    if columns.kind is LabelKind.CLASSES:
        return label
    box, area = columns.box[row].tolist(), float(columns.area[row])
    return label | {
        "bbox": box,
        "area": box_area(box) if math.isnan(area) else area,
        "iscrowd": int(columns.crowd[row]),
    }


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode()
