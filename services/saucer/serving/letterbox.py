"""Images into the model's square input, and boxes back."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PAD_VALUE = 114
"""Grey of the border, the value that RTMDet and YOLOX are trained with."""


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the square: at the top left, scaled by `scale_x`, `scale_y` (input ÷ source pixels)."""

    width: int
    height: int
    scale_x: float
    scale_y: float


def place(width: int, height: int, size: int) -> tuple[Placement, int, int]:
    """Placement of an image of `width` × `height` in a square of `size`, and its width and height there.

    The two scales differ by the rounding to whole pixels; a side never becomes less than one pixel.
    """
    scale = size / max(width, height)
    inner_width = max(1, min(size, int(width * scale + 0.5)))
    inner_height = max(1, min(size, int(height * scale + 0.5)))
    return Placement(width, height, inner_width / width, inner_height / height), inner_width, inner_height


def letterbox(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], Placement]:
    """uint8 [height, width, 3] to uint8 [size, size, 3], keeping the aspect, with a border at the right or below."""
    height, width = image.shape[:2]
    placement, inner_width, inner_height = place(width, height, size)
    # INTER_AREA averages all source pixels; INTER_LINEAR would skip most of them when a photograph shrinks tenfold.
    smaller = inner_width < width or inner_height < height
    inner = cv2.resize(
        image, (inner_width, inner_height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    canvas = np.full((size, size, 3), PAD_VALUE, np.uint8)
    canvas[:inner_height, :inner_width] = inner
    return canvas, placement


def into_source(boxes: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """Boxes [n, 4] xyxy from input pixels to source pixels, clipped to the source image."""
    scale = np.array([placement.scale_x, placement.scale_y] * 2, np.float32)
    limit = np.array([placement.width, placement.height] * 2, np.float32)
    return np.asarray(np.clip(boxes / scale, 0, limit), np.float32)
