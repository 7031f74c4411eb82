"""Whether what is served is what was evaluated: the same images, the stored boxes against the served ones.

A box counts if its score is at or above SCORE_FLOOR. It is paired if the other side has a box of the same class with
IoU >= MIN_IOU and a score within MAX_SCORE_DIFFERENCE, each box having at most one partner. Partners are looked for
among all boxes of the other side, those below the floor too: else a box at 0.0501 whose partner is at 0.0499 would
count as missing because of the floor alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from saucer.publishing.domain import Parity

SCORE_FLOOR = 0.05
MIN_IOU = 0.99
MAX_SCORE_DIFFERENCE = 0.01
MIN_PAIRED_SHARE = Fraction(995, 1000)
# Named in the result, those with most unpaired boxes first.
MAX_WORST_IMAGES = 10


@dataclass(frozen=True, eq=False)
class Found:
    """Boxes of one image: `boxes` float32 [n, 4] xyxy in pixels, `scores` float32 [n], `labels` int32 [n]."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class ImageParity:
    """Of one image: boxes that count, of both sides together, and those of them that have a partner."""

    image_id: int
    boxes: int
    paired: int


def compare(image_id: int, stored: Found, served: Found) -> ImageParity:
    """Pairs the boxes of one image, greedily: by stored score descending, each with the best IoU that is left."""
    partner_of = _pair(stored, served)
    counts_stored, counts_served = stored.scores >= SCORE_FLOOR, served.scores >= SCORE_FLOOR
    has_partner = partner_of >= 0
    paired = int(np.sum(counts_stored & has_partner)) + int(np.sum(counts_served[partner_of[has_partner]]))
    return ImageParity(image_id, int(np.sum(counts_stored)) + int(np.sum(counts_served)), paired)


def judge(images: Sequence[ImageParity]) -> Parity:
    """All images together."""
    boxes, paired = sum(image.boxes for image in images), sum(image.paired for image in images)
    unequal = [image for image in images if image.paired < image.boxes]
    unequal.sort(key=lambda image: (image.paired - image.boxes, image.image_id))
    return Parity(
        ok=paired >= boxes * MIN_PAIRED_SHARE,
        images=len(images),
        boxes=boxes,
        paired=paired,
        worst_images=tuple(image.image_id for image in unequal[:MAX_WORST_IMAGES]),
    )


def _pair(stored: Found, served: Found) -> NDArray[np.int64]:
    """For each stored box the index of its served partner, or -1."""
    partner_of = np.full(len(stored.scores), -1, np.int64)
    if len(stored.scores) == 0 or len(served.scores) == 0:
        return partner_of
    iou = iou_matrix(stored.boxes, served.boxes)
    scores, others = stored.scores.astype(np.float64)[:, None], served.scores.astype(np.float64)[None, :]
    fits = (
        (stored.labels[:, None] == served.labels[None, :])
        & (iou >= MIN_IOU)
        & (np.abs(scores - others) <= MAX_SCORE_DIFFERENCE)
    )
    free = np.ones(len(served.scores), bool)
    for index in np.argsort(-stored.scores, kind="stable"):
        candidates = np.where(fits[index] & free, iou[index], -1.0)
        best = int(np.argmax(candidates))
        if candidates[best] >= 0:
            partner_of[index] = best
            free[best] = False
    return partner_of


def iou_matrix(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of boxes [n, 4] and [m, 4] as [n, m]; 0 where neither has an area."""
    a, b = first.astype(np.float64)[:, None, :], second.astype(np.float64)[None, :, :]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = np.prod(np.clip(sides, 0, None), axis=-1)
    areas = np.prod(a[..., 2:] - a[..., :2], axis=-1) + np.prod(b[..., 2:] - b[..., :2], axis=-1)
    union = areas - overlap
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0), np.float64)


def choose_evenly(count: int, limit: int) -> list[int]:
    """At most `limit` of the indices 0 to count - 1, spread evenly, ascending."""
    chosen = min(count, limit)
    return [index * count // chosen for index in range(chosen)]
