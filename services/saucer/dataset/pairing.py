"""Which label file belongs to which image, and to which split, in layouts that have a label file for each image.

An image and its label file have the same name but for the ending. They lie side by side; or in two folders whose paths
differ in one part (`images/train` and `labels/train`, `train/images` and `train/labels`); or anywhere, where only one
pair has that name. Of several that differ in one part, it is the one whose folder is called after the image's
(`images2/` and `labels2/`, `val_images/` and `val_labels/`), else the one in a folder that is called labels or
annotations; of several anywhere, likewise the latter. Where that does not tell, the image is refused, for to take it as
one without labels would be wrong.

Where an image has its file in a folder called labels or annotations, there where the two paths part, so have all images
of its folder: with `labels/`, no image of `images/` takes a file of `labels_old/` or `images/old/`, though it have no
other. Its folder is the part that differs, with all below it (`images`, for `images/train` and `labels/train`); where
more than one part does, it is only the one in which the image lies. A file at the image's side is its own in any case,
and so are those of folders below the settled one that pair among themselves (`images/extra/img`, `images/extra/txt`).

Unicode spells ä as one character or as a with two dots (NFC, NFD), and what a Mac has packed is often spelled other
than what a label file says. A name that is not found as it stands is compared as NFC.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import NamedTuple

from saucer.dataset.archive import MAX_FILES
from saucer.dataset.layout import open_below, split_of
from saucer.dataset.report import ImportReason, ImportRefusedError, printable
from saucer.dataset.splits import Split

# By these endings a file is an image; what cannot be read of them is reported.
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".mpo", ".gif", ".tif", ".tiff"})
# Of a list of images, one a line. Above it: the import is refused, label_file_too_large.
MAX_LIST_BYTES = 64 * 1024**2
_LABEL_FOLDERS = frozenset({"labels", "annotations"})
# What folders of images and of labels are called; with what stands beside it, they are called after each other.
_KIND = re.compile(r"(jpeg)?images?|imgs?|labels?|annotations?|xmls?|txts?")

# A path of folders, and an empty part behind them that stands for what lies in the last one itself.
_Parts = tuple[str, ...]


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


class Pairs(NamedTuple):
    """The label file of each image that has one, those of each image of which several could be meant, and those that
    images would have, if others of their folder had not theirs in one called labels or annotations."""

    label_file_of: dict[str, str]
    ambiguous: dict[str, list[str]]
    passed_over: set[str]

    def files(self) -> set[str]:
        """The label files for which there is an image."""
        return {*self.label_file_of.values(), *(file for files in self.ambiguous.values() for file in files)}


def spelled_alike(text: str) -> str:
    """The same for all spellings of a text."""
    return unicodedata.normalize("NFC", text)


def pair(images: Sequence[str], label_files: Sequence[str]) -> Pairs:
    """Of several images with one label file, each has it."""
    candidates = _Candidates(images, label_files)
    found = {image: candidates.of(image) for image in images}
    settled = {folder for image, files in found.items() for file in files if (folder := _settled_by(image, file))}
    pairs = Pairs({}, {}, set())
    for image, files in found.items():
        depth = _settled_depth(image, settled)
        chosen = candidates.of(image, depth) if depth else files
        pairs.passed_over.update(set(files).difference(chosen))
        if len(chosen) == 1:
            pairs.label_file_of[image] = chosen[0]
        elif chosen:
            pairs.ambiguous[image] = chosen
    return pairs


class _Candidates:
    """Label files by name and folder, so that an image is not compared with all that are called like it: frames of
    videos all are."""

    def __init__(self, images: Sequence[str], label_files: Sequence[str]) -> None:
        self._images_of_stem = Counter(_stem(image) for image in images)
        # By stem and folder.
        self._files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._files_by_spelling: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for file in label_files:
            self._files[_stem(file)][_folder(file)].append(file)
            # Of ASCII there is one spelling only.
            if not file.isascii():
                self._files_by_spelling[spelled_alike(_stem(file))][_folder(file)].append(file)
        # Folders by all parts but one, and that one.
        self._folders: dict[tuple[_Parts, _Parts], dict[str, str]] = defaultdict(dict)
        for folder in {_folder(file) for file in label_files}:
            for before, part, behind in _with_one_part_left_out(folder):
                self._folders[before, behind][folder] = part

    def of(self, image: str, settled: int = 0) -> list[str]:
        """The label files that could be meant, sorted.

        Args:
            settled: so many parts of the image's path are a settled folder: what leaves the path no deeper counts only
                where it lies in a folder of labels. 0: none is.
        """
        stem, folder = _stem(image), _folder(image)
        namesakes = self._files.get(stem) or self._files_by_spelling.get(spelled_alike(stem), {})
        if folder in namesakes:
            return namesakes[folder]
        merits = {
            other: (_is_called_after(its, part), its.lower() in _LABEL_FOLDERS)
            for other, (part, its) in self._twins(folder, namesakes).items()
            if _counts(other, folder, settled)
        }
        best = max(merits.values(), default=None)
        if best is not None:
            return sorted(file for other, merit in merits.items() if merit == best for file in namesakes[other])
        if self._images_of_stem[stem] > 1:
            return []
        others = [other for other in namesakes if _counts(other, folder, settled)]
        of_labels = [other for other in others if _is_of_labels(other, folder)]
        files = sorted(file for other in of_labels or others for file in namesakes[other])
        return [file for file in files if (of_labels or len(files) == 1) and _may_share_split(file, image)]

    def _twins(self, folder: str, namesakes: Mapping[str, list[str]]) -> dict[str, tuple[str, str]]:
        """Of the folders that differ from this one in one part, those with namesakes, and that part of either. Those of
        two splits, `train` and `test`, are none."""
        found = {}
        for before, part, behind in _with_one_part_left_out(folder) if namesakes else ():
            parts = self._folders.get((before, behind), {})
            for other in parts.keys() & namesakes.keys():
                if None in (split_of(part), split_of(parts[other])):
                    found[other] = part, parts[other]
        return found


def _stem(path: str) -> str:
    return splitext(basename(path))[0]


def _folder(path: str) -> str:
    return spelled_alike(dirname(path))


def _parts(folder: str) -> _Parts:
    return (*folder.split("/"), "")


def _with_one_part_left_out(folder: str) -> Iterator[tuple[_Parts, str, _Parts]]:
    parts = tuple(folder.split("/"))
    return ((parts[:at], part, parts[at + 1 :]) for at, part in enumerate(parts))


def _may_share_split(label_file: str, image: str) -> bool:
    return split_of_folders(label_file) in (None, split_of_folders(image))


def _parting(one: _Parts, other: _Parts) -> int:
    """The place of the first part that differs."""
    return next(at for at, (own, its) in enumerate(zip(one, other, strict=False)) if own != its)


def _is_of_labels(folder: str, other: str) -> bool:
    """Whether a folder leaves the path of another one by a part that is called labels or annotations."""
    parts = _parts(folder)
    return parts[_parting(parts, _parts(other))].lower() in _LABEL_FOLDERS


def _counts(folder: str, other: str, settled: int) -> bool:
    """Whether what lies in a folder may belong to an image in another one, of whose path so many parts are settled."""
    return not settled or _is_of_labels(folder, other) or _parting(_parts(folder), _parts(other)) > settled


def _is_called_after(part: str, other: str) -> bool:
    """`labels2` after `images2`: the same but for a word for what is in it, which one of them has at least."""
    (rest, found), (its, its_found) = (_KIND.subn("", name.lower()) for name in (part, other))
    return bool(found or its_found) and rest.strip(" _-.") == its.strip(" _-.")


def _settled_by(image: str, label_file: str) -> _Parts | None:
    """The folder of which all images have their files in folders of labels, since this one has."""
    folder, other = _folder(image), _folder(label_file)
    if folder == other or not _is_of_labels(other, folder):
        return None
    parts, others = _parts(folder), _parts(other)
    behind = _parting(parts, others) + 1
    return parts[:behind] if parts[behind:] == others[behind:] else parts


def _settled_depth(image: str, settled: Set[_Parts]) -> int:
    """Of how many parts the innermost settled folder is that an image lies in; 0: it lies in none."""
    parts = _parts(_folder(image))
    return max((depth for depth in range(1, len(parts) + 1) if parts[:depth] in settled), default=0)


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
        by_stem[spelled_alike(_stem(image))].append(image)
    found: dict[str, Split] = {}
    for path, split in sorted(lists, key=lambda entry: list(Split).index(entry[1])):
        for line in _lines(spelled_alike(read_text(folder, path, MAX_LIST_BYTES))):
            # "photo.v2" is a name without ending, "photo.jpg" one with.
            for name in {line, splitext(line)[0]}:
                for image in by_stem.get(basename(name), ()):
                    if _ends_agree(name, spelled_alike(splitext(image)[0])):
                        found.setdefault(image, split)
    return found


def _lines(text: str) -> Iterator[str]:
    return (line.strip().replace("\\", "/") for line in text.splitlines() if line.strip())


def _ends_agree(one: str, other: str) -> bool:
    parts = [[part for part in path.split("/") if part not in ("", ".", "..")] for path in (one, other)]
    return all(a == b for a, b in zip(reversed(parts[0]), reversed(parts[1]), strict=False))
