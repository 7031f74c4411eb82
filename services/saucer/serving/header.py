"""The size that an image's header states, without decoding a pixel.

Only the formats named here are accepted: what has no parser here never reaches a decoder.
"""

import re
import struct
from collections.abc import Iterator
from itertools import islice

from .errors import UnreadableImage

MAX_SMALL_PARTS = 1000
PART_BYTES = 8192
"""Segments of a JPEG, chunks of a PNG or WebP that are stepped over: one for each PART_BYTES of the image, and so many
more. libpng's chunks of pixels are that large; a JPEG's segments of colour profiles and the like are 64 kB, and what is
smaller is a few dozen. A thousand take about a millisecond, in which a server does nothing else."""
MAX_SCANS = 50
"""Of a JPEG. A progressive one has about ten, and those of the previews inside it; each is a pass over all of its
coefficients, which takes a decoder some 40 ms at 64 million pixels, however few bytes the scan has."""

JPEG_SIGNATURE = b"\xff\xd8"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # C4, C8 and CC are tables, not frames
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
JPEG_START_OF_SCAN = 0xDA

# A scan's header begins with its length, which is below 256: without that zero byte, a video behind the image would
# have one by chance every 64 kB. In the pixels themselves 0xFF is followed by zero.
_SCAN = re.compile(rb"\xff\xda\0")
_SEGMENT = struct.Struct(">BBH")
"""0xFF, the marker, and the length with its own two bytes."""


def stated_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as the header of a JPEG, PNG, WebP or BMP states them, before any rotation by EXIF.

    Raises UnreadableImage if the bytes are of another format or end inside the header.
    """
    if data.startswith(JPEG_SIGNATURE):
        return _jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return _field(data, 16, 4, "big"), _field(data, 20, 4, "big")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    raise UnreadableImage("not a JPEG, PNG, WebP or BMP image")


def refuse_many_scans(data: bytes) -> None:
    """Raises UnreadableImage if a JPEG may have more than MAX_SCANS."""
    if not data.startswith(JPEG_SIGNATURE):
        return
    if sum(1 for _ in islice(_SCAN.finditer(data), MAX_SCANS + 1)) > MAX_SCANS:
        raise UnreadableImage(f"the JPEG has more than {MAX_SCANS} scans; write it with fewer, or as a baseline JPEG")


def max_parts(data: bytes) -> int:
    """Of an image that are looked at."""
    return MAX_SMALL_PARTS + len(data) // PART_BYTES


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment before the first scan: ITU-T T.81, annex B.

    Raises UnreadableImage if they are damaged, cut or too many.
    """
    at = 2
    for _ in range(max_parts(data)):
        try:
            prefix, marker, length = _SEGMENT.unpack_from(data, at)
        except struct.error:
            raise UnreadableImage("the image ends inside its header") from None
        if prefix != 0xFF:
            raise UnreadableImage("the JPEG header is damaged")
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in JPEG_WITHOUT_LENGTH:
            at += 2
        elif marker == JPEG_START_OF_SCAN:
            return
        else:
            end = at + 2 + max(2, length)
            yield marker, at + 4, end
            at = end
    raise UnreadableImage(f"the JPEG header has more than {max_parts(data)} segments")


def _field(data: bytes, offset: int, length: int, order: str, *, signed: bool = False) -> int:
    field = data[offset : offset + length]
    if len(field) < length:
        raise UnreadableImage("the image ends inside its header")
    return int.from_bytes(field, "big" if order == "big" else "little", signed=signed)


def _jpeg(data: bytes) -> tuple[int, int]:
    for marker, at, _ in jpeg_segments(data):
        if marker in JPEG_START_OF_FRAME:
            return _field(data, at + 3, 2, "big"), _field(data, at + 1, 2, "big")
    raise UnreadableImage("the JPEG has no frame header")


def _webp(data: bytes) -> tuple[int, int]:
    """RFC 9649: a lossy, a lossless or an extended file."""
    kind = data[12:16]
    if kind == b"VP8 ":
        return _field(data, 26, 2, "little") & 0x3FFF, _field(data, 28, 2, "little") & 0x3FFF
    if kind == b"VP8L":
        bits = _field(data, 21, 4, "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8X":
        return _field(data, 24, 3, "little") + 1, _field(data, 27, 3, "little") + 1
    raise UnreadableImage("the WebP header is damaged")


def _bmp(data: bytes) -> tuple[int, int]:
    if _field(data, 14, 4, "little") == 12:  # the header of OS/2, with 16-bit sizes
        return _field(data, 18, 2, "little"), _field(data, 20, 2, "little")
    # A negative height means that rows run from the top.
    return abs(_field(data, 18, 4, "little", signed=True)), abs(_field(data, 22, 4, "little", signed=True))
