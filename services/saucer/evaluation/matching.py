"""One pass that matches detections with truth at IoU 0.5; from what it stores, every threshold is answered.

The definitions are numbered in METRICS.md and named here by number (M1 …).
"""

import io
import math
import zipfile
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.columns import packed
from saucer.evaluation.sorting import ascending, falling
from saucer.evaluation.truth import Truth

MATCH_IOU = 0.5
"""At or above it a detection may find a truth of its class, or is confused with one of another class."""
POOR_IOU = 0.1
"""From here up to MATCH_IOU a detection is a poorly placed one of its class; below, it has nothing to do with it."""
COCO_MAX_DETECTIONS = 100
"""COCO's AP sees this many detections per image and class, the best-scored; counts at a threshold see all."""
PAIRS_AT_ONCE = 1 << 16
"""Detection-truth pairs whose IoU is computed at a time: about 10 MB. It bounds the memory, not the input."""
DENSE = 16
"""Up to so many ids in a span for each one that occurs, a table of the span is small enough: 4 bytes each."""
FORMAT_VERSION = 1
"""Of the stored form; bytes of another version are refused."""

NEVER = np.float32(-np.inf)
"""Score of something that no detection does, at whatever threshold."""
NONE = -1
"""Index where there is no truth or no detection."""


class Verdict(IntEnum):
    """What a detection is, the same at every threshold that it reaches (M6)."""

    TRUE_POSITIVE = 0
    IGNORED = 1
    FALSE_POSITIVE = 2
    CONFUSED = 3
    POORLY_PLACED = 4


class DetectionColumns(Protocol):
    """Detections of m images in columns of n rows: what this module needs of saucer.serving's.

    `images` int64 [m] lists every image that was predicted, those without a detection too. `box` float32 [n, 4] is
    x1, y1, x2, y2 in pixels of the image; `label` int32 [n] indexes the model's classes, as Truth.label does.
    """

    @property
    def images(self) -> NDArray[np.int64]: ...
    @property
    def image_id(self) -> NDArray[np.int64]: ...
    @property
    def box(self) -> NDArray[np.float32]: ...
    @property
    def score(self) -> NDArray[np.float32]: ...
    @property
    def label(self) -> NDArray[np.int32]: ...


class MismatchError(ValueError):
    """The detections do not belong to this truth, or are no detections; the text says which and why."""


class StoredFormError(ValueError):
    """The bytes are not a Scored of this FORMAT_VERSION."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What the one pass found. For m images, n detections and t truths, in the order in which they were given.

    - `images` int64 [m], ascending; `class_count` int64, a scalar array.
    - `score` float32 [n], `label` int32 [n], `image` int32 [n] (index into `images`), `verdict` uint8 [n] (Verdict);
      `truth` int32 [n]: the truth that the verdict is about, NONE for an ignored detection and for a false positive
      that is no duplicate; `iou` float32 [n]: with that truth, 0 where there is none; `beyond_cap` bool [n]: not among
      the COCO_MAX_DETECTIONS best of its image and class.
    - `truth_label` int32 [t], `truth_image` int32 [t], `truth_crowd` bool [t]; `found_score`, `confused_score`,
      `poor_score` float32 [t]: the highest score of a detection that finds the truth, is confused with it, is a
      poorly placed one of it; NEVER if none does.
    """

    images: NDArray[np.int64]
    class_count: NDArray[np.int64]
    score: NDArray[np.float32]
    label: NDArray[np.int32]
    image: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    truth: NDArray[np.int32]
    iou: NDArray[np.float32]
    beyond_cap: NDArray[np.bool_]
    truth_label: NDArray[np.int32]
    truth_image: NDArray[np.int32]
    truth_crowd: NDArray[np.bool_]
    found_score: NDArray[np.float32]
    confused_score: NDArray[np.float32]
    poor_score: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """The arrays as an .npz; it holds no pickle."""
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _COLUMNS}
        return packed({"format_version": np.array(FORMAT_VERSION)} | arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Scored":
        """Reads what `to_bytes` wrote, without pickle.

        Raises:
            StoredFormError: other bytes, another version, or columns of differing lengths.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                version = int(stored["format_version"])
                columns = {name: stored[name] for name in _COLUMNS}
        except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StoredFormError(f"not a stored evaluation: {error}") from error
        if version != FORMAT_VERSION:
            raise StoredFormError(f"format version {version}; this program reads {FORMAT_VERSION}")
        for group in (_DETECTION_COLUMNS, _TRUTH_COLUMNS):
            if len({columns[name].shape for name in group}) != 1:
                raise StoredFormError(f"columns {', '.join(group)} differ in length")
        return cls(**columns)


_DETECTION_COLUMNS = ("score", "label", "image", "verdict", "truth", "iou", "beyond_cap")
_TRUTH_COLUMNS = ("truth_label", "truth_image", "truth_crowd", "found_score", "confused_score", "poor_score")
_COLUMNS = ("images", "class_count", *_DETECTION_COLUMNS, *_TRUTH_COLUMNS)


def match(truth: Truth, detections: DetectionColumns) -> Scored:
    """Matches every detection, whatever its score: box-level, per image and class, greedy by score (M2, M3, M6).

    A detection's fate depends only on those of higher score (of equal score: those before it), so dropping all below
    a threshold changes nothing for the rest: the result holds at every threshold.

    Raises:
        MismatchError: an image set other than the truth's, a label outside the classes, a number that is not
            finite, a box whose corners are in the wrong order, or columns of differing lengths.
    """
    check(truth, detections)
    images = truth.images
    image, truth_image = places(images, detections.image_id), places(images, truth.image_id)
    # From here on `by_rank` numbers detections by image and falling score, so that a smaller number goes first.
    by_rank = np.lexsort((*falling(detections.score), *ascending(image)))
    by_image = np.argsort(truth_image, kind="stable")
    pairs = _near_pairs(truth, detections, by_rank, by_image, image[by_rank], truth_image)
    verdict, named, iou = _verdicts(pairs, by_rank.size)

    back = np.empty_like(by_rank)
    back[by_rank] = np.arange(by_rank.size)
    some = named != NONE
    named[some] = by_image[named[some]]
    verdict, named_truth = verdict[back], named[back].astype(np.int32)
    score = np.asarray(detections.score, np.float32)

    def best_score(of: Verdict) -> NDArray[np.float32]:
        best = np.full(truth.label.size, NEVER, np.float32)
        np.maximum.at(best, named_truth[verdict == of], score[verdict == of])
        return best

    return Scored(
        images=images,
        class_count=np.array(len(truth.classes), np.int64),
        score=score,
        label=np.asarray(detections.label, np.int32),
        image=image,
        verdict=verdict,
        truth=named_truth,
        iou=iou[back],
        beyond_cap=_beyond_cap(image, detections.label, by_rank),
        truth_label=truth.label,
        truth_image=truth_image,
        truth_crowd=truth.crowd,
        found_score=best_score(Verdict.TRUE_POSITIVE),
        confused_score=best_score(Verdict.CONFUSED),
        poor_score=best_score(Verdict.POORLY_PLACED),
    )


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Detection-truth pairs that overlap enough to matter, by detection rank and truth; truths are numbered by image.

    `overlap` is the IoU, or for a crowd the share of the detection that lies in it (M2).
    """

    detection: NDArray[np.int64]
    truth: NDArray[np.int64]
    overlap: NDArray[np.float64]
    own_class: NDArray[np.bool_]
    crowd: NDArray[np.bool_]

    def only(self, rows: NDArray[np.bool_]) -> "_Pairs":
        return _Pairs(*(getattr(self, field.name)[rows] for field in fields(self)))


def at_score_precision(threshold: float) -> np.float32:
    """A threshold as scores are stored, so that 0.7 takes in a score of 0.7. Raises ValueError if not a number."""
    if math.isnan(threshold):
        raise ValueError("threshold: not a number")
    return np.float32(threshold)


def check(truth: Truth, detections: DetectionColumns) -> None:
    """Refuses detections that do not belong to the truth; raises MismatchError as `match` says."""
    score, label, box, image_id = detections.score, detections.label, detections.box, detections.image_id
    if not (score.size == label.size == image_id.size and box.shape == (score.size, 4)):
        raise MismatchError(f"columns differ in length: {image_id.shape}, {box.shape}, {score.shape}, {label.shape}")
    differing = np.setxor1d(truth.images, detections.images)
    if differing.size:
        raise MismatchError(f"{differing.size} images are not in both truth and detections, such as {differing[0]}")
    if not np.isin(image_id, truth.images).all():
        raise MismatchError("a detection lies in an image that is not of the test set")
    if label.size and (label.min() < 0 or label.max() >= len(truth.classes)):
        raise MismatchError(f"a label is not in 0 … {len(truth.classes) - 1}")
    if not (np.isfinite(score).all() and np.isfinite(box).all()):
        raise MismatchError("a score or a box is not finite")
    if (box[:, 2:] < box[:, :2]).any():
        raise MismatchError("a box ends before it begins")


def places(images: NDArray[np.int64], image_id: NDArray[np.int64]) -> NDArray[np.int32]:
    """Where each id stands among `images`, which ascend and hold them all."""
    if not images.size:
        return np.empty(0, np.int32)
    span = int(images[-1] - images[0]) + 1
    if span > DENSE * images.size:
        return np.searchsorted(images, image_id).astype(np.int32)
    # Ids that are nearly consecutive are looked up in a table: no search, and linear.
    table = np.zeros(span, np.int32)
    table[images - images[0]] = np.arange(images.size, dtype=np.int32)
    found: NDArray[np.int32] = table[image_id - images[0]]
    return found


def _near_pairs(
    truth: Truth,
    detections: DetectionColumns,
    by_rank: NDArray[np.int64],
    by_image: NDArray[np.int64],
    image: NDArray[np.int32],
    truth_image: NDArray[np.int32],
) -> _Pairs:
    """All pairs of one image that overlap by POOR_IOU or more, computed PAIRS_AT_ONCE at a time.

    `image`: of the detections by rank, `truth_image`: of the truths as given; places among the images.
    """
    d_box, d_label = _corner_columns(detections.box[by_rank]), detections.label[by_rank]
    t_box, t_label, t_crowd = _corner_columns(truth.box[by_image]), truth.label[by_image], truth.crowd[by_image]
    # To pycocotools a box is a corner and a size, and ends at their sum (M2). A limit may be met exactly, so every bit
    # counts.
    d_box[2:] -= d_box[:2]
    d_area, t_area = d_box[2] * d_box[3], truth.box_size[by_image].prod(axis=1)
    d_box[2:] += d_box[:2]
    truths = np.bincount(truth_image, minlength=truth.images.size)
    first, count = (np.cumsum(truths) - truths)[image], truths[image]
    ends = np.cumsum(count)
    parts = []
    start = 0
    while start < count.size:
        done = int(ends[start - 1]) if start else 0
        # At least one detection, even where its image alone has more truths than that.
        stop = max(int(np.searchsorted(ends, done + PAIRS_AT_ONCE, "right")), start + 1)
        d = np.repeat(np.arange(start, stop), count[start:stop])
        place_of_first = ends[start:stop] - count[start:stop] - done
        t = np.arange(d.size) + np.repeat(first[start:stop] - place_of_first, count[start:stop])
        # Most pairs of an image lie apart; the rest is computed of those that do not.
        left, top, right, bottom = (
            better(d_column[d], t_column[t])
            for better, d_column, t_column in zip(_SHARED_CORNERS, d_box, t_box, strict=True)
        )
        width, height = right - left, bottom - top
        shared = width * height
        touching = (width > 0) & (height > 0) & (shared > 0)
        d, t = d[touching], t[touching]
        overlap = _overlap(shared[touching], d_area[d], t_area[t], t_crowd[t])
        parts.append(_Pairs(d, t, overlap, d_label[d] == t_label[t], t_crowd[t]).only(overlap >= POOR_IOU))
        start = stop
    if not parts:
        nothing = np.empty(0, np.int64)
        return _Pairs(nothing, nothing, np.empty(0), np.empty(0, np.bool_), np.empty(0, np.bool_))
    return _Pairs(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Pairs)))


_SHARED_CORNERS = (np.maximum, np.maximum, np.minimum, np.minimum)
"""Of left, top, right and bottom of two boxes: those of what they share."""


def _corner_columns(box: NDArray[np.floating]) -> NDArray[np.float64]:
    """Boxes [n, 4] as four contiguous columns [4, n]."""
    return np.ascontiguousarray(box.T, np.float64)


def _overlap(
    shared: NDArray[np.float64],
    d_area: NDArray[np.float64],
    t_area: NDArray[np.float64],
    crowd: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """IoU pairwise, of a positive area that is shared; against a crowd, the share of the detection's area (M2)."""
    overlap: NDArray[np.float64] = shared / np.where(crowd, d_area, d_area + t_area - shared)
    return overlap


def _verdicts(pairs: _Pairs, detections: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """Verdict, named truth and its IoU of each detection, by rank; later assignments take precedence (M6)."""
    verdict = np.full(detections, Verdict.FALSE_POSITIVE, np.uint8)
    named = np.full(detections, NONE, np.int64)
    iou = np.zeros(detections, np.float32)

    own, own_iou = _best(pairs.only(pairs.own_class & ~pairs.crowd), detections)
    other, other_iou = _best(pairs.only(~pairs.own_class & ~pairs.crowd), detections)
    poorly = (own_iou >= POOR_IOU) & (own_iou < MATCH_IOU)
    duplicate = own_iou >= MATCH_IOU
    verdict[poorly] = Verdict.POORLY_PLACED
    named[poorly | duplicate], iou[poorly | duplicate] = own[poorly | duplicate], own_iou[poorly | duplicate]
    confused = (other_iou >= MATCH_IOU) & (other_iou > own_iou)
    verdict[confused], named[confused], iou[confused] = Verdict.CONFUSED, other[confused], other_iou[confused]

    near = pairs.only(pairs.own_class & (pairs.overlap >= MATCH_IOU))
    ignored = near.detection[near.crowd]
    verdict[ignored], named[ignored], iou[ignored] = Verdict.IGNORED, NONE, 0
    found = _greedy(near.only(~near.crowd))
    hit = found.detection
    verdict[hit], named[hit], iou[hit] = Verdict.TRUE_POSITIVE, found.truth, found.overlap
    return verdict, named, iou


def _best(pairs: _Pairs, detections: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The truth of highest overlap for each detection, of equals the last, and that overlap; NONE and 0 without."""
    truth, overlap = np.full(detections, NONE, np.int64), np.zeros(detections)
    if not pairs.detection.size:
        return truth, overlap
    # Pairs are by detection and then by truth, so the best of each detection is found without sorting them.
    begins, lengths = _groups(pairs.detection)
    highest = np.maximum.reduceat(pairs.overlap, begins)
    best = pairs.overlap == np.repeat(highest, lengths)
    # Of repeated indices numpy keeps the last assignment: the last truth.
    truth[pairs.detection[best]] = pairs.truth[best]
    overlap[pairs.detection[best]] = pairs.overlap[best]
    return truth, overlap


def _greedy(pairs: _Pairs) -> _Pairs:
    """Of candidate pairs those that greedy matching makes: by rank, each detection takes the best truth still free.

    Done for all images at once by deferred acceptance (Gale & Shapley 1962): each detection asks its best truth, a
    truth keeps the asker of lowest rank, who is turned away asks its next. Where all truths rank the askers alike, the
    only stable outcome is the one of serving them in that order, which is greedy matching. Rounds: as many as the
    longest chain of detections that displace each other, a handful in practice, at most one per pair.
    """
    # asks[a] is the place of the pair for which asker a asks, in the order of its wishes; askers are numbered by rank.
    asks, wishes = _groups(pairs.detection)
    ends = asks + wishes
    order = np.arange(pairs.detection.size)
    # Pairs are by detection, and most detections have one alone.
    several = np.flatnonzero(np.repeat(wishes > 1, wishes))
    order[several] = several[np.lexsort((-pairs.truth[several], -pairs.overlap[several], pairs.detection[several]))]
    truth = pairs.truth[order]
    nobody = ends.size
    kept = np.full(int(truth.max(initial=-1)) + 1, nobody)
    asking = np.arange(ends.size)
    while asking.size:
        asked = truth[asks[asking]]
        before = kept[asked]
        np.minimum.at(kept, asked, asking)
        after = kept[asked]
        displaced = np.unique(before[(before != nobody) & (after != before)])
        turned_away = np.concatenate([asking[after != asking], displaced])
        asks[turned_away] += 1
        asking = turned_away[asks[turned_away] < ends[turned_away]]
    rows = np.zeros(order.size, np.bool_)
    rows[order[asks[kept[kept != nobody]]]] = True
    return pairs.only(rows)


def _groups(numbers: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each run of equal numbers begins, and how long it is."""
    begins = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: numbers.size])
    return begins, np.diff(begins, append=numbers.size)


def _beyond_cap(image: NDArray[np.int32], label: NDArray[np.int32], by_rank: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`by_rank`: rows by image and falling score, so that within an image only the class is left to sort by."""
    order = by_rank[np.lexsort((*ascending(label[by_rank]), *ascending(image[by_rank])))]
    group_image, group_label = image[order], label[order]
    begins = np.ones(order.size, np.bool_)
    begins[1:] = (group_image[1:] != group_image[:-1]) | (group_label[1:] != group_label[:-1])
    place = np.arange(order.size)
    place -= np.maximum.accumulate(np.where(begins, place, 0))
    beyond = np.empty(order.size, np.bool_)
    beyond[order] = place >= COCO_MAX_DETECTIONS
    return beyond
