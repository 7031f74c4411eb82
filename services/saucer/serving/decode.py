"""JPEG, PNG, WebP or BMP bytes to pixels."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import UnreadableImage
from .exif import SIDEWAYS, orientation, turn
from .header import JPEG_SIGNATURE, refuse_many_scans, stated_size

MAX_PIXELS = 64_000_000
"""Width × height by the header. More is refused before decoding; decoded it would take over 192 MB."""
MAX_BYTES = 64 * 1024 * 1024
"""Encoded size. More is refused before decoding."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """Pixels as uint8 [height, width, 3] in BGR order, upright.

    The orientation that EXIF states is applied (exif.py), so a phone's portrait photograph has the sides that a viewer
    sees and that labels refer to; its header states them the other way round. Grey images become three equal channels,
    transparency is dropped, 16 bits become 8.

    Raises UnreadableImage if the bytes are no such image, are damaged, or are over MAX_PIXELS, MAX_BYTES or MAX_SCANS.
    """
    _stated(data)
    pixels = _pixels(data, cv2.IMREAD_COLOR)
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise UnreadableImage(f"the image has more pixels than its header states, and more than {MAX_PIXELS}")
    return turn(pixels, orientation(data))


def decoded_size(data: bytes) -> tuple[int, int]:
    """Width and height of what decode() would return. Raises what it would, in a third of its time for a JPEG.

    A JPEG is decoded in grey to an eighth of its sides: that reads and checks every byte of it as the whole would, and
    spares what does not fail, the transforms and colours.
    """
    width, height = _stated(data)
    jpeg = data.startswith(JPEG_SIGNATURE)
    scale = 8 if jpeg else 1
    pixels = _pixels(data, cv2.IMREAD_REDUCED_GRAYSCALE_8 if jpeg else cv2.IMREAD_COLOR)
    if pixels.shape[:2] != (math.ceil(height / scale), math.ceil(width / scale)):
        raise UnreadableImage(f"the image has another size than the {width} × {height} that its header states")
    return (height, width) if orientation(data) in SIDEWAYS else (width, height)


def _stated(data: bytes) -> tuple[int, int]:
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"the image has {len(data)} bytes, more than {MAX_BYTES}")
    width, height = stated_size(data)
    if width < 1 or height < 1:
        raise UnreadableImage(f"the image states a size of {width} × {height}")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"the image has {width} × {height} pixels, more than {MAX_PIXELS}")
    refuse_many_scans(data)
    return width, height


def _pixels(data: bytes, flags: int) -> NDArray[np.uint8]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise UnreadableImage("the image is damaged") from error
    if pixels is None:
        raise UnreadableImage("the image is damaged")
    return np.asarray(pixels, np.uint8)
