"""JPEG, PNG, WebP or BMP bytes to pixels."""

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import UnreadableImage
from .exif import orientation, turn
from .header import stated_size

MAX_PIXELS = 64_000_000
"""Width × height by the header. More is refused before decoding; decoded it would take over 192 MB."""
MAX_BYTES = 64 * 1024 * 1024
"""Encoded size. More is refused before decoding."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """Pixels as uint8 [height, width, 3] in BGR order, upright.

    The orientation that EXIF states is applied (exif.py), so a phone's portrait photograph has the sides that a viewer
    sees and that labels refer to; its header states them the other way round. Grey images become three equal channels,
    transparency is dropped, 16 bits become 8.

    Raises UnreadableImage if the bytes are no such image, are damaged, or are over MAX_PIXELS or MAX_BYTES.
    """
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"the image has {len(data)} bytes, more than {MAX_BYTES}")
    width, height = stated_size(data)
    if width < 1 or height < 1:
        raise UnreadableImage(f"the image states a size of {width} × {height}")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"the image has {width} × {height} pixels, more than {MAX_PIXELS}")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise UnreadableImage("the image is damaged") from error
    if pixels is None:
        raise UnreadableImage("the image is damaged")
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise UnreadableImage(f"the image has more pixels than its header states, and more than {MAX_PIXELS}")
    return turn(np.asarray(pixels, np.uint8), orientation(data))
