"""Checks one image file: the header before anything is decoded, then every byte by the very decoder that serves.

The view that counts is the upright one: serving/decode.py applies the orientation that EXIF states, and training and
serving both read with it; so `width` and `height` are those of the turned picture. Transparency is dropped, 16 bits
become 8, grey becomes three equal channels and CMYK becomes BGR: accepted, as training sees them. Of an animation or a
multi-picture file the first frame counts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

from saucer.dataset.import_job import MAX_IMAGE_BYTES
from saucer.dataset.layout import read_at_most
from saucer.dataset.report import ItemReason
from saucer.serving.decode import decoded_size
from saucer.serving.errors import UnreadableImage
from saucer.serving.exif import orientation
from saucer.serving.header import stated_size

# Width × height by the header; above it: image_too_large, undecoded. Decoding this many takes 150 MB. Below the bound
# of serving/decode.py, so that what is imported can be served.
MAX_PIXELS = 50_000_000
# Above it: image_too_large. Below MIN_SIDE_PX: image_too_small; a network's stride leaves nothing of such a picture.
MAX_SIDE_PX = 32_768
MIN_SIDE_PX = 8


@dataclass(frozen=True)
class ImageLimits:
    max_bytes: int = MAX_IMAGE_BYTES
    max_pixels: int = MAX_PIXELS
    max_side_px: int = MAX_SIDE_PX
    min_side_px: int = MIN_SIDE_PX


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """`width` and `height` in pixels of the upright picture. `turned` is the EXIF orientation 5–8 if it swapped
    unequal sides of the stored array, else None."""

    sha256: str
    width: int
    height: int
    turned: int | None


class ImageRefusedError(Exception):
    """`reason` is unreadable_image, image_too_large or image_too_small."""

    def __init__(self, reason: ItemReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


def read_image(file: BinaryIO, limits: ImageLimits) -> bytes:
    """The file's bytes, so that what is checked, hashed and stored is one and the same.

    Raises:
        ImageRefusedError: image_too_large, having read no more than the limit.
    """
    data = read_at_most(file, limits.max_bytes)
    if len(data) > limits.max_bytes:
        raise ImageRefusedError(ItemReason.IMAGE_TOO_LARGE, f"The file has more than {limits.max_bytes:,} bytes.")
    return data


def check_image(data: bytes, limits: ImageLimits) -> ImageFacts:
    """Checks header, size and data of a JPEG, PNG, WebP or BMP.

    Raises:
        ImageRefusedError: with the reason and a sentence for the user.
    """
    width, height = _stored_size(data)
    if width * height > limits.max_pixels or max(width, height) > limits.max_side_px:
        raise ImageRefusedError(
            ItemReason.IMAGE_TOO_LARGE,
            f"It has {width} × {height} pixels; at most {limits.max_pixels:,}, and {limits.max_side_px:,} a side.",
        )
    if min(width, height) < limits.min_side_px:
        raise ImageRefusedError(
            ItemReason.IMAGE_TOO_SMALL,
            f"The image has {width} × {height} pixels; at least {limits.min_side_px} a side.",
        )
    try:
        shown = decoded_size(data)
    except UnreadableImage as error:
        raise ImageRefusedError(ItemReason.UNREADABLE_IMAGE, f"The image cannot be decoded: {error}.") from error
    turned = orientation(data) if shown != (width, height) else None
    return ImageFacts(hashlib.sha256(data).hexdigest(), *shown, turned)


def _stored_size(data: bytes) -> tuple[int, int]:
    """Width and height as the header states them; decodes no pixel."""
    try:
        return stated_size(data)
    except UnreadableImage as error:
        raise ImageRefusedError(
            ItemReason.UNREADABLE_IMAGE, "The file is not a JPEG, PNG, WebP or BMP image, or its header is damaged."
        ) from error
