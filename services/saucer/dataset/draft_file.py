"""A draft as its import's child process gets it: JSON lines, first what its labels mean, then each image.

The images are not beside it: they were checked when they came in, and are stored under their hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

from saucer.dataset.domain import LabelKind
from saucer.dataset.drafts import Draft, ListedImage
from saucer.dataset.labels import CategoryEntry, ImageEntry, Labels
from saucer.dataset.report import Report
from saucer.dataset.splits import Split

DRAFT_FILE = "draft.jsonl"


def first_line(draft: Draft) -> str:
    """The kind and the classes of its labels."""
    return json.dumps([draft.label_kind, draft.classes]) + "\n"


def image_line(image: ListedImage, *, with_split: bool) -> str:
    """Any other."""
    split = image.split if with_split else None
    facts = (image.sha256, image.width, image.height, split, image.source_name, image.empty)
    return json.dumps([*facts, image.measured_labels]) + "\n"


def read_draft(file: TextIO, report: Report) -> Labels:
    """Its labels. The name of an image is its hash, and its source name is kept beside it."""
    labels = Labels()
    lines = iter(file)
    kind, classes = json.loads(next(lines))
    labels.kind = LabelKind(kind)
    labels.categories = [CategoryEntry(number, name) for number, name in enumerate(classes)]
    for number, (sha256, width, height, split, source_name, empty, own) in enumerate(_images(lines)):
        own_split = Split(split) if split else None
        labels.images.add(ImageEntry(sha256, number, width, height, own_split, source_name, empty))
        for label, area in own:
            box = label[1:5] if len(label) > 1 else None
            crowd = bool(label[5:] and label[5])
            labels.annotations.add(len(labels.annotations), number, int(label[0]), box, area=area, crowd=crowd)
    labels.counts |= {"images": len(labels.images), "annotations": len(labels.annotations)}
    report.images_read += len(labels.images)
    report.annotations_read += len(labels.annotations)
    return labels


def _images(
    lines: Iterator[str],
) -> Iterator[tuple[str, int, int, str | None, str, bool, list[tuple[list[float], float | None]]]]:
    return (tuple(json.loads(line)) for line in lines)
