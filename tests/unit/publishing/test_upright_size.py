"""The size of an image from its header alone, as the model that decodes it sees it."""

import io

import numpy as np
import pytest
from PIL import Image

from saucer.lib.errors import InvalidArgumentError
from saucer.publishing.endpoint import EXIF_ORIENTATION, upright_size
from saucer.serving.decode import MAX_PIXELS, decode


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
    encoded = io.BytesIO()
    Image.new("RGB", (30, 10)).save(encoded, "JPEG")
    data = encoded.getvalue()
    damaged = data[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + data[2:]
    assert upright_size(damaged) == (30, 10)
