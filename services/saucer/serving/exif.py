"""The way up that EXIF states: read without decoding a pixel, and applied to the pixels.

OpenCV heeds it in JPEG and PNG and not in WebP; viewers heed it in all of them, and boxes are for what a viewer shows.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import UnreadableImage
from .header import JPEG_SIGNATURE, PNG_SIGNATURE, jpeg_segments, max_parts

UPRIGHT = 1
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations that swap width and height."""
MAX_TAGS = 1000
"""Of a directory that are looked at; cameras write some twenty."""

_ORIENTATION, _SHORT = 0x0112, 3
_APP1 = 0xE1
_PREFIX = b"Exif\0\0"
_ORDERS: dict[bytes, str] = {b"II*\0": "little", b"MM\0*": "big"}
# After the transposition of SIDEWAYS: the axes that are mirrored, as cv2.flip names them.
_MIRRORED = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def orientation(data: bytes) -> int:
    """1 to 8, as EXIF numbers them (CIPA DC-008); UPRIGHT where a JPEG, PNG or WebP states none, or it is damaged."""
    if data.startswith(JPEG_SIGNATURE):
        blocks = _of_jpeg(data)
    elif data.startswith(PNG_SIGNATURE):
        blocks = _of_png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        blocks = _of_webp(data)
    else:
        return UPRIGHT
    try:
        block = next(blocks, b"")
    except UnreadableImage:
        return UPRIGHT
    return _stated(block.removeprefix(_PREFIX))


def turn(pixels: NDArray[np.uint8], stated: int) -> NDArray[np.uint8]:
    """Pixels [height, width, channels] as stored → as a viewer shows them; `stated` as orientation() gives it."""
    turned = cv2.transpose(pixels) if stated in SIDEWAYS else pixels
    if stated in _MIRRORED:
        turned = cv2.flip(turned, _MIRRORED[stated])
    return np.ascontiguousarray(turned, dtype=np.uint8)


def _of_jpeg(data: bytes) -> Iterator[bytes]:
    for marker, begin, end in jpeg_segments(data):
        if marker == _APP1 and data.startswith(_PREFIX, begin):
            yield data[begin:end]


def _of_png(data: bytes) -> Iterator[bytes]:
    """Before or after the pixels: the PNG specification allows both."""
    at = len(PNG_SIGNATURE)
    for _ in range(max_parts(data)):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"eXIf":
            yield data[at + 8 : at + 8 + length]
        if kind in (b"IEND", b""):
            return
        at += 12 + length


def _of_webp(data: bytes) -> Iterator[bytes]:
    at = 12
    for _ in range(max_parts(data)):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            yield data[at + 8 : at + 8 + length]
        if kind == b"":
            return
        at += 8 + length + length % 2


def _stated(block: bytes) -> int:
    """Of a block of EXIF: a TIFF header, and the tags of its first directory."""
    order = _ORDERS.get(block[:4])
    if order is None:
        return UPRIGHT

    def number(at: int, length: int) -> int:
        return int.from_bytes(block[at : at + length], "big" if order == "big" else "little")

    directory = number(4, 4)
    for tag in range(min(number(directory, 2), MAX_TAGS)):
        at = directory + 2 + 12 * tag
        if (number(at, 2), number(at + 2, 2)) == (_ORIENTATION, _SHORT):
            value = number(at + 8, 2)
            return value if value in range(1, 9) else UPRIGHT
    return UPRIGHT
