"""Reads a folder for each class, for classification, and plain folders of images without any label.

- `cup/1.jpg`, `plate/2.jpg`; or the same below folders named for splits: `train/cup/1.jpg`, `val/cup/3.jpg`. A class is
  the outermost folder; deeper ones do not matter.
- Images beside the class folders have no label: of `train/cup/1.jpg`, `train/plate/2.jpg` and `test/3.jpg` the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from saucer.dataset.labels import CategoryEntry, ImageEntry, LabelLimits, Labels
from saucer.dataset.layout import IMAGE_FOLDERS, split_of
from saucer.dataset.pairing import images_among, split_of_folders
from saucer.dataset.per_image import category_name
from saucer.dataset.report import ImportReason, ImportRefusedError, ItemKind, ItemReason, Report
from saucer.dataset.splits import Split

# A single folder of images is no class, and folders of these names are none either, unless the caller says so.
LEAST_CLASSES = 2
_NO_CLASSES = frozenset({*IMAGE_FOLDERS, "jpegimages", "labels", "annotations", "masks"})


class _Place(NamedTuple):
    split: Split | None
    # Empty: without a class.
    class_name: str


def are_class_folders(files: Sequence[str]) -> bool:
    """Whether there are images in several folders, all of which may be classes."""
    names = {place.class_name for place in _places(images_among(files))} - {""}
    return len(names) >= LEAST_CLASSES and not any(name.lower() in _NO_CLASSES for name in names)


def read_class_folders(files: Sequence[str], limits: LabelLimits, report: Report) -> Labels:
    """A label for each image: its class. Raises ImportRefusedError: too_many_images, too_many_categories."""
    images = _bounded(images_among(files), limits)
    places = _places(images)
    names = sorted({place.class_name for place in places} - {""})
    if len(names) > limits.max_categories:
        raise ImportRefusedError(
            ImportReason.TOO_MANY_CATEGORIES, f"The source holds more than {limits.max_categories:,} classes."
        )
    labels = _labels(images, [place.split for place in places], report)
    number_of = {name: number for number, name in enumerate(names)}
    for name, number in number_of.items():
        plain = category_name(name)
        if plain is None:
            report.refuse(ItemKind.CATEGORY, ItemReason.MALFORMED_CATEGORY, name, "The folder's name is no class name.")
        else:
            labels.categories.append(CategoryEntry(number, plain))
    for image, place in enumerate(places):
        if place.class_name:
            labels.annotations.add(image, image, number_of[place.class_name], None)
    labels.counts |= {"annotations": len(labels.annotations), "categories": len(names)}
    report.annotations_read += len(labels.annotations)
    return labels


def read_images(files: Sequence[str], limits: LabelLimits, report: Report) -> Labels:
    """No labels at all: of images that are to be labelled in Saucer. Raises ImportRefusedError: too_many_images."""
    images = _bounded(images_among(files), limits)
    return _labels(images, [split_of_folders(image) for image in images], report)


def _places(images: Sequence[str]) -> list[_Place]:
    """Where each image belongs. Only if the outermost folders of all images that lie in one are named for splits are
    they splits: a class may be called `test`."""
    folders = [image.split("/")[:-1] for image in images]
    if all(split_of(parts[0]) is not None for parts in folders if parts):
        return [_Place(split_of(parts[0]) if parts else None, parts[1] if len(parts) > 1 else "") for parts in folders]
    return [_Place(None, parts[0] if parts else "") for parts in folders]


def _labels(images: Sequence[str], splits: Sequence[Split | None], report: Report) -> Labels:
    labels = Labels(file_of_image=list(images))
    for number, (image, split) in enumerate(zip(images, splits, strict=True)):
        labels.images.add(ImageEntry(image, number, None, None, split))
    labels.counts["images"] = len(images)
    report.images_read += len(images)
    return labels


def _bounded(images: list[str], limits: LabelLimits) -> list[str]:
    if len(images) > limits.max_images:
        raise ImportRefusedError(
            ImportReason.TOO_MANY_IMAGES, f"The source holds more than {limits.max_images:,} images."
        )
    return images
