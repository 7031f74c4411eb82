"""The way up: what is decoded is what a viewer shows, in every format that can state an orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from saucer.serving import exif as exif_module
from saucer.serving.decode import decode
from saucer.serving.exif import UPRIGHT, orientation, turn

ORIENTATION = 0x0112
WRITERS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
}
# Of a pixel's channels: JPEG's decoders may round differently.
ROUNDING = {"JPEG": 3, "PNG": 0, "WEBP": 0}


def picture() -> Image.Image:
    """No two corners alike, so that every orientation of it differs."""
    across, down = np.meshgrid(np.arange(40), np.arange(24))
    return Image.fromarray(np.stack([6 * across, 10 * down, 3 * (across + down)], axis=2).astype(np.uint8))


def stating(kind: str, value: int, order: str = "<") -> bytes:
    encoded = io.BytesIO()
    exif = Image.Exif()
    exif.endian = order
    exif[ORIENTATION] = value
    picture().save(encoded, kind, exif=exif, **WRITERS[kind])
    return encoded.getvalue()


def shown(image: bytes) -> NDArray[np.int16]:
    """By Pillow, as viewers do it: blue, green, red."""
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))[..., ::-1].astype(np.int16)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff(order: str, tags: list[tuple[int, int, bytes]]) -> bytes:
    """A block of EXIF whose only directory has these tags: number, type and four bytes."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    rows = b"".join(struct.pack(f"{order}HHI", number, kind, 1) + value for number, kind, value in tags)
    return mark + struct.pack(f"{order}IH", 8, len(tags)) + rows + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", list(WRITERS))
def test_pixels_are_where_a_viewer_shows_them(kind: str, value: int, order: str) -> None:
    image = stating(kind, value, order)
    assert orientation(image) == value
    pixels, expected = decode(image).astype(np.int16), shown(image)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= ROUNDING[kind]


@pytest.mark.parametrize("value", range(1, 9))
def test_a_png_may_state_it_behind_its_pixels(value: int) -> None:
    encoded = io.BytesIO()
    picture().save(encoded, "PNG")
    plain, end = encoded.getvalue()[:-12], encoded.getvalue()[-12:]
    image = plain + png_chunk(b"eXIf", tiff(">", [(ORIENTATION, 3, struct.pack(">HH", value, 0))])) + end
    assert (decode(image) == shown(image)).all()


def test_other_tags_before_it_are_stepped_over() -> None:
    block = tiff("<", [(0x010F, 2, b"Cam\0"), (ORIENTATION, 3, struct.pack("<HH", 8, 0))])
    encoded = io.BytesIO()
    picture().save(encoded, "JPEG", exif=b"Exif\0\0" + block)
    assert orientation(encoded.getvalue()) == 8


@pytest.mark.parametrize("kind", list(WRITERS))
@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"garbage",
        b"II*\0",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\xff\xff\xff\xff",
        tiff("<", [(ORIENTATION, 3, struct.pack("<HH", 9, 0))]),
        tiff("<", [(ORIENTATION, 3, struct.pack("<HH", 0, 0))]),
        tiff("<", [(ORIENTATION, 2, b"6\0\0\0")]),
    ],
)
def test_what_is_damaged_or_means_nothing_turns_nothing(kind: str, block: bytes) -> None:
    encoded = io.BytesIO()
    picture().save(encoded, kind, exif=b"Exif\0\0" + block, **WRITERS[kind])
    assert orientation(encoded.getvalue()) == UPRIGHT
    assert decode(encoded.getvalue()).shape == (24, 40, 3)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_every_cut_of_an_image_has_an_orientation(kind: str) -> None:
    image = stating(kind, 6)
    assert {orientation(image[:length]) for length in range(len(image))} <= {UPRIGHT, 6}


def test_a_directory_of_too_many_tags_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exif_module, "MAX_TAGS", 1)
    block = tiff("<", [(0x010F, 2, b"Cam\0"), (ORIENTATION, 3, struct.pack("<HH", 8, 0))])
    encoded = io.BytesIO()
    picture().save(encoded, "JPEG", exif=b"Exif\0\0" + block)
    assert orientation(encoded.getvalue()) == UPRIGHT


def test_turning_copies_nothing_of_what_is_upright() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    assert turn(pixels, UPRIGHT) is pixels
