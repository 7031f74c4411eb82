"""The images of a version with their labels as rows: written by an import's child process, kept in PostgreSQL.

Labels are in the form of drafts.StoredLabel, areas in that of drafts.ListedImage.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from saucer.dataset.boxes import box_area
from saucer.dataset.domain import LabelKind
from saucer.dataset.manifest import ManifestImage
from saucer.dataset.splits import Split
from saucer.dataset.statistics import Columns

_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def write_listing(path: Path, images: Iterable[ManifestImage], columns: Columns) -> None:
    """Rows in the text format of PostgreSQL's COPY, without the set's id: place, sha256, width, height, split,
    source_name, labels, areas, labelled."""
    first = np.searchsorted(columns.image, np.arange(len(columns.width) + 1))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row, image in enumerate(images):
            rows = range(first[row], first[row + 1])
            labels = [_label(columns, at) for at in rows]
            areas = [
                [*label, area]
                for label, area in zip(labels, columns.area[rows.start : rows.stop].tolist(), strict=True)
                if not math.isnan(area)
            ]
            file.write(_line(row + 1, image, labels, areas))


def write_listing_of(path: Path, manifest: bytes, kind: LabelKind) -> None:
    """The same rows of a version that was imported before there were any, from its manifest (manifest.py)."""
    document = json.loads(manifest)
    labels_of: dict[int, list[list[float]]] = defaultdict(list)
    areas_of: dict[int, list[list[float]]] = defaultdict(list)
    for entry in document["annotations"]:
        box = [] if kind is LabelKind.CLASSES else [*entry["bbox"], entry["iscrowd"]]
        label = [entry["category_id"], *box]
        labels_of[entry["image_id"]].append(label)
        if box and entry["area"] != box_area(box):
            areas_of[entry["image_id"]].append([*label, entry["area"]])
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for entry in document["images"]:
            image = ManifestImage(
                entry["file_name"],
                entry["width"],
                entry["height"],
                Split(entry["split"]),
                entry["source_name"],
                empty=entry.get("empty", False),
            )
            file.write(_line(entry["id"], image, labels_of[entry["id"]], areas_of[entry["id"]]))


def _line(place: int, image: ManifestImage, labels: Sequence[Sequence[float]], areas: Sequence[Sequence[float]]) -> str:
    name = image.source_name.translate(_COPY_ESCAPES)
    columns = (_json(labels), _json(areas), bool(labels) or image.empty)
    values = (place, image.sha256, image.width, image.height, image.split.value, name, *columns)
    return "\t".join(map(str, values)) + "\n"


def _json(rows: Sequence[Sequence[float]]) -> str:
    return json.dumps(rows, separators=(",", ":"))


def _label(columns: Columns, row: int) -> list[float]:
    category = int(columns.category[row])
    if columns.kind is LabelKind.CLASSES:
        return [category]
    return [category, *columns.box[row].tolist(), int(columns.crowd[row])]
