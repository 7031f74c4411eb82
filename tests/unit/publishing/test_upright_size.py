"""The size of an image from its header alone, as the model that decodes it sees it."""

import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from saucer.lib.errors import InvalidArgumentError
from saucer.publishing.endpoint import MAX_IMAGE_BYTES, upright_size
from saucer.serving.decode import MAX_PIXELS, decode
from saucer.serving.header import MAX_SCANS
from tests.support.memory import MIB, forget_peak, peak_bytes
from tests.support.pictures import EXIF_ORIENTATION


def _jpeg_30_10() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (30, 10)).save(encoded, "JPEG")
    return encoded.getvalue()


JPEG_30_10 = _jpeg_30_10()


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_it_is_the_size_that_the_model_decodes(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    if orientation:
        exif[EXIF_ORIENTATION] = orientation
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(encoded, kind, exif=exif)
    height, width = decode(encoded.getvalue()).shape[:2]
    assert upright_size(encoded.getvalue()) == (width, height)


def test_what_is_no_image_or_states_too_many_pixels_is_refused() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + side.to_bytes(4, "big") * 2
    for image in (b"", b"GIF89a", png):
        with pytest.raises(InvalidArgumentError, match="IMAGE: "):
            upright_size(image)


def test_damaged_metadata_does_not_hide_an_image() -> None:
    damaged = JPEG_30_10[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + JPEG_30_10[2:]
    assert upright_size(damaged) == (30, 10)


def test_nothing_of_a_large_image_is_decoded_for_it() -> None:
    """A PNG of one colour: some 180 kB that would be 180 MB."""
    encoded = io.BytesIO()
    Image.new("RGB", (7900, 7900), (1, 2, 3)).save(encoded, "PNG")
    before = forget_peak(os.getpid())
    assert upright_size(encoded.getvalue()) == (7900, 7900)
    assert peak_bytes(os.getpid()) - before < 20 * MIB


@pytest.mark.parametrize("part", [b"\xff\xe2\0\2", b"\xff"])
def test_a_jpeg_whose_header_has_millions_of_parts_is_refused_at_once(part: bytes) -> None:
    hostile = b"\xff\xd8" + part * (16 * MIB // len(part))
    begun_s = time.process_time()
    with pytest.raises(InvalidArgumentError, match="segments"):
        upright_size(hostile)
    assert time.process_time() - begun_s < 0.25


@pytest.mark.parametrize("marker", [b"\xff\xe1", b"\xff\xe5"])
def test_a_small_jpeg_of_thousands_of_segments_is_refused(marker: bytes) -> None:
    """Looking at them all, twice, would take a server longer than answering others."""
    segments = (marker + b"\0\2") * 19_900
    with pytest.raises(InvalidArgumentError, match="segments"):
        upright_size(JPEG_30_10[:2] + segments + JPEG_30_10[2:])


def test_a_jpeg_of_more_scans_than_are_allowed_is_refused() -> None:
    scan = JPEG_30_10[JPEG_30_10.index(b"\xff\xda") : -2]
    assert upright_size(JPEG_30_10[:-2] + scan * (MAX_SCANS - 1) + JPEG_30_10[-2:]) == (30, 10)
    with pytest.raises(InvalidArgumentError, match="more than 50 scans"):
        upright_size(JPEG_30_10[:-2] + scan * MAX_SCANS + JPEG_30_10[-2:])


def test_scans_of_the_largest_image_are_counted_at_once() -> None:
    begun_s = time.process_time()
    assert upright_size(JPEG_30_10 + b"\xff\0" * (MAX_IMAGE_BYTES // 2 - MIB)) == (30, 10)
    assert time.process_time() - begun_s < 0.25


def test_a_jpeg_as_large_as_is_accepted_may_consist_of_a_colour_profiles_segments() -> None:
    profile = (b"\xff\xe2\xff\xff" + bytes(65_533)) * (MAX_IMAGE_BYTES // 65_537)
    assert upright_size(JPEG_30_10[:2] + profile + JPEG_30_10[2:]) == (30, 10)


def test_a_png_as_large_as_is_accepted_may_state_its_orientation_behind_its_pixels() -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    encoded = io.BytesIO()
    Image.new("RGB", (30, 10)).save(encoded, "PNG", exif=exif)
    data = encoded.getvalue()
    pixels = ((8192).to_bytes(4, "big") + b"IDAT" + bytes(8192 + 4)) * ((MAX_IMAGE_BYTES - len(data)) // (8192 + 12))
    assert upright_size(data[:33] + pixels + data[33:]) == (10, 30)


def test_a_png_of_millions_of_chunks_is_measured_at_once() -> None:
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (64).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0" + bytes(4)
    begun_s = time.process_time()
    assert upright_size(header + b"\0\0\0\0tEXt\0\0\0\0" * MIB) == (64, 64)
    assert time.process_time() - begun_s < 0.25
