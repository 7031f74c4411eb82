"""Whether what is served is what was evaluated: the same images, the stored boxes against the served ones.

A box counts if its score is at or above SCORE_FLOOR; where no image has such a box on either side, as of a model that
was stopped early, every box counts, down to the model's own floor. Right at that floor a box may be lacking on one side
because of the floor alone: within a runtime's rounding, which is next to none for the runtime of evaluations; one that
rounds more may fail so, and that of evaluations then serves in its place (placement.py).

A box is paired if the other side has a box of the same class within the tolerance of the runtime that serves
(serving/runtime.py), each box having at most one partner. Partners are looked for among all boxes of the other side,
those that do not count too: else a box at 0.0501 whose partner is at 0.0499 would count as missing because of the floor
alone.

What differs, and by how much, is told of each box that counts against the nearest of its class on the other side; a box
that overlaps none by COUNTERPART_IOU is found by one side only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saucer.publishing.domain import Parity
from saucer.serving.runtime import Tolerance

SCORE_FLOOR = 0.05
COUNTERPART_IOU = 0.5
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
    """Of one image: boxes that count, of both sides together, and those of them that have a partner; boxes that one
    side alone found; of the others, the largest distance of a side in pixels of the image, and of a score."""

    image_id: int
    boxes: int
    paired: int
    only_evaluated: int = 0
    only_served: int = 0
    box_px: float = 0.0
    score: float = 0.0


@dataclass(frozen=True, eq=False)
class Answered:
    """An image with what is stored and what is served; `scale` is pixels of the image for one of the model's input."""

    image_id: int
    stored: Found
    served: Found
    scale: float


def compare_all(images: Sequence[Answered], tolerance: Tolerance) -> list[ImageParity]:
    """Image by image: the boxes from SCORE_FLOOR on; all of them where there is none, lest nothing is compared."""

    def down_to(floor: float) -> list[ImageParity]:
        return [compare(it.image_id, it.stored, it.served, tolerance, it.scale, floor) for it in images]

    compared = down_to(SCORE_FLOOR)
    return compared if any(image.boxes for image in compared) else down_to(0.0)


def compare(
    image_id: int,
    stored: Found,
    served: Found,
    tolerance: Tolerance,
    scale: float = 1.0,
    floor: float = SCORE_FLOOR,
) -> ImageParity:
    """Pairs the boxes of one image, greedily: by stored score descending, each with the best IoU that is left.

    Args:
        scale: pixels of the image for one of the model's input, where that is more than one.
        floor: boxes of a lower score do not count.
    """
    iou = iou_matrix(stored.boxes, served.boxes) if len(stored.scores) and len(served.scores) else None
    partner_of = _pair(stored, served, iou, tolerance, scale)
    counts_stored, counts_served = stored.scores >= floor, served.scores >= floor
    has_partner = partner_of >= 0
    paired = int(np.sum(counts_stored & has_partner)) + int(np.sum(counts_served[partner_of[has_partner]]))
    only_evaluated, box_px, score = _distances(stored, served, iou, counts_stored)
    only_served, other_px, other_score = _distances(served, stored, None if iou is None else iou.T, counts_served)
    return ImageParity(
        image_id,
        boxes=int(np.sum(counts_stored)) + int(np.sum(counts_served)),
        paired=paired,
        only_evaluated=only_evaluated,
        only_served=only_served,
        box_px=max(box_px, other_px),
        score=max(score, other_score),
    )


def judge(images: Sequence[ImageParity], tolerance: Tolerance) -> Parity:
    """All images together, which were compared within the tolerance."""
    boxes, paired = sum(image.boxes for image in images), sum(image.paired for image in images)
    unequal = [image for image in images if image.paired < image.boxes]
    unequal.sort(key=lambda image: (image.paired - image.boxes, image.image_id))
    return Parity(
        ok=1000 * paired >= boxes * tolerance.permille,
        images=len(images),
        boxes=boxes,
        paired=paired,
        worst_images=tuple(image.image_id for image in unequal[:MAX_WORST_IMAGES]),
    )


def choose_worst(images: Sequence[ImageParity]) -> tuple[ImageParity, ...]:
    """Those that differ, at most MAX_WORST_IMAGES: most unpaired boxes first, then the largest distances."""
    different = [image for image in images if image.paired < image.boxes or image.box_px > 0 or image.score > 0]
    different.sort(key=lambda image: (image.paired - image.boxes, -image.box_px, -image.score, image.image_id))
    return tuple(different[:MAX_WORST_IMAGES])


def _distances(
    own: Found, other: Found, iou: NDArray[np.float64] | None, counts: NDArray[np.bool_]
) -> tuple[int, float, float]:
    """Of the boxes that count: how many the other side has not, and of the rest the largest distances to its boxes."""
    if iou is None:
        return int(np.sum(counts)), 0.0, 0.0
    same = np.where(own.labels[:, None] == other.labels[None, :], iou, 0.0)
    nearest = np.argmax(same, axis=1)
    has_one = counts & (np.max(same, axis=1) >= COUNTERPART_IOU)
    found = nearest[has_one]
    return (
        int(np.sum(counts & ~has_one)),
        float(np.max(np.abs(own.boxes[has_one] - other.boxes[found]), initial=0.0)),
        float(np.max(np.abs(own.scores[has_one] - other.scores[found]), initial=0.0)),
    )


def _pair(
    stored: Found, served: Found, iou: NDArray[np.float64] | None, tolerance: Tolerance, scale: float
) -> NDArray[np.int64]:
    """For each stored box the index of its served partner, or -1."""
    partner_of = np.full(len(stored.scores), -1, np.int64)
    if iou is None:
        return partner_of
    boxes, others = stored.boxes.astype(np.float64)[:, None, :], served.boxes.astype(np.float64)[None, :, :]
    scores = stored.scores.astype(np.float64)[:, None] - served.scores.astype(np.float64)[None, :]
    fits = (
        (stored.labels[:, None] == served.labels[None, :])
        & (np.max(np.abs(boxes - others), axis=-1) <= tolerance.box_px * max(1.0, scale))
        & (np.abs(scores) <= tolerance.score)
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
