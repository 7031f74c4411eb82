"""Pictures of many sizes, orientations and formats, as cameras and programs write them; the same for the same seed."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

MAX_SIDE_PX = 3000
EXIF_ORIENTATION = 0x0112
# Sides in pixels that each set begins with: a point, strips, a camera's.
EDGES = ((1, 1), (1, 700), (700, 1), (MAX_SIDE_PX, 2000))
WRITERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("JPEG", {"quality": 90}),
    ("JPEG", {"quality": 75, "progressive": True, "subsampling": "4:2:0"}),
    ("PNG", {}),
    ("WEBP", {"quality": 85}),
    ("WEBP", {"lossless": True}),
    ("BMP", {}),
)
MODES = ("RGB", "RGB", "RGB", "L", "RGBA")


def pictures(count: int, seed: int = 5) -> Iterator[bytes]:
    """Encoded images, no two alike."""
    chance = np.random.default_rng(seed)
    for number in range(count):
        sides = np.exp(chance.uniform(np.log(8), np.log(MAX_SIDE_PX), 2)).astype(int)
        width, height = EDGES[number] if number < len(EDGES) else sides
        yield written(number, _scene(int(width), int(height), chance))


def written(number: int, scene: Image.Image) -> bytes:
    """A scene in the form whose turn it is: its format, and an orientation that EXIF states."""
    kind, options = WRITERS[number % len(WRITERS)]
    mode = "RGB" if kind in ("JPEG", "BMP") else MODES[number % len(MODES)]
    exif = Image.Exif()
    # Out of step with the writers, so that each meets every orientation.
    exif[EXIF_ORIENTATION] = 1 + number // len(WRITERS) % 8
    encoded = io.BytesIO()
    scene.convert(mode).save(encoded, kind, exif=exif, **options)
    return encoded.getvalue()


def _scene(width: int, height: int, chance: np.random.Generator) -> Image.Image:
    """Soft colours and sharp edges."""
    coarse = Image.fromarray(chance.integers(0, 256, (9, 9, 3), np.uint8))
    scene = coarse.resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(4):
        left, top = (int(chance.uniform(0, side)) for side in (width, height))
        colour = tuple(int(value) for value in chance.integers(0, 256, 3))
        scene.paste(colour, (left, top, left + max(1, width // 5), top + max(1, height // 5)))
    return scene
