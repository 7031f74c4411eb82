"""Images of versions and drafts, and how a draft's labels may change; no I/O."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from saucer.dataset.boxes import DECIMALS, clip
from saucer.dataset.domain import DatasetVersion, LabelKind
from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError

# Of one account at once; one more is RESOURCE_EXHAUSTED.
MAX_OPEN_DRAFTS = 20
# Of one draft, as of an import; one more is RESOURCE_EXHAUSTED.
MAX_CLASSES = 1_000
MAX_CLASS_NAME_CHARS = 100

# A JSON array: [class] for a whole image, or [class, x, y, width, height, crowd], pixels, crowd 0 or 1; class is the
# place among the classes of the version or draft.
StoredLabel = Sequence[float]


@dataclass(frozen=True)
class ListedImage:
    """One image of a version or draft; `place` counts from 1 in the order of the manifest.

    `areas` are of labels whose area is not their box's: the label with the area behind it. Some may be of labels that
    the image no longer has.
    """

    place: int
    sha256: str
    width: int
    height: int
    split: str
    source_name: str
    labels: Sequence[StoredLabel]
    areas: Sequence[Sequence[float]]
    labelled: bool
    revision: int

    @property
    def empty(self) -> bool:
        """Whether somebody said that nothing is on it."""
        return self.labelled and not self.labels

    @property
    def measured_labels(self) -> list[tuple[StoredLabel, float | None]]:
        """Each label with its area in square pixels; None: its box's."""
        area_of = {tuple(label): area for *label, area in self.areas}
        return [(label, area_of.get(tuple(label))) for label in self.labels]


@dataclass(frozen=True)
class LabelledBox:
    """Corners in pixels of the upright picture."""

    class_name: str
    x1: float
    y1: float
    x2: float
    y2: float
    crowd: bool


@dataclass(frozen=True)
class ImageSet:
    """A version or a draft: what its images' labels mean, and whose they are."""

    set_id: str
    account_id: str
    label_kind: LabelKind
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A version that is being labelled. An image that is unlabelled in the version is so until somebody saves it, with
    a label or without."""

    draft_id: str
    account_id: str
    dataset_version_id: str
    display_name: str
    label_kind: LabelKind
    classes: tuple[str, ...]
    images: int
    unlabelled_images: int
    # OPEN or DELETED.
    state: str
    created_at: datetime
    revision: int

    @property
    def image_set(self) -> ImageSet:
        """What its images belong to."""
        return ImageSet(self.draft_id, self.account_id, self.label_kind, self.classes)


def set_of(version: DatasetVersion) -> ImageSet:
    """What its images belong to."""
    return ImageSet(version.dataset_version_id, version.account_id, version.label_kind, version.classes)


def begun(
    draft_id: str,
    version: DatasetVersion,
    display_name: str,
    label_kind: LabelKind | None,
    classes: Sequence[str],
    now: datetime,
) -> Draft:
    """A draft of a version. A whole image without a class is unlabelled, though the version says that no object is on
    it.

    Raises:
        InvalidArgumentError: LABEL_KIND_DIFFERS, or as with_classes() does. ResourceExhaustedError.
    """
    total = version.statistics["total"]
    has_labels = total["crowd_boxes"] or any(row["images"] for row in total["classes"])
    if has_labels and label_kind not in (None, version.label_kind):
        raise InvalidArgumentError(
            "LABEL_KIND_DIFFERS", f"label_kind: the version has labels, and their kind is {version.label_kind}."
        )
    kind = label_kind or version.label_kind
    all_unlabelled = kind is LabelKind.CLASSES and not has_labels
    draft = Draft(
        draft_id=draft_id,
        account_id=version.account_id,
        dataset_version_id=version.dataset_version_id,
        display_name=display_name,
        label_kind=kind,
        classes=version.classes,
        images=total["images"],
        unlabelled_images=total["images"] if all_unlabelled else total["unlabelled_images"],
        state="OPEN",
        created_at=now,
        revision=1,
    )
    return with_classes(draft, classes)


def with_classes(draft: Draft, names: Sequence[str]) -> Draft:
    """With those classes besides; ones that it has change nothing.

    Raises:
        InvalidArgumentError: CLASS_NAME_INVALID. ResourceExhaustedError: TOO_MANY_CLASSES.
    """
    for name in names:
        if not 0 < len(name) <= MAX_CLASS_NAME_CHARS or not name.isprintable() or name != name.strip():
            raise InvalidArgumentError(
                "CLASS_NAME_INVALID",
                f"classes: printable texts of 1 to {MAX_CLASS_NAME_CHARS} characters, without space around them.",
            )
    classes = tuple(dict.fromkeys([*draft.classes, *names]))
    if len(classes) > MAX_CLASSES:
        raise ResourceExhaustedError("TOO_MANY_CLASSES", f"A draft has at most {MAX_CLASSES} classes.")
    return replace(draft, classes=classes)


def labelled(
    draft: Draft, image: ListedImage, boxes: Sequence[LabelledBox], class_name: str, revision: int
) -> ListedImage:
    """The image with these labels in the place of those it had; without any, there is nothing on it.

    Boxes are cut at the image's edge and rounded to a thousandth of a pixel. The same call again, since its answer was
    lost, gets the image as it stands.

    Args:
        revision: of the image as the caller saw it.

    Raises:
        FailedPreconditionError: IMAGE_CHANGED with the present revision.
        InvalidArgumentError: UNKNOWN_CLASS, LABEL_KIND_DIFFERS, BOX_NOT_FINITE, BOX_NO_AREA, BOX_OUTSIDE,
            DUPLICATE_BOX.
    """
    if (draft.label_kind is LabelKind.CLASSES and boxes) or (draft.label_kind is LabelKind.BOXES and class_name):
        raise InvalidArgumentError("LABEL_KIND_DIFFERS", f"The draft's labels are {draft.label_kind}.")
    labels: Sequence[StoredLabel]
    if draft.label_kind is LabelKind.CLASSES:
        labels = [[_class(draft, class_name)]] if class_name else []
    else:
        labels = _fitted(draft, image, boxes)
    saved = replace(image, labels=labels, labelled=True, revision=revision + 1)
    if revision != image.revision and saved != image:
        raise FailedPreconditionError(
            "IMAGE_CHANGED", "Somebody else has saved this image; read it again.", revision=image.revision
        )
    return saved


def _fitted(draft: Draft, image: ListedImage, boxes: Sequence[LabelledBox]) -> list[StoredLabel]:
    xywh = np.array([[box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1] for box in boxes]).reshape(-1, 4)
    count = len(boxes)
    clipped = clip(xywh, np.full(count, image.width), np.full(count, image.height))
    for bad, reason, what in (
        (clipped.not_finite, "BOX_NOT_FINITE", "is not finite"),
        (clipped.no_area, "BOX_NO_AREA", "has no area"),
        (clipped.outside, "BOX_OUTSIDE", "lies outside the image"),
    ):
        if bad.any():
            raise InvalidArgumentError(reason, f"boxes[{int(bad.argmax())}] {what}.")
    labels: list[StoredLabel] = [
        [_class(draft, box.class_name), *fitted, int(box.crowd)]
        for box, fitted in zip(boxes, clipped.boxes.tolist(), strict=True)
    ]
    if len({tuple(label) for label in labels}) < len(labels):
        raise InvalidArgumentError("DUPLICATE_BOX", "boxes: one stands twice.")
    return labels


def _class(draft: Draft, class_name: str) -> int:
    try:
        return draft.classes.index(class_name)
    except ValueError:
        raise InvalidArgumentError(
            "UNKNOWN_CLASS", f"The draft has no class {class_name[:MAX_CLASS_NAME_CHARS]!r}; add it first."
        ) from None


def shown_box(classes: Sequence[str], label: StoredLabel) -> LabelledBox:
    """A stored box with corners."""
    number, x, y, width, height, crowd = label
    return LabelledBox(classes[int(number)], x, y, round(x + width, DECIMALS), round(y + height, DECIMALS), bool(crowd))


def export_name(image: ListedImage, *, name_is_shared: bool) -> str:
    """A relative path that no other image of the set has, as near as may be to the name that its owner knows."""
    parts = [re.sub(r"[^\w .()+@=,-]", "_", part) for part in image.source_name.split("/")]
    plain = "/".join(part for part in parts if part.strip(". "))
    if name_is_shared or not plain or plain != image.source_name:
        stem, dot, ending = (plain or image.sha256).rpartition(".")
        return f"{stem}-{image.sha256[:16]}.{ending}" if dot and stem else f"{plain}-{image.sha256[:16]}"
    return plain
