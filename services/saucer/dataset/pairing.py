"""Which label file belongs to which image, and to which split, in layouts that have a label file for each image.

An image and its label file have the same name but for the ending. They lie side by side; or in two folders whose paths
differ in one part (`images/train` and `labels/train`, `train/images` and `train/labels`); or anywhere, where only one
pair has that name.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from posixpath import basename, dirname, splitext

from saucer.dataset.archive import MAX_FILES
from saucer.dataset.layout import open_below, split_of
from saucer.dataset.report import ImportReason, ImportRefusedError, printable
from saucer.dataset.splits import Split

# By these endings a file is an image; what cannot be read of them is reported.
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".mpo", ".gif", ".tif", ".tiff"})
# Of a list of images, one a line. Above it: the import is refused, label_file_too_large.
MAX_LIST_BYTES = 64 * 1024**2


def files_below(folder: Path) -> list[str]:
    """Every plain file below a folder, as relative paths, sorted; links, hidden files and `__MACOSX` are left out.

    Raises ImportRefusedError: too_many_files.
    """
    found: list[str] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                path = f"{inside}/{entry.name}" if inside else entry.name
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(path)
        if len(found) + len(waiting) > MAX_FILES:
            raise ImportRefusedError(
                ImportReason.TOO_MANY_FILES, f"The source holds more than {MAX_FILES:,} files and folders."
            )
    return sorted(found)


def images_among(files: Iterable[str]) -> list[str]:
    """Those whose ending is an image's."""
    return [file for file in files if splitext(file)[1].lower() in IMAGE_ENDINGS]


def split_of_folders(path: str) -> Split | None:
    """The split for which the outermost of a file's folders is named that is named for one."""
    return next((split for part in path.split("/")[:-1] if (split := split_of(part)) is not None), None)


def pair(images: Sequence[str], label_files: Sequence[str]) -> dict[str, str]:
    """The label file of each image that has one; of several images with one label file, each."""
    by_stem: dict[str, list[str]] = defaultdict(list)
    for file in label_files:
        by_stem[_stem(file)].append(file)
    images_of_stem = Counter(_stem(image) for image in images)
    found = {}
    for image in images:
        candidates = by_stem.get(_stem(image), [])
        only = len(candidates) == 1 and images_of_stem[_stem(image)] == 1
        chosen = (
            [file for file in candidates if dirname(file) == dirname(image)]
            or [file for file in candidates if _differ_in_one_part(dirname(file), dirname(image))]
            or [file for file in candidates if only and split_of_folders(file) in (None, split_of_folders(image))]
        )
        if len(chosen) == 1:
            found[image] = chosen[0]
    return found


def _stem(path: str) -> str:
    return splitext(basename(path))[0]


def _differ_in_one_part(one: str, other: str) -> bool:
    """`images/train` and `labels/train`, but not `train` and `test`."""
    parts, others = one.split("/"), other.split("/")
    differing = [pair for pair in zip(parts, others, strict=False) if pair[0] != pair[1]]
    return len(parts) == len(others) and len(differing) == 1 and None in map(split_of, differing[0])


def read_text(folder: Path, path: str, limit: int) -> str:
    """A text file of the source.

    Raises:
        ImportRefusedError: label_file_too_large, wrong_encoding.
    """
    with open_below(folder, path.split("/")) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ImportRefusedError(ImportReason.LABEL_FILE_TOO_LARGE, f"{printable(path)} has more than {limit:,} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImportRefusedError(
            ImportReason.WRONG_ENCODING, f"{printable(path)} is not UTF-8. Save it as UTF-8."
        ) from error


def listed_splits(folder: Path, lists: Iterable[tuple[str, Split]], images: Sequence[str]) -> dict[str, Split]:
    """The split of each image that a list names; in the order of the splits, the first list wins.

    A line names an image by a path, with or without its ending, of which the end must agree with the image's path:
    tools write where the image lay on their own machine.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_stem[_stem(image)].append(image)
    found: dict[str, Split] = {}
    for path, split in sorted(lists, key=lambda entry: list(Split).index(entry[1])):
        for line in _lines(read_text(folder, path, MAX_LIST_BYTES)):
            # "photo.v2" is a name without ending, "photo.jpg" one with.
            for name in {line, splitext(line)[0]}:
                for image in by_stem.get(basename(name), ()):
                    if _ends_agree(name, splitext(image)[0]):
                        found.setdefault(image, split)
    return found


def _lines(text: str) -> Iterator[str]:
    return (line.strip().replace("\\", "/") for line in text.splitlines() if line.strip())


def _ends_agree(one: str, other: str) -> bool:
    parts = [[part for part in path.split("/") if part not in ("", ".", "..")] for path in (one, other)]
    return all(a == b for a, b in zip(reversed(parts[0]), reversed(parts[1]), strict=False))
