"""Splits train, validation and test: the source's own where it has them, else stratified by class.

Where a source has no split, images are shared 70 : 15 : 15. Where it has one without validation or without test, what
is missing is taken from its train images, in the same proportion to what stays (15 of 85); where both are missing,
the train images are shared as if there were no split. A source without any train image is treated as one without a
split. Images without a split beside others that have one count as train.

Method: iterative stratification (Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, 2011), the
class with the fewest open images first; images with nothing on them are a class of their own, and unlabelled ones are
another. Two additions: a class with at least MIN_IMAGES_TO_SPREAD images wants one in every split, and a last pass
moves an image where one is still missing, unless that took it from another class. Ties are broken by a hash of seed and
image, so the result depends on the seed and on the images, not on their order.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

# From this many images on, a class (and the whole set) is to appear in each of the three splits.
MIN_IMAGES_TO_SPREAD = 3


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


SHARES: Mapping[Split, float] = {Split.TRAIN: 0.70, Split.VALIDATION: 0.15, Split.TEST: 0.15}

# Pseudo-classes: of images without a label, of every image, and of those of which labels say that nothing is on them.
_UNLABELLED = -1
_ANY = -2
EMPTY = -3


@dataclass(frozen=True, slots=True)
class SplitImage:
    """`key` identifies the image (its hash); `classes` are those of its labels, or EMPTY; `split` is the source's, if
    any."""

    key: str
    classes: frozenset[int]
    split: Split | None = None


def assign_splits(images: Sequence[SplitImage], seed: int) -> list[Split]:
    """The split of each image, in the order given. Keys are unique."""
    own = {image.split for image in images}
    if own == {None} or own.isdisjoint({Split.TRAIN, None}):
        return stratify(images, SHARES, seed)
    missing = [split for split in (Split.VALIDATION, Split.TEST) if split not in own]
    result = [image.split or Split.TRAIN for image in images]
    if missing:
        rows = [row for row, split in enumerate(result) if split is Split.TRAIN]
        shares = {split: SHARES[split] for split in (Split.TRAIN, *missing)}
        for row, split in zip(rows, stratify([images[row] for row in rows], shares, seed), strict=True):
            result[row] = split
    return result


def stratify(images: Sequence[SplitImage], shares: Mapping[Split, float], seed: int) -> list[Split]:
    """Shares images out, stratified by class; `shares` need not add up to 1. Keys are unique."""
    # Few sets of classes are common to many images, and each would take more memory than the rest of its image.
    labels_of = {image.classes: frozenset({*(image.classes or {_UNLABELLED}), _ANY}) for image in images}
    labels = [labels_of[image.classes] for image in images]
    order = sorted(range(len(images)), key=lambda row: _hash(seed, images[row].key))
    members: dict[int, list[int]] = defaultdict(list)
    for row in order:
        for label in labels[row]:
            members[label].append(row)
    wanted = {label: _wanted(len(rows), shares) for label, rows in members.items()}
    open_images = {label: len(rows) for label, rows in members.items()}
    result: list[Split | None] = [None] * len(images)
    while open_images:
        rarest = min(open_images, key=lambda label: (open_images[label], label))
        for row in members[rarest]:
            if result[row] is not None:
                continue
            split = max(shares, key=lambda s: (wanted[rarest][s], wanted[_ANY][s], shares[s]))
            result[row] = split
            for label in labels[row]:
                wanted[label][split] -= 1
                open_images[label] -= 1
        open_images = {label: count for label, count in open_images.items() if count}
    shared = [split for split in result if split is not None]
    _spread(shared, labels, members, list(shares))
    return shared


def _hash(seed: int, key: str) -> bytes:
    # The beginning is enough to put them in an order.
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]


def _wanted(count: int, shares: Mapping[Split, float]) -> dict[Split, float]:
    total = sum(shares.values())
    least = 1.0 if count >= MIN_IMAGES_TO_SPREAD else 0.0
    wanted = {split: max(count * share / total, least) for split, share in shares.items()}
    # Train gives what the others were rounded up by.
    wanted[Split.TRAIN] = count - sum(number for split, number in wanted.items() if split is not Split.TRAIN)
    return wanted


def _spread(
    result: list[Split],
    labels: Sequence[frozenset[int]],
    members: Mapping[int, Sequence[int]],
    splits: Sequence[Split],
) -> None:
    """Moves an image to where a class of at least MIN_IMAGES_TO_SPREAD images has none, if no such class loses its last
    image of a split by that."""
    spread = {label for label, rows in members.items() if len(rows) >= MIN_IMAGES_TO_SPREAD}
    counts = {label: dict.fromkeys(splits, 0) for label in spread}
    for row, split in enumerate(result):
        for label in labels[row] & spread:
            counts[label][split] += 1
    order = sorted(spread, key=lambda label: (len(members[label]), label))
    # A move may make the next one possible; each fills a gap and leaves none, so they come to an end.
    while any(_move(result, labels, members, counts, label, split) for label in order for split in splits):
        continue


def _move(
    result: list[Split],
    labels: Sequence[frozenset[int]],
    members: Mapping[int, Sequence[int]],
    counts: Mapping[int, dict[Split, int]],
    label: int,
    split: Split,
) -> bool:
    """Fills a split that has no image of a class, if one can be moved there. Whether it did."""
    if counts[label][split]:
        return False
    for row in members[label]:
        source, others = result[row], labels[row] & counts.keys()
        if all(counts[other][source] > 1 for other in others):
            for other in others:
                counts[other][source] -= 1
                counts[other][split] += 1
            result[row] = split
            return True
    return False
