"""Where a source folder keeps its COCO label files and images, and how a file in it is opened without being led out.

Layouts, looked for in this order; hidden files, links and `__MACOSX` are not looked at:

1. Split files, if a train file is among them: `annotations/{train,val,valid,validation,test}.json`, with COCO's own
   names too (`instances_train2017.json`), the same beside the images, and Roboflow's `train/_annotations.coco.json`,
   `valid/…`, `test/…`.
2. One label file: `annotations.json`, else the only `.json`, at the top or in `annotations/`.
3. Neither, but a single folder: the same again inside it (archives often wrap everything in one).

A file_name is looked up below the split's own folders (`train2017/`, `images/train2017/`, `train/images/`, …), the
label file's folder, the top folder, `images/` and `data/`; the first that has it wins.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from saucer.dataset.report import ImportReason, ImportRefusedError, ItemReason, printable
from saucer.dataset.splits import Split

LABEL_FOLDER = "annotations"
IMAGE_FOLDERS = ("images", "data")
# Preferred where several label files lie side by side.
LABEL_FILE = "annotations.json"
ROBOFLOW_FILE = "_annotations.coco.json"
COCO_PREFIX = "instances_"
# How many wrapping folders are looked into.
MAX_WRAPPING_FOLDERS = 4

SPLIT_NAMES = {
    "train": Split.TRAIN,
    "val": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "validation": Split.VALIDATION,
    "test": Split.TEST,
}


def split_of(name: str) -> Split | None:
    """The split that a folder or file is named for, as in `train` and `val2017`."""
    return SPLIT_NAMES.get(name.lower().rstrip("0123456789"))


@dataclass(frozen=True)
class LabelFile:
    """A label file and the folders in which its images may lie, all relative to the layout's folder."""

    path: PurePosixPath
    split: Split | None
    image_folders: tuple[PurePosixPath, ...]


@dataclass(frozen=True)
class Layout:
    """`folder` is the source folder, or the one inside that wraps everything; train comes first, test last."""

    folder: Path
    label_files: tuple[LabelFile, ...]


def find_layout(folder: Path) -> Layout | None:
    """Finds the label files; None if there is none.

    Raises:
        ImportRefusedError: ambiguous_layout with the names between which it cannot choose.
    """
    for _ in range(MAX_WRAPPING_FOLDERS):
        found = _split_files(folder) or _single_file(folder)
        if found:
            return Layout(folder, tuple(_label_file(folder, path, split) for path, split in found))
        inner = only_folder(folder)
        if inner is None:
            break
        folder = inner
    return None


class NotInFolderError(Exception):
    """A file cannot be opened below the folder: `reason` is missing_image, link or climbing_path."""

    def __init__(self, reason: ItemReason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


def open_below(folder: Path, parts: Sequence[str]) -> BinaryIO:
    """Opens a plain file below `folder`, following no link in any part, whatever changes there meanwhile.

    `parts` holds no `..` and no `/` (archive.safe_parts).

    Raises:
        NotInFolderError: it is missing, not a plain file, or behind a link.
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = _open_part(here, part, os.O_DIRECTORY)
            os.close(here)
            here = inner
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        found = _open_part(here, parts[-1], os.O_NONBLOCK)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise NotInFolderError(ItemReason.MISSING_IMAGE, "not a plain file")
    return os.fdopen(found, "rb")


def read_at_most(file: BinaryIO, max_bytes: int) -> bytes:
    """The whole of a file on disk, or one byte more than `max_bytes`."""
    # By its size, since read() takes the memory for all that it may read, of which a small file needs little.
    return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)


def find_image(folder: Path, label_file: LabelFile, parts: Sequence[str]) -> tuple[BinaryIO, tuple[str, ...]]:
    """Opens the image below `folder` that `label_file` names, in the first of its image folders that has it; and the
    path of what was opened.

    Raises:
        NotInFolderError: none has it, or a link is in the way.
    """
    for image_folder in label_file.image_folders:
        try:
            path = (*image_folder.parts, *parts)
            return open_below(folder, path), path
        except NotInFolderError as error:
            if error.reason is not ItemReason.MISSING_IMAGE:
                raise
    raise NotInFolderError(ItemReason.MISSING_IMAGE, "The image file is not in the folder.")


def _open_part(folder: int, part: str, flags: int) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(folder, part):
            raise NotInFolderError(ItemReason.LINK, "The path leads over a link; links are not followed.") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO, errno.EACCES):
            raise NotInFolderError(ItemReason.MISSING_IMAGE, "not there") from error
        raise
    except ValueError as error:  # a NUL, or what no file system can write
        raise NotInFolderError(ItemReason.MISSING_IMAGE, "not a file name") from error


def _is_link(folder: int, part: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(part, dir_fd=folder).st_mode)
    except FileNotFoundError:
        return False


def _split_files(folder: Path) -> list[tuple[PurePosixPath, Split | None]]:
    candidates = [(path, split) for path in _json_files(folder) if (split := split_of(_token(path))) is not None]
    candidates += [
        (PurePosixPath(name, file), split)
        for name, split in SPLIT_NAMES.items()
        if _is_folder(folder / name)
        for file in (ROBOFLOW_FILE, LABEL_FILE)
        if _is_file(folder / name / file)
    ]
    by_split: dict[Split, PurePosixPath] = {}
    for path, split in candidates:
        if split in by_split:
            raise _ambiguous([by_split[split], path])
        by_split[split] = path
    if Split.TRAIN not in by_split:
        return []
    return [(by_split[split], split) for split in Split if split in by_split]


def _single_file(folder: Path) -> list[tuple[PurePosixPath, Split | None]]:
    paths = _json_files(folder)
    preferred = [path for path in paths if path.name == LABEL_FILE] or paths
    if len(preferred) > 1:
        raise _ambiguous(preferred)
    return [(path, None) for path in preferred]


def _label_file(folder: Path, path: PurePosixPath, split: Split | None) -> LabelFile:
    names = [_token(path), *(name for name, of in SPLIT_NAMES.items() if of is split)]
    own = [p for name in names for p in (f"{name}", *(f"{i}/{name}" for i in IMAGE_FOLDERS), f"{name}/images")]
    places = [PurePosixPath(p) for p in (*own, str(path.parent), "", *IMAGE_FOLDERS)]
    # dict: keeps the order, drops what stands twice.
    return LabelFile(path, split, tuple(p for p in dict.fromkeys(places) if _is_folder(folder / p)))


def _json_files(folder: Path) -> list[PurePosixPath]:
    """The .json files at the top and in annotations/, by name."""
    found = [
        PurePosixPath(inside, entry.name)
        for inside in ("", LABEL_FOLDER)
        if _is_folder(folder / inside)
        for entry in os.scandir(folder / inside)
        if entry.name.lower().endswith(".json")
        and not entry.name.startswith(".")
        and entry.is_file(follow_symlinks=False)
    ]
    return sorted(found)


def only_folder(folder: Path) -> Path | None:
    """The folder that wraps everything, if one does."""
    shown = [e for e in os.scandir(folder) if not e.name.startswith(".") and e.name != "__MACOSX"]
    return Path(shown[0].path) if len(shown) == 1 and shown[0].is_dir(follow_symlinks=False) else None


def _token(path: PurePosixPath) -> str:
    return path.stem.lower().removeprefix(COCO_PREFIX)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _ambiguous(paths: Sequence[PurePosixPath]) -> ImportRefusedError:
    named = ", ".join(printable(str(path)) for path in paths[:5])
    return ImportRefusedError(
        ImportReason.AMBIGUOUS_LAYOUT,
        f"Several label files could be meant: {named}. Keep one, or one for each split (train, val, test).",
    )
