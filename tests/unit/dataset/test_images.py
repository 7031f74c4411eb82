import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saucer.dataset.images import ImageLimits, ImageRefusedError, check_image, read_image
from saucer.dataset.report import ItemReason
from saucer.serving.decode import decode
from tests.unit.dataset.folders import picture

LIMITS = ImageLimits()


def reason_of(data: bytes, limits: ImageLimits = LIMITS) -> ItemReason:
    with pytest.raises(ImageRefusedError) as caught:
        check_image(data, limits)
    return caught.value.reason


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data, b"IEND")
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "MPO"])
def test_the_formats_are_accepted(file_format: str) -> None:
    data = picture(1, 64, 48, file_format)
    facts = check_image(data, LIMITS)
    assert (facts.width, facts.height, facts.turned) == (64, 48, None)
    assert facts.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_grey_palette_transparent_and_16_bit_pngs_are_accepted(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20)
    else:
        image = Image.new("RGB", (64, 48), "red").convert(mode)
    assert check_image(saved(image, "PNG"), LIMITS).width == 64


def test_16_bits_become_8_and_cmyk_becomes_bgr() -> None:
    deep = saved(Image.fromarray(np.full((16, 16), 0x8000, dtype=np.uint16)), "PNG")
    cmyk = saved(Image.new("RGB", (16, 16), "red").convert("CMYK"), "JPEG", quality=100)
    for data in (deep, cmyk):
        check_image(data, LIMITS)
    assert decode(deep).max() == 0x80
    blue, green, red = decode(cmyk)[8, 8].tolist()
    assert red > 200 > 60 > max(blue, green)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_unreadable(file_format: str, part: float, progressive: bool) -> None:
    options = {"progressive": True} if progressive and file_format == "JPEG" else {}
    data = picture(2, 320, 240, file_format, **options)
    assert reason_of(data[: int(len(data) * part)]) is ItemReason.UNREADABLE_IMAGE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        b"\xff\xd8\xff",
        saved(Image.new("RGB", (64, 48)), "GIF"),
        saved(Image.new("RGB", (64, 48)), "TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='48'/>",
        png_header(64, 48),
    ],
)
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    assert reason_of(data) is ItemReason.UNREADABLE_IMAGE


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 5_001), (40_000, 10), (2**31 - 1, 2**31 - 1)])
def test_an_image_too_large_is_refused_by_its_header(width: int, height: int) -> None:
    assert reason_of(png_header(width, height)) is ItemReason.IMAGE_TOO_LARGE


def test_an_image_too_small_is_refused() -> None:
    assert reason_of(picture(1, 64, 7)) is ItemReason.IMAGE_TOO_SMALL
    assert check_image(picture(1, 8, 8), LIMITS).height == 8


def test_a_file_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 1_000_000)
    with (tmp_path / "large").open("rb") as file:
        with pytest.raises(ImageRefusedError) as caught:
            read_image(file, ImageLimits(max_bytes=1000))
        assert caught.value.reason is ItemReason.IMAGE_TOO_LARGE
        assert file.tell() == 1001


@pytest.mark.parametrize("size_bytes", [0, 999, 1000])
def test_a_file_within_the_limit_is_read_whole(tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "small").write_bytes(b"x" * size_bytes)
    with (tmp_path / "small").open("rb") as file:
        assert read_image(file, ImageLimits(max_bytes=1000)) == b"x" * size_bytes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_the_size_is_that_of_the_upright_picture_as_decoded(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.new("RGB", (64, 48)), file_format, exif=exif)
    facts = check_image(data, LIMITS)
    assert (facts.height, facts.width) == decode(data).shape[:2]
    assert (facts.width, facts.height) == ((48, 64) if orientation >= 5 else (64, 48))
    assert facts.turned == (orientation if orientation >= 5 else None)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\xff\xff\xff\xff"]
)
def test_damaged_exif_beside_a_sound_image_does_no_harm(exif: bytes) -> None:
    data = saved(Image.new("RGB", (64, 48)), "JPEG", exif=exif)
    assert check_image(data, LIMITS).width == 64
