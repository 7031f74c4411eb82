"""Labels of formats that have a label file for each image: what Pascal VOC and YOLO share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from saucer.dataset.labels import MAX_CATEGORY_NAME_CHARS, ImageEntry, LabelLimits, Labels
from saucer.dataset.layout import NotInFolderError, open_below
from saucer.dataset.pairing import Pairs
from saucer.dataset.report import ImportReason, ImportRefusedError, ItemKind, ItemReason, Report
from saucer.dataset.splits import Split

# Of one image's labels; thousands of polygons have less. Above it: the image is left out, unreadable_labels.
MAX_LABELS_BYTES = 4 * 1024**2


class LabelledBox(NamedTuple):
    """`box` is x, y, width, height; `crowd` leaves it out of training and scoring."""

    category: int
    box: tuple[float, float, float, float]
    crowd: bool = False


class ImageLabels(NamedTuple):
    """What a label file says of its image. `width` and `height` are None where it does not say. `empty`: it has no line
    or object at all, so nothing is on the image; one of which all are refused does not say that."""

    boxes: Sequence[LabelledBox]
    width: int | None = None
    height: int | None = None
    empty: bool = False


class UnreadableLabelsError(Exception):
    """The label file as a whole makes no sense, or which it is cannot be told; the image is left out, for to train on
    it as empty would be wrong."""


# Makes of a label file's bytes and name what it says; single bad lines go to the report.
Parse = Callable[[bytes, str], ImageLabels]


def read_per_image(
    folder: Path,
    images: Sequence[str],
    pairs: Pairs,
    split_of: Callable[[str], Split | None],
    parse: Parse,
    limits: LabelLimits,
    report: Report,
) -> Labels:
    """Labels without categories; an image without a label file is unlabelled.

    Raises:
        ImportRefusedError: too_many_images, too_many_annotations.
    """
    labels = Labels()
    taken: dict[str, str] = {}
    for number, image in enumerate(images):
        labels.counts["images"] += 1
        _refuse_beyond(labels.counts["images"], limits.max_images, ImportReason.TOO_MANY_IMAGES, "images")
        label_file = pairs.label_file_of.get(image, "")
        labels.file_of_image.append(label_file)
        try:
            if image in pairs.ambiguous:
                raise UnreadableLabelsError(f"Several label files could be meant: {', '.join(pairs.ambiguous[image])}.")
            if label_file and taken.setdefault(label_file, image) != image:
                raise UnreadableLabelsError(f"{label_file} is the label file of {taken[label_file]} too.")
            found = parse(_read(folder, label_file), label_file) if label_file else ImageLabels(())
        except UnreadableLabelsError as error:
            report.refuse(ItemKind.IMAGE, ItemReason.UNREADABLE_LABELS, image, str(error))
            continue
        labels.images.add(ImageEntry(image, number, found.width, found.height, split_of(image), empty=found.empty))
        for entry in found.boxes:
            labels.annotations.add(len(labels.annotations), number, entry.category, entry.box, crowd=entry.crowd)
        _refuse_beyond(
            len(labels.annotations), limits.max_annotations, ImportReason.TOO_MANY_ANNOTATIONS, "annotations"
        )
    labels.counts["annotations"] = len(labels.annotations)
    report.images_read += labels.counts["images"]
    report.annotations_read += labels.counts["annotations"]
    return labels


def category_name(text: str) -> str | None:
    """A class's name without the space around it; None if it can be none."""
    name = text.strip()
    return name if 0 < len(name) <= MAX_CATEGORY_NAME_CHARS and name.isprintable() else None


def refuse_annotation(report: Report, label_file: str, place: str, sentence: str) -> None:
    """One line or object of a label file, as malformed."""
    report.annotations_read += 1
    report.refuse(ItemKind.ANNOTATION, ItemReason.MALFORMED_ANNOTATION, f"{label_file}, {place}", sentence)


def _read(folder: Path, label_file: str) -> bytes:
    try:
        with open_below(folder, label_file.split("/")) as file:
            data = file.read(MAX_LABELS_BYTES + 1)
    except NotInFolderError as error:
        raise UnreadableLabelsError(f"{label_file} cannot be opened: {error.sentence}") from error
    if len(data) > MAX_LABELS_BYTES:
        raise UnreadableLabelsError(f"{label_file} has more than {MAX_LABELS_BYTES:,} bytes.")
    return data


def _refuse_beyond(count: int, limit: int, reason: ImportReason, what: str) -> None:
    if count > limit:
        raise ImportRefusedError(reason, f"The source holds more than {limit:,} {what}.")
