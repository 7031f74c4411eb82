"""Image bytes to pixels: what is accepted, what is refused, and before which cost."""

import contextlib
import io
import random
import re
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from saucer.serving import decode as decode_module
from saucer.serving.decode import MAX_PIXELS, decode, decoded_size
from saucer.serving.errors import UnreadableImage
from saucer.serving.header import MAX_SCANS, stated_size

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def picture(width: int = 40, height: int = 24) -> Image.Image:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(ramp)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_decodes_to_blue_green_red_pixels(kind: str) -> None:
    red = Image.new("RGB", (40, 24), (250, 10, 10))
    pixels = decode(encoded(red, kind))
    assert pixels.shape == (24, 40, 3)
    assert pixels.dtype == np.uint8
    assert pixels[..., 2].min() > 235
    assert pixels[..., 0].max() < 30


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": False}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    ],
)
def test_the_header_states_the_size(kind: str, options: dict[str, object]) -> None:
    assert stated_size(encoded(picture(123, 45), kind, **options)) == (123, 45)


def test_a_grey_image_becomes_three_channels() -> None:
    assert decode(encoded(Image.new("L", (8, 6), 77), "PNG")).tolist() == np.full((6, 8, 3), 77).tolist()


def test_transparency_is_dropped() -> None:
    assert decode(encoded(Image.new("RGBA", (8, 6), (1, 2, 3, 0)), "PNG")).shape == (6, 8, 3)


def test_bytes_of_no_known_format_are_refused() -> None:
    for data in (b"", b"GIF89a" + bytes(40), b"II*\0" + bytes(40), b"hello"):
        with pytest.raises(UnreadableImage, match="not a JPEG, PNG, WebP or BMP"):
            decode(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_cut_of_an_image_is_refused_or_decodes_to_its_size(kind: str) -> None:
    data = encoded(picture(), kind)
    for length in range(0, len(data), max(1, len(data) // 60)):
        with contextlib.suppress(UnreadableImage):
            assert decode(data[:length]).shape == (24, 40, 3)


def test_damaged_pixels_behind_a_good_header_are_refused() -> None:
    data = encoded(picture(), "PNG")
    with pytest.raises(UnreadableImage, match="damaged"):
        decode(data[:33] + bytes(len(data) - 33))


def test_an_image_over_the_pixel_limit_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def png(width: int, height: int) -> bytes:
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))

    monkeypatch.setattr(decode_module, "cv2", None)  # any use of the decoder would fail
    with pytest.raises(UnreadableImage, match=f"60000 × 60000 pixels, more than {MAX_PIXELS}"):
        decode(png(60_000, 60_000))
    with pytest.raises(UnreadableImage, match="size of 0 × 5"):
        decode(png(0, 5))


def test_an_image_over_the_byte_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_BYTES", 10)
    with pytest.raises(UnreadableImage, match="more than 10"):
        decode(encoded(picture(), "PNG"))


def with_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(picture(), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * (scans - data.count(b"\xff\xda")) + data[-2:]


@pytest.mark.parametrize("read", [decode, decoded_size])
def test_a_jpeg_of_many_scans_is_refused_before_decoding(
    read: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    read(with_scans(MAX_SCANS))
    monkeypatch.setattr(decode_module, "cv2", None)
    with pytest.raises(UnreadableImage, match=f"more than {MAX_SCANS} scans"):
        read(with_scans(MAX_SCANS + 1))


def test_markers_of_scans_in_a_video_behind_the_pixels_are_none() -> None:
    video = np.random.default_rng(1).integers(1, 256, 10_000, np.uint8).tobytes() + b"\xff\xda\x09" * 1000
    assert decode(encoded(picture(), "JPEG") + video).shape == (24, 40, 3)


def test_pixels_are_what_opencv_decodes() -> None:
    data = encoded(picture(), "JPEG", quality=80)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert (decode(data) == expected).all()


def upright_size(data: bytes) -> tuple[int, int]:
    height, width, _ = decode(data).shape
    return width, height


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Cut, with some bytes overwritten, or with a part left out."""
    at = dice.randrange(1, len(data))
    if dice.random() < 1 / 3:
        return data[:at]
    if dice.random() < 1 / 2:
        return data[:at] + data[at + dice.randrange(1, 200) :]
    spoilt = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
    return bytes(spoilt)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"subsampling": 0, "quality": 95}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "L", {}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_a_damaged_image_is_refused_by_its_size_where_it_is_refused_by_its_pixels(
    kind: str, mode: str, options: dict[str, object]
) -> None:
    dice = random.Random(28)
    sound = encoded(picture(123, 45).convert(mode), kind, **options)
    for data in (sound, *(damaged(sound, dice) for _ in range(300))):
        try:
            expected = upright_size(data)
        except UnreadableImage as error:
            with pytest.raises(UnreadableImage, match=re.escape(str(error))):
                decoded_size(data)
        else:
            assert decoded_size(data) == expected


def test_a_size_of_a_turned_image_is_that_of_the_upright_one() -> None:
    for place in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = place
        data = encoded(picture(123, 45), "JPEG", exif=exif)
        assert decoded_size(data) == upright_size(data)
