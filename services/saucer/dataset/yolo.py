"""Reads YOLO: a text file for each image, a line for each object (docs.ultralytics.com/datasets/detect).

- A line is `class x y width height`: the box's middle and size, in shares of the upright picture's sides. A line of a
  polygon, `class x1 y1 x2 y2 x3 y3 …`, counts as the box around it. Where the YAML file has `kpt_shape`, key points
  follow each box instead, and are not read. A file without a line says that nothing is on its image; an image without
  a file is unlabelled.
- Names of the classes: `names` of the data set's YAML file, a list or a mapping of numbers; else a line for each class
  in classes.txt, obj.names or another .names file. Without names: refused, no_class_names.
- Splits: `train`, `val` and `test` of the YAML file, as folders or lists; else the lists train.txt, val.txt, test.txt;
  else folders named for a split. A text file that belongs to an image has its labels, and is no list: images are
  called test1.jpg too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any

import yaml

from saucer.dataset.labels import CategoryEntry, LabelLimits, Labels
from saucer.dataset.layout import SPLIT_NAMES, split_of
from saucer.dataset.pairing import images_among, listed_splits, pair, read_text, spelled_alike, split_of_folders
from saucer.dataset.per_image import (
    ImageLabels,
    LabelledBox,
    UnreadableLabelsError,
    category_name,
    read_per_image,
    refuse_annotation,
)
from saucer.dataset.report import ImportReason, ImportRefusedError, ItemKind, ItemReason, Report, printable
from saucer.dataset.splits import Split

# Of the YAML file or the list of names. Above it: refused, label_file_too_large.
MAX_NAMES_BYTES = 1024**2

_NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
_BOX_VALUES = 4
_LEAST_POLYGON_VALUES = 6


def is_yolo(files: Sequence[str]) -> bool:
    """Whether there is a text file of an image, or class names and nothing else to take them for."""
    return bool(_names_file(files)) or bool(pair(images_among(files), _text_files(files)).files())


def read_yolo(folder: Path, files: Sequence[str], limits: LabelLimits, report: Report) -> Labels:
    """All labels of a folder.

    Raises:
        ImportRefusedError: no_class_names, not_yaml, nested_too_deep, of limits, and of encoding and length.
    """
    names_file = _names_file(files)
    if names_file is None:
        raise _no_names("put data.yaml or classes.txt at the top")
    images = images_among(files)
    settings = _settings(folder, names_file) if _is_yaml(names_file) else {}
    names = _names(settings.get("names"), names_file) if settings else _listed_names(folder, names_file)
    if len(names) > limits.max_categories:
        raise ImportRefusedError(
            ImportReason.TOO_MANY_CATEGORIES, f"The source holds more than {limits.max_categories:,} classes."
        )
    places = _places(settings)
    named_lists = [(place, split) for place, split in places if place in files]
    text_files = sorted(set(_text_files(files)) - {file for file, _ in named_lists})
    pairs = pair(images, text_files)
    paired = pairs.files()
    lists, label_files = _lists_and_labels(text_files, paired)
    splits = _splits(folder, named_lists or lists, places, images)
    labels = read_per_image(
        folder,
        images,
        pairs,
        lambda image: splits.get(image) if splits else split_of_folders(image),
        lambda data, name: _parse(data, name, report, with_key_points="kpt_shape" in settings),
        limits,
        report,
    )
    labels.normalised = True
    labels.categories = [CategoryEntry(number, name) for number, name in sorted(names.items())]
    labels.counts["categories"] = len(names)
    _report_lonely(label_files, paired, pairs.passed_over, report)
    return labels


def _report_lonely(label_files: Sequence[str], paired: Set[str], passed_over: Set[str], report: Report) -> None:
    """Label files without an image: those that lie where others are that have one, or that an image might have had."""
    label_folders = {dirname(file) for file in paired}
    for file in label_files:
        if file not in paired and (dirname(file) in label_folders or file in passed_over):
            report.images_read += 1
            report.refuse(ItemKind.IMAGE, ItemReason.MISSING_IMAGE, file, "No image belongs to this label file.")


def _text_files(files: Sequence[str]) -> list[str]:
    """Those that may be labels, or lists of a split's images."""
    return [file for file in files if file.lower().endswith(".txt") and basename(file).lower() not in _NAME_LISTS]


def _lists_and_labels(text_files: Sequence[str], paired: Set[str]) -> tuple[list[tuple[str, Split]], list[str]]:
    """Lists are named for their split, and belong to no image."""
    lists, labels = [], []
    for file in text_files:
        split = split_of(splitext(basename(file))[0])
        if split is None or file in paired:
            labels.append(file)
        else:
            lists.append((file, split))
    return lists, labels


def _names_file(files: Sequence[str]) -> str | None:
    """The YAML file, else the list of names; the one nearest to the top."""
    kinds = (
        [file for file in files if _is_yaml(file) and "/" not in file],
        [file for file in files if basename(file).lower() in _NAME_LISTS or file.lower().endswith(".names")],
    )
    for found in kinds:
        if found:
            return min(found, key=lambda file: (file.count("/"), basename(file) != "data.yaml", file))
    return None


def _is_yaml(file: str) -> bool:
    return file.lower().endswith((".yaml", ".yml"))


def _settings(folder: Path, file: str) -> Mapping[str, Any]:
    text = read_text(folder, file, MAX_NAMES_BYTES)
    try:
        # All values are text: a class may be called `no`, and nothing is made of tags, merges or numbers.
        settings = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes text, lists and mappings only
    except RecursionError as error:
        raise ImportRefusedError(ImportReason.NESTED_TOO_DEEP, f"{printable(file)} is nested too deep.") from error
    # The library raises ValueError where a mapping's key is no text.
    except (yaml.YAMLError, ValueError, TypeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        raise ImportRefusedError(ImportReason.NOT_YAML, f"{printable(file)} is not YAML{where}.") from error
    if not isinstance(settings, dict) or "names" not in settings:
        raise _no_names(f"{printable(file)} has no 'names'")
    return settings


def _names(value: object, file: str) -> dict[int, str]:
    entries = dict(enumerate(value)) if isinstance(value, list) else value
    names: dict[int, str] = {}
    for key, name in entries.items() if isinstance(entries, dict) else ():
        plain = category_name(name) if isinstance(name, str) else None
        number = _class_number(str(key))
        if plain is None or number is None:
            raise _no_names(f"the names in {printable(file)} are no list of texts")
        names[number] = plain
    if not names:
        raise _no_names(f"{printable(file)} has no 'names'")
    return names


def _listed_names(folder: Path, file: str) -> dict[int, str]:
    lines = read_text(folder, file, MAX_NAMES_BYTES).rstrip().splitlines()
    return _names(lines, file)


def _no_names(detail: str) -> ImportRefusedError:
    return ImportRefusedError(ImportReason.NO_CLASS_NAMES, f"YOLO labels need names for their classes: {detail}.")


def _places(settings: Mapping[str, Any]) -> list[tuple[str, Split]]:
    """The folders and lists that the YAML file names for a split."""
    return [
        (_inside(place, settings.get("path")), split)
        for key, split in SPLIT_NAMES.items()
        for place in _texts(settings.get(key))
    ]


def _splits(
    folder: Path, lists: Sequence[tuple[str, Split]], places: Sequence[tuple[str, Split]], images: Sequence[str]
) -> dict[str, Split]:
    """As the lists say, else the YAML file's folders; empty where only the folders' names may tell."""
    found = listed_splits(folder, lists, images)
    for place, split in places:
        for image in images:
            if spelled_alike(image).startswith(f"{spelled_alike(place)}/"):
                found.setdefault(image, split)
    return found


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _inside(place: str, root: object) -> str:
    """A path of the YAML file as one of the source: without what leads to the source on its writer's machine."""
    parts = [part for part in place.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    above = [part for part in root.split("/") if part not in ("", ".", "..")] if isinstance(root, str) else []
    return "/".join(parts[len(above) :] if above and parts[: len(above)] == above else parts)


def _parse(data: bytes, name: str, report: Report, *, with_key_points: bool) -> ImageLabels:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableLabelsError(f"{name} is not UTF-8.") from error
    boxes = []
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in lines:
        box = _box(line.split(), with_key_points=with_key_points)
        if box is None:
            sentence = "It is neither `class x y width height` nor a class and the points of a polygon."
            refuse_annotation(report, name, f"line {number}", sentence)
        else:
            boxes.append(box)
    return ImageLabels(boxes, empty=not lines)


def _box(values: Sequence[str], *, with_key_points: bool) -> LabelledBox | None:
    category = _class_number(values[0])
    try:
        numbers = [float(value) for value in values[1:]]
    except ValueError:
        return None
    if category is None:
        return None
    if len(numbers) == _BOX_VALUES or (with_key_points and len(numbers) > _BOX_VALUES):
        x, y, width, height = numbers[:_BOX_VALUES]
        return LabelledBox(category, (x - width / 2, y - height / 2, width, height))
    if len(numbers) >= _LEAST_POLYGON_VALUES and len(numbers) % 2 == 0:
        xs, ys = numbers[::2], numbers[1::2]
        return LabelledBox(category, (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)))
    return None


def _class_number(text: str) -> int | None:
    """Some tools write 3.0 for 3."""
    digits = text.removesuffix(".0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None
