"""Boxes as columns: turned with their picture, clipped to it, and refused where nothing of them is left.

Boxes are COCO's: x, y of the upper left corner, width, height, in pixels, float64 [n, 4].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A box that reaches over the edge by no more than this is cut without a word: tools round to whole pixels and count
# from 0 or 1. Beyond it, it is cut and counted as clipped.
CLIP_TOLERANCE_PX = 2.0
# Kept digits, a thousandth of a pixel: so that 12.0 and 12.0000001 make the same version, and manifests stay small.
DECIMALS = 3

Boxes = NDArray[np.float64]
Areas = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Clipped:
    """`boxes` are inside their images where no mask of a refusal is set. The three masks exclude each other."""

    boxes: Boxes
    not_finite: Mask
    no_area: Mask
    outside: Mask
    clipped: Mask

    @property
    def refused(self) -> Mask:
        return self.not_finite | self.no_area | self.outside


def clip(boxes: Boxes, widths: NDArray[np.int64], heights: NDArray[np.int64]) -> Clipped:
    """Cuts each box at its own image's edges.

    Args:
        boxes: float64 [n, 4].
        widths, heights: int64 [n], the size in pixels of the image that each box belongs to.

    Returns:
        The cut boxes, rounded to DECIMALS, and what is wrong with which: not finite; no area (as given, or after
        rounding); wholly outside (touching the edge is outside).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        x1, y1 = boxes[:, 0], boxes[:, 1]
        x2, y2 = x1 + boxes[:, 2], y1 + boxes[:, 3]
        not_finite = np.logical_or.reduce(~np.isfinite(np.column_stack([boxes, x2, y2])), axis=1)
        no_area = ~not_finite & ((boxes[:, 2] <= 0) | (boxes[:, 3] <= 0))
        outside = ~not_finite & ~no_area & ((x1 >= widths) | (y1 >= heights) | (x2 <= 0) | (y2 <= 0))
        overhang = np.max([-x1, -y1, x2 - widths, y2 - heights], axis=0, initial=0)
        corners = np.column_stack([x1, y1, x2, y2])
    corners[not_finite] = 0
    far = np.column_stack([widths, heights, widths, heights])
    corners = np.clip(corners, 0, far).round(DECIMALS)
    cut = np.column_stack([corners[:, :2], corners[:, 2:] - corners[:, :2]]).round(DECIMALS)
    fine = ~not_finite & ~no_area & ~outside
    vanished = fine & ((cut[:, 2] <= 0) | (cut[:, 3] <= 0))
    clipped = fine & ~vanished & (overhang > CLIP_TOLERANCE_PX)
    return Clipped(cut, not_finite, no_area | vanished, outside, clipped)


def box_area(box: Sequence[float]) -> float:
    """Of one box, in square pixels, rounded to DECIMALS."""
    return round(box[2] * box[3], DECIMALS)


def own_areas(areas: Areas, boxes: Boxes) -> Areas:
    """Areas that say more than their boxes: of a segmentation, say. COCO's size classes go by them.

    Args:
        areas: float64 [n] in square pixels as the labels give them, NaN where they give none.
        boxes: float64 [n, 4] as clip() gives them.

    Returns:
        float64 [n], rounded to DECIMALS; NaN where the box's own area holds: none is given, or none that is finite,
        positive and less than the box's.
    """
    with np.errstate(over="ignore"):
        own = areas.round(DECIMALS)
    of_box = (boxes[:, 2] * boxes[:, 3]).round(DECIMALS)
    return np.where((own > 0) & (own < of_box), own, np.nan)


def turn(boxes: Boxes, orientation: int, widths: NDArray[np.int64], heights: NDArray[np.int64]) -> Boxes:
    """Boxes for the array as stored → boxes for the upright picture.

    Args:
        boxes: float64 [n, 4], for the stored array.
        orientation: of EXIF (CIPA DC-008, tag Orientation), 5 to 8: those that swap the sides.
        widths, heights: int64 [n], of each box's upright picture, in pixels.
    """
    x, y, w, h = boxes.T
    # 5 transposes; the others mirror one or both axes after that.
    new_x = widths - y - h if orientation in (6, 7) else y
    new_y = heights - x - w if orientation in (7, 8) else x
    return np.column_stack([new_x, new_y, h, w])
