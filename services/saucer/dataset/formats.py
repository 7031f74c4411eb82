"""Which format a source folder has, and its labels.

Unless the caller names a format, the first that fits is taken: COCO where there is a .json file at the top or in
annotations/ (layout.py), Pascal VOC where there is any .xml file, YOLO where there are class names or text files of
images, class folders where images lie in at least two folders that may be classes, and else images without labels,
unless something that may be labels is beside them. Where VOC, YOLO or class folders fit, a .json file that has neither
images nor annotations is passed over: Label Studio puts a notes.json beside its YOLO.

No conversion library reads them: an import streams what may be large or mean harm within limits of memory, size and
depth, and reports each item that it refuses with its reason, which would have to be built around any library anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from saucer.dataset.annotations import Places
from saucer.dataset.class_folders import are_class_folders, read_class_folders, read_images
from saucer.dataset.coco import OtherJsonError, read_labels
from saucer.dataset.domain import SourceFormat
from saucer.dataset.draft_file import DRAFT_FILE, read_draft
from saucer.dataset.labels import LabelLimits, Labels
from saucer.dataset.layout import (
    MAX_WRAPPING_FOLDERS,
    LabelFile,
    Layout,
    NotInFolderError,
    find_layout,
    only_folder,
    open_below,
)
from saucer.dataset.pairing import files_below, images_among
from saucer.dataset.report import ImportReason, ImportRefusedError, Report, printable
from saucer.dataset.voc import is_voc, read_voc
from saucer.dataset.yolo import is_yolo, read_yolo

# Endings of labels that are not read, or not found where they should be.
_UNREAD_LABELS = (".json", ".jsonl", ".csv", ".tsv", ".tfrecord", ".parquet", ".mat")

# File names are paths from the top, so that is the one place to look for them.
_EVERYTHING = LabelFile(PurePosixPath("."), None, (PurePosixPath("."),))


@dataclass(frozen=True)
class Source:
    """Labels as read, of one file or of one for each image, and the place of each of its image ids among the accepted
    images."""

    file: LabelFile
    labels: Labels
    places: Places = field(default_factory=Places)


@dataclass(frozen=True)
class Found:
    """`folder` is the one against which file names are read."""

    source_format: SourceFormat
    folder: Path
    sources: tuple[Source, ...]


def read_sources(folder: Path, wanted: SourceFormat, limits: LabelLimits, report: Report) -> Found:
    """All labels of a folder; what is malformed goes to the report.

    Raises:
        ImportRefusedError: no_label_file, or what the format's own reader raises.
    """
    if wanted is SourceFormat.DRAFT:
        with (folder / DRAFT_FILE).open(encoding="utf-8") as file:
            return Found(wanted, folder, (Source(_EVERYTHING, read_draft(file, report)),))
    layout = find_layout(folder) if wanted in (SourceFormat.AUTO, SourceFormat.COCO) else None
    if layout is not None:
        try:
            return Found(SourceFormat.COCO, layout.folder, _read_coco(layout, limits, report))
        except OtherJsonError:
            others = files_below(_unwrapped(folder))
            if wanted is SourceFormat.COCO or len(layout.label_files) > 1 or _fitting(others) is None:
                raise
            report.forget_refused()
    if wanted is SourceFormat.COCO:
        raise ImportRefusedError(
            ImportReason.NO_LABEL_FILE,
            "No COCO label file: put annotations.json at the top or in annotations/, beside a folder images/.",
        )
    folder = _unwrapped(folder)
    files = files_below(folder)
    if not images_among(files):
        raise ImportRefusedError(ImportReason.NO_LABEL_FILE, "The source holds neither a label file nor an image.")
    found = _recognised(files) if wanted is SourceFormat.AUTO else wanted
    labels = _read(found, folder, files, limits, report)
    return Found(found, folder, (Source(_EVERYTHING, labels),))


def _unwrapped(folder: Path) -> Path:
    for _ in range(MAX_WRAPPING_FOLDERS):
        inner = only_folder(folder)
        if inner is None:
            break
        folder = inner
    return folder


def _fitting(files: list[str]) -> SourceFormat | None:
    if is_voc(files):
        return SourceFormat.PASCAL_VOC
    if is_yolo(files):
        return SourceFormat.YOLO
    if are_class_folders(files):
        return SourceFormat.CLASS_FOLDERS
    return None


def _recognised(files: list[str]) -> SourceFormat:
    fitting = _fitting(files)
    if fitting is not None:
        return fitting
    unread = next((file for file in files if file.lower().endswith(_UNREAD_LABELS)), None)
    if unread is not None:
        raise ImportRefusedError(
            ImportReason.NO_LABEL_FILE,
            f"{printable(unread)} may hold labels, and not where COCO, Pascal VOC or YOLO have them. "
            "For images without labels, say that the format is IMAGES.",
        )
    return SourceFormat.IMAGES


def _read(found: SourceFormat, folder: Path, files: list[str], limits: LabelLimits, report: Report) -> Labels:
    match found:
        case SourceFormat.PASCAL_VOC:
            return read_voc(folder, files, limits, report)
        case SourceFormat.YOLO:
            return read_yolo(folder, files, limits, report)
        case SourceFormat.CLASS_FOLDERS:
            return read_class_folders(files, limits, report)
        case _:
            return read_images(files, limits, report)


def _read_coco(layout: Layout, limits: LabelLimits, report: Report) -> tuple[Source, ...]:
    sources = []
    for label_file in layout.label_files:
        try:
            file = open_below(layout.folder, label_file.path.parts)
        except NotInFolderError as error:
            raise ImportRefusedError(
                ImportReason.NO_LABEL_FILE, f"{printable(str(label_file.path))} cannot be opened: {error.sentence}"
            ) from error
        with file:
            labels = read_labels(file, str(label_file.path), limits, report)
        limits = limits.after(labels)
        sources.append(Source(label_file, labels))
    return tuple(sources)
