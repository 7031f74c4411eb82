"""Two evaluations of the same test split side by side: what got better and what got worse (M14)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np

from saucer.evaluation.metrics import Counts
from saucer.evaluation.stored import LabelledSet, Loaded
from saucer.evaluation.truth import Truth

NAMED_CLASSES = 5
"""Of those that only one test set has."""
_OF_IMAGES = ("images", "width", "height")
# Sizes are left to the corners: test sets that were stored without sizes have them from there, rounded.
_OF_LABELS = tuple(field.name for field in fields(Truth) if field.name not in {"classes", "box_size", *_OF_IMAGES})


class Change(StrEnum):
    """From the base to the other: fewer errors are better."""

    BETTER = "BETTER"
    WORSE = "WORSE"
    SAME = "SAME"


@dataclass(frozen=True)
class ImageChange:
    """Errors of an image, before and after."""

    image_id: int
    file_name: str
    base_errors: int
    errors: int


@dataclass(frozen=True)
class Comparison:
    """`classes` in their order; `images`: how many of each change; `page`: some of those asked for, of `total`."""

    classes: tuple[Change, ...]
    images: dict[Change, int]
    page: tuple[ImageChange, ...]
    total: int


def difference(one: LabelledSet, other: LabelledSet) -> str | None:
    """What differs of two test sets, `class names (mug)`, `images` or `labels`, the first that does.

    None: their figures compare.
    """
    if one.truth.classes != other.truth.classes:
        named = sorted(set(one.truth.classes) ^ set(other.truth.classes)) or ["in another order"]
        more = ", …" if len(named) > NAMED_CLASSES else ""
        return f"class names ({', '.join(named[:NAMED_CLASSES])}{more})"
    if one.object_names != other.object_names or not _equal(one.truth, other.truth, _OF_IMAGES):
        return "images"
    return None if _equal(one.truth, other.truth, _OF_LABELS) else "labels"


def _equal(one: Truth, other: Truth, columns: Sequence[str]) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)


def compare(
    base: Loaded, other: Loaded, threshold: float, change: Change | None, *, offset: int, limit: int
) -> Comparison:
    """Images that changed, or only those that changed so, the greatest changes first and then by image id.

    Both must be of the same test set. Raises ValueError for a threshold that is not a number.
    """
    before, after = base.errors_by_image.at(threshold), other.errors_by_image.at(threshold)
    gain = before - after
    shown = {
        Change.BETTER: gain > 0,
        Change.WORSE: gain < 0,
        Change.SAME: gain == 0,
        None: gain != 0,
    }[change]
    places = np.flatnonzero(shown)
    places = places[np.argsort(-np.abs(gain[places]), kind="stable")]
    names = base.test_set.source_names
    return Comparison(
        classes=tuple(
            _change(_errors(counts) - _errors(new))
            for counts, new in zip(base.curves.per_class(threshold), other.curves.per_class(threshold), strict=True)
        ),
        images={
            Change.BETTER: int((gain > 0).sum()),
            Change.WORSE: int((gain < 0).sum()),
            Change.SAME: int((gain == 0).sum()),
        },
        page=tuple(
            ImageChange(int(base.truth.images[place]), names[place], int(before[place]), int(after[place]))
            for place in places[offset : offset + limit].tolist()
        ),
        total=places.size,
    )


def _errors(counts: Counts) -> int:
    return counts.false_positives + counts.false_negatives


def _change(gain: int) -> Change:
    return Change.BETTER if gain > 0 else Change.WORSE if gain < 0 else Change.SAME
