"""What an import refused, and why: reason codes, the error that ends an import, and the bounded report.

Two kinds of refusal, each with a code that is part of the API. An `ItemReason` leaves out one image, box or class and
the import goes on. An `ImportReason` ends the import; it is raised as `ImportRefusedError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

# Examples kept for each of the 23 reasons; further ones are counted only. So a report has at most 1,000 items.
MAX_REPORTED = 43
# Longer names and sentences from the user's files are cut with an ellipsis.
MAX_TEXT_CHARS = 200


class ImportReason(StrEnum):
    """Why a whole import was refused."""

    # Archive
    UNSUPPORTED_ARCHIVE = "unsupported_archive"
    UNREADABLE_ARCHIVE = "unreadable_archive"
    ENCRYPTED_ARCHIVE = "encrypted_archive"
    CLIMBING_PATH = "climbing_path"
    BAD_NAME = "bad_name"
    LINK_OR_DEVICE = "link_or_device"
    DUPLICATE_FILE = "duplicate_file"
    TOO_MANY_FILES = "too_many_files"
    UNPACKED_TOO_LARGE = "unpacked_too_large"
    COMPRESSION_RATIO = "compression_ratio"
    # Folder and label files
    NO_LABEL_FILE = "no_label_file"
    AMBIGUOUS_LAYOUT = "ambiguous_layout"
    LABEL_FILE_TOO_LARGE = "label_file_too_large"
    TOO_MANY_IMAGES = "too_many_images"
    TOO_MANY_ANNOTATIONS = "too_many_annotations"
    TOO_MANY_CATEGORIES = "too_many_categories"
    WRONG_ENCODING = "wrong_encoding"
    NOT_JSON = "not_json"
    NESTED_TOO_DEEP = "nested_too_deep"
    NOT_COCO = "not_coco"
    DUPLICATE_CATEGORY = "duplicate_category"
    NO_USABLE_IMAGE = "no_usable_image"
    NOT_YAML = "not_yaml"
    NO_CLASS_NAMES = "no_class_names"


class ItemReason(StrEnum):
    """Why one image, annotation or category was left out."""

    MALFORMED_IMAGE = "malformed_image"
    MISSING_IMAGE = "missing_image"
    CLIMBING_PATH = "climbing_path"
    LINK = "link"
    UNREADABLE_IMAGE = "unreadable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    SIZE_MISMATCH = "size_mismatch"
    DUPLICATE_IMAGE = "duplicate_image"
    UNREADABLE_LABELS = "unreadable_labels"

    MALFORMED_ANNOTATION = "malformed_annotation"
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_IMAGE = "unknown_image"
    IMAGE_REFUSED = "image_refused"
    UNKNOWN_CATEGORY = "unknown_category"
    BOX_NOT_FINITE = "box_not_finite"
    BOX_NO_AREA = "box_no_area"
    BOX_OUTSIDE = "box_outside"
    DUPLICATE_BOX = "duplicate_box"
    SEVERAL_LABELS = "several_labels"
    TOO_MANY_BOXES = "too_many_boxes"

    MALFORMED_CATEGORY = "malformed_category"
    DUPLICATE_CATEGORY = "duplicate_category"


class ItemKind(StrEnum):
    IMAGE = "image"
    ANNOTATION = "annotation"
    CATEGORY = "category"


@dataclass(frozen=True)
class RefusedItem:
    """One example: the item as the user knows it (file name, or label file and id), and a sentence."""

    kind: ItemKind
    item: str
    reason: ItemReason
    sentence: str


def printable(text: str) -> str:
    """Text from a user's file, fit for a report or a log: no control characters, at most MAX_TEXT_CHARS."""
    if len(text) <= MAX_TEXT_CHARS and text.isprintable():
        return text
    cut = text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)


@dataclass
class Report:
    """Counts for each reason, and at most MAX_REPORTED examples of each.

    `annotations_read` = accepted boxes + the counts of the annotations' reasons; the same holds for images.
    `clipped_boxes` were cut at the image's edge by more than boxes.CLIP_TOLERANCE_PX. `turned_images` had labels for
    the array as stored while the picture is shown turned (EXIF); their boxes were turned too. `emptied_images` had
    annotations of which none was accepted: they now count as unlabelled, so look at them.
    """

    images_read: int = 0
    annotations_read: int = 0
    clipped_boxes: int = 0
    turned_images: int = 0
    emptied_images: int = 0
    refused: Counter[ItemReason] = field(default_factory=Counter)
    examples: dict[ItemReason, list[RefusedItem]] = field(default_factory=dict)

    def refuse(self, kind: ItemKind, reason: ItemReason, item: str, sentence: str) -> None:
        self.refuse_all(kind, reason, [0], lambda _: (item, sentence))

    def refuse_all(
        self, kind: ItemKind, reason: ItemReason, rows: Iterable[int], describe: Callable[[int], tuple[str, str]]
    ) -> None:
        """Counts every row; `describe(row)` gives item and sentence, and is asked only while examples are kept."""
        kept = self.examples.setdefault(reason, [])
        for row in rows:
            self.refused[reason] += 1
            if len(kept) < MAX_REPORTED:
                item, sentence = describe(row)
                kept.append(RefusedItem(kind, printable(item), reason, printable(sentence)))

    def forget_refused(self) -> None:
        """Of a file that turned out to hold no labels."""
        self.refused.clear()
        self.examples.clear()

    def as_json(self) -> dict[str, object]:
        """The report as JSON types; reasons that did not occur are absent."""
        return {
            "images_read": self.images_read,
            "annotations_read": self.annotations_read,
            "clipped_boxes": self.clipped_boxes,
            "turned_images": self.turned_images,
            "emptied_images": self.emptied_images,
            "refused": {reason.value: self.refused[reason] for reason in ItemReason if self.refused[reason]},
            "examples": [
                {"kind": e.kind.value, "item": e.item, "reason": e.reason.value, "sentence": e.sentence}
                for reason in ItemReason
                for e in self.examples.get(reason, [])
            ],
        }


class ImportRefusedError(Exception):
    """The input as a whole cannot be imported. `sentence` is for the user and names no path of this machine."""

    def __init__(self, reason: ImportReason, sentence: str, report: Report | None = None) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.report = report
