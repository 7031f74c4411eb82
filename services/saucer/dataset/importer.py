"""A folder of labelled images → the manifest of an immutable version, its statistics and a report of what was refused.

1. Find the label files and read all of them (formats.py): what is wrong with a whole label file ends the import before
   a single image is touched.
2. Join the classes of all files; check and hash image by image (images.py), handing each accepted one to the sink.
3. Check the boxes against the images (boxes.py), split (splits.py), count (statistics.py), write (manifest.py).

"First" among duplicates is one with annotations, for a copy that was left without must not cost the other's; then one
of which its labels say that nothing is on it; then by split (train, validation, test), file name and id: never by the
order in a file, so that the same folder makes the same version however its label file is sorted. Ids need to be unique
within a file only. Meant for a child process with limits on memory and time: a decoder that is attacked takes nothing
else with it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from saucer.dataset.annotations import REFUSED, AcceptedImages, check_annotations, label_kind
from saucer.dataset.archive import safe_parts
from saucer.dataset.domain import LabelKind, SourceFormat
from saucer.dataset.formats import Source, read_sources
from saucer.dataset.image_files import ImageFiles
from saucer.dataset.images import ImageFacts, ImageLimits, ImageRefusedError, check_image, read_image
from saucer.dataset.labels import ImageColumns, ImageEntry, LabelLimits, Labels
from saucer.dataset.layout import NotInFolderError
from saucer.dataset.listing import write_listing
from saucer.dataset.manifest import ManifestHashes, ManifestImage, write_manifest
from saucer.dataset.report import ImportReason, ImportRefusedError, ItemKind, ItemReason, Report, printable
from saucer.dataset.seen import Seen, number_of_hash, number_of_text
from saucer.dataset.splits import EMPTY, Split, SplitImage, assign_splits
from saucer.dataset.statistics import Columns, Statistics, describe

SHA256_BYTES = 32

Number = TypeVar("Number", bound=np.generic)

# How much the labels say of an image; of copies, the one of which they say most is first.
_HAS_ANNOTATIONS, _EMPTY, _UNLABELLED = _KNOWLEDGE = range(3)


class ImageSink(Protocol):
    """Hears of an accepted image: its SHA-256 (hex), and its path below the source folder. Called once for each hash;
    what it raises ends the import."""

    def __call__(self, sha256: str, path: Sequence[str], /) -> None: ...


@dataclass(frozen=True)
class ImportLimits:
    labels: LabelLimits = field(default_factory=LabelLimits)
    images: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True)
class ImportResult:
    """`content_hash` is over images, labels, classes and split; `manifest_sha256` over the manifest's bytes."""

    manifest_path: Path
    manifest_sha256: str
    content_hash: str
    source_format: SourceFormat
    label_kind: LabelKind
    class_names: tuple[str, ...]
    statistics: Statistics
    report: Report


class _Accepted:
    """Accepted images, by their places: columns of machine numbers, since there may be many."""

    def __init__(self) -> None:
        self.source_name: list[str] = []
        self.split: list[Split | None] = []
        self.width, self.height = array("q"), array("q")
        # The EXIF orientation by which the image's boxes have to be turned, 0 for none.
        self.turned = array("b")
        # Its labels say that nothing is on it.
        self.empty = array("b")
        self._sha256 = bytearray()

    def add(self, facts: ImageFacts, split: Split | None, source_name: str, turned: int, *, empty: bool) -> None:
        """One more."""
        self.source_name.append(source_name)
        self.split.append(split)
        self.width.append(facts.width)
        self.height.append(facts.height)
        self.turned.append(turned)
        self.empty.append(empty)
        self._sha256 += bytes.fromhex(facts.sha256)

    def __len__(self) -> int:
        return len(self.source_name)

    def sha256(self, place: int) -> str:
        """In hex."""
        return self._sha256[SHA256_BYTES * place : SHA256_BYTES * (place + 1)].hex()

    def name_of(self, sha256: str) -> str:
        """Of the image that has this hash."""
        words = np.frombuffer(self._sha256, dtype=">u8")[:: SHA256_BYTES // 8]
        return self.source_name[int(np.argmax(words == number_of_hash(sha256)))]

    def by_hash(self) -> NDArray[np.int64]:
        """Places by hash: int64 [n]."""
        words = np.frombuffer(self._sha256, dtype=">u8").reshape(-1, SHA256_BYTES // 8)
        return np.asarray(np.lexsort(words.T[::-1]), dtype=np.int64)


def import_folder(
    folder: Path,
    *,
    sink: ImageSink,
    progress: Callable[[int, int], None],
    manifest_path: Path,
    listing_path: Path,
    seed: int,
    source_format: SourceFormat = SourceFormat.AUTO,
    limits: ImportLimits | None = None,
) -> ImportResult:
    """Imports a data set from a local folder.

    Args:
        folder: read only; links in it are not followed.
        sink: hears of each accepted image, in no stated order, before the import is known to succeed.
        progress: called with images done and images in all, for each image.
        manifest_path, listing_path: where the manifest and the rows of its images (listing.py) are written; absent
            after an error.
        seed: of the split, where the source has none (splits.py).
        source_format: AUTO recognises it (formats.py).

    Raises:
        ImportRefusedError: the input as a whole is refused; `report` is set where it got as far as the images.
        OSError: the disk, not the input, failed.
    """
    bounds = limits or ImportLimits()
    report = Report()
    found = read_sources(folder, source_format, bounds.labels, report)
    sources = found.sources
    class_names, class_of_id = _join_categories(sources, report)
    stored = found.source_format is SourceFormat.DRAFT
    above = found.folder.relative_to(folder).parts
    accepted = _accept_images(
        found.folder,
        sources,
        lambda sha256, path: sink(sha256, (*above, *path)),
        progress,
        bounds.images,
        report,
        stored=stored,
    )
    if not accepted:
        raise ImportRefusedError(
            ImportReason.NO_USABLE_IMAGE, "Not one image could be imported; the report says why.", report
        )
    order = accepted.by_hash()
    columns = _columns(accepted, order, sources, class_of_id, report)
    source_kind = found.source_format
    # The labels as read are in the columns now, and take as much memory again.
    del found, sources
    splits = _assign_splits(accepted, order, columns, seed)
    hashes = _write(
        manifest_path,
        listing_path,
        class_names,
        lambda: _manifest_images(accepted, order, splits, columns.empty),
        columns,
    )
    statistics = describe(columns, splits, class_names)
    return ImportResult(
        manifest_path, hashes.file, hashes.content, source_kind, columns.kind, class_names, statistics, report
    )


def _join_categories(sources: Sequence[Source], report: Report) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names in order of category id, and the new id (place in them) of each old one.

    A name that stands under two ids is refused where both have annotations. Where at most one has, the others are left
    out: Roboflow adds an empty class that may be called like a real one.
    """
    name_of: dict[int, str] = {}
    for source in sources:
        seen: set[int] = set()
        for category in source.labels.categories:
            if name_of.setdefault(category.id, category.name) != category.name:
                raise _duplicate_category(
                    f"Category id {category.id} means both '{name_of[category.id]}' and '{category.name}'."
                )
            if category.id in seen:
                report.refuse(
                    ItemKind.CATEGORY, ItemReason.DUPLICATE_CATEGORY, category.name, f"Id {category.id} stands twice."
                )
            seen.add(category.id)
    used = {
        int(number) for source in sources for number in np.unique(np.asarray(source.labels.annotations.category_id))
    }
    ids_of: dict[str, list[int]] = {}
    for number in sorted(name_of):
        ids_of.setdefault(name_of[number], []).append(number)
    chosen = []
    for name, ids in ids_of.items():
        with_boxes = [number for number in ids if number in used]
        if len(with_boxes) > 1:
            raise _duplicate_category(f"The category '{name}' has boxes under two ids, {ids[0]} and {ids[1]}.")
        kept = (with_boxes or ids)[0]
        chosen.append(kept)
        for number in ids:
            if number != kept:
                report.refuse(
                    ItemKind.CATEGORY,
                    ItemReason.DUPLICATE_CATEGORY,
                    name,
                    f"Id {number} has the name of id {kept} and no box.",
                )
    chosen.sort()
    return tuple(name_of[number] for number in chosen), {number: place for place, number in enumerate(chosen)}


def _duplicate_category(sentence: str) -> ImportRefusedError:
    return ImportRefusedError(ImportReason.DUPLICATE_CATEGORY, sentence)


def _accept_images(
    folder: Path,
    sources: Sequence[Source],
    sink: ImageSink,
    progress: Callable[[int, int], None],
    limits: ImageLimits,
    report: Report,
    *,
    stored: bool,
) -> _Accepted:
    """`stored`: images are no files here, but stored already under the hashes that are their names."""
    total = sum(len(source.labels.images) for source in sources)
    accepted = _Accepted()
    pictures = Seen()
    files = ImageFiles(folder)
    for source in sources:
        for number in source.labels.malformed_image_ids:
            source.places.add(number, REFUSED)
    for done, (source, names, row, known, repeated) in enumerate(_in_order(sources), 1):
        entry = source.labels.images[row]
        path: tuple[str, ...] = ()
        place = REFUSED
        try:
            if repeated:
                raise _ItemRefusedError(ItemReason.DUPLICATE_IMAGE, f"Image id {entry.id} stands twice.")
            parts = _checked_name(entry, names)
            if stored:
                facts = _stored_facts(entry)
            else:
                file, path = files.open(source.file, parts)
                with file:
                    data = read_image(file, limits)
                facts = check_image(data, limits)
            orientation = _labelled_orientation(entry, facts)
            if not pictures.add(number_of_hash(facts.sha256)):
                raise _ItemRefusedError(
                    ItemReason.DUPLICATE_IMAGE, f"The same picture as {accepted.name_of(facts.sha256)}."
                )
        except (_ItemRefusedError, NotInFolderError, ImageRefusedError) as refusal:
            report.refuse(ItemKind.IMAGE, refusal.reason, entry.file_name, refusal.sentence)
        else:
            if not stored:
                sink(facts.sha256, path)
            place = len(accepted)
            report.turned_images += bool(orientation)
            source_name = printable(entry.source_name or entry.file_name)
            split = entry.split or source.file.split
            accepted.add(facts, split, source_name, orientation, empty=known == _EMPTY)
        if not repeated:
            source.places.add(entry.id, place)
        progress(done, total)
    for source in sources:
        # What is accepted of them is in `accepted`.
        source.labels.images = ImageColumns()
    return accepted


def _in_order(sources: Sequence[Source]) -> Iterator[tuple[Source, Seen, int, int, bool]]:
    """Source of each image, the names met in that, its row, what is known of it, and whether its id stood before: first
    those of which most is known."""
    names = [Seen() for _ in sources]
    for known in _KNOWLEDGE:
        for source, own_names in zip(sources, names, strict=True):
            for row, repeated in _rows(source.labels, known):
                yield source, own_names, row, known, repeated


def _rows(labels: Labels, known: int) -> Iterator[tuple[int, bool]]:
    """Of the images of which just so much is known."""
    order = labels.images.order()
    ids = np.asarray(labels.images.id)[order]
    misread = np.isin(ids, np.asarray(labels.misread_image_ids))
    empty = (np.asarray(labels.images.empty)[order] > 0) & ~misread
    annotated = np.isin(ids, np.asarray(labels.annotations.image_id))
    wanted = np.where(annotated, _HAS_ANNOTATIONS, np.where(empty, _EMPTY, _UNLABELLED)) == known
    return zip(order[wanted].tolist(), _repeated(ids)[wanted].tolist(), strict=True)


def _repeated(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of them stood before."""
    repeated = np.ones(len(values), dtype=np.bool_)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def _stored_facts(entry: ImageEntry) -> ImageFacts:
    assert entry.width is not None
    assert entry.height is not None
    return ImageFacts(entry.file_name, entry.width, entry.height, turned=None)


class _ItemRefusedError(Exception):
    def __init__(self, reason: ItemReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


def _checked_name(entry: ImageEntry, names: Seen) -> list[str]:
    parts = safe_parts(entry.file_name)
    if parts is None:
        raise _ItemRefusedError(ItemReason.CLIMBING_PATH, "The file name leads out of the folder.")
    if not parts:
        raise _ItemRefusedError(ItemReason.MISSING_IMAGE, "The file name names no file.")
    if not names.add(number_of_text("/".join(parts))):
        raise _ItemRefusedError(ItemReason.DUPLICATE_IMAGE, "The file name stands twice.")
    return parts


def _labelled_orientation(entry: ImageEntry, facts: ImageFacts) -> int:
    """The EXIF orientation by which boxes have to be turned; 0 where the labels are for the upright picture.

    Labels are for the upright picture unless their stated size is that of the stored array and the picture is shown
    turned. A square picture cannot tell, so upright it is.
    """
    stated = (
        facts.width if entry.width is None else entry.width,
        facts.height if entry.height is None else entry.height,
    )
    if stated == (facts.width, facts.height):
        return 0
    if facts.turned is not None and stated == (facts.height, facts.width):
        return facts.turned
    raise _ItemRefusedError(
        ItemReason.SIZE_MISMATCH,
        f"The label file states {stated[0]} × {stated[1]} pixels, the image has {facts.width} × {facts.height}.",
    )


def _columns(
    accepted: _Accepted,
    order: NDArray[np.int64],
    sources: Sequence[Source],
    class_of_id: dict[int, int],
    report: Report,
) -> Columns:
    """The accepted boxes of all sources; images in `order`, boxes by image, class and place."""
    images = AcceptedImages(
        width=np.asarray(accepted.width),
        height=np.asarray(accepted.height),
        turned=np.array(accepted.turned, dtype=np.int64),
    )
    kind = label_kind([source.labels for source in sources])
    checked = [
        check_annotations(source.labels, str(source.file.path), kind, source.places, class_of_id, images, report)
        for source in sources
    ]
    row_of_place = np.empty(len(order), dtype=np.int64)
    row_of_place[order] = np.arange(len(order))
    image = row_of_place[_joined([part.place for part in checked])]
    category = _joined([part.category for part in checked])
    crowd = _joined([part.crowd for part in checked])
    box = _joined([part.box for part in checked])
    area = _joined([part.area for part in checked])
    del checked
    rows = np.lexsort((crowd, *box.T[::-1], category, image))
    # One by one, so that only one of them lies in memory twice.
    image = image[rows]
    category = category[rows]
    crowd = crowd[rows]
    box = box[rows]
    area = area[rows]
    return Columns(
        kind=kind,
        width=images.width[order],
        height=images.height[order],
        # A whole image always shows something: without a class it is unlabelled.
        empty=(np.asarray(accepted.empty)[order] > 0) & (kind is LabelKind.BOXES),
        image=image,
        category=category,
        box=box,
        area=area,
        crowd=crowd,
    )


def _joined(parts: Sequence[NDArray[Number]]) -> NDArray[Number]:
    """Of several one behind the other; of one itself, since its copy would be the most memory that an import takes."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _assign_splits(accepted: _Accepted, order: NDArray[np.int64], columns: Columns, seed: int) -> list[Split]:
    """Of the images in `order`, which is the columns' too."""
    first = np.searchsorted(columns.image, np.arange(len(order) + 1))
    # A set is kept once, however many images have it.
    known: dict[frozenset[int], frozenset[int]] = {}
    classes = []
    for row in range(len(order)):
        labels = columns.category[first[row] : first[row + 1]].tolist()
        own = frozenset([EMPTY] if columns.empty[row] else labels)
        classes.append(known.setdefault(own, own))
    return assign_splits(_SplitImages(accepted, order, classes), seed)


@dataclass(frozen=True)
class _SplitImages(Sequence[SplitImage]):
    """Made when they are asked for: as a list they would be the greatest part of an import's memory."""

    accepted: _Accepted
    order: NDArray[np.int64]
    classes: Sequence[frozenset[int]]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: Any) -> Any:
        place = int(self.order[row])
        return SplitImage(self.accepted.sha256(place), self.classes[row], self.accepted.split[place])


def _manifest_images(
    accepted: _Accepted, order: NDArray[np.int64], splits: Sequence[Split], empty: NDArray[np.bool_]
) -> Iterator[ManifestImage]:
    """`order`, `splits` and `empty` are in the manifest's order."""
    for place, split, is_empty in zip(map(int, order), splits, empty.tolist(), strict=True):
        yield ManifestImage(
            accepted.sha256(place),
            accepted.width[place],
            accepted.height[place],
            split,
            accepted.source_name[place],
            is_empty,
        )


def _write(
    path: Path,
    listing: Path,
    class_names: Sequence[str],
    images: Callable[[], Iterator[ManifestImage]],
    columns: Columns,
) -> ManifestHashes:
    try:
        write_listing(listing, images(), columns)
        return write_manifest(path, class_names, images(), columns)
    except BaseException:
        path.unlink(missing_ok=True)
        listing.unlink(missing_ok=True)
        raise
