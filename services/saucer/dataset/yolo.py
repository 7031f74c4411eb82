"""Reads YOLO: a text file for each image, a line for each object (docs.ultralytics.com/datasets/detect).

- A line is `class x y width height`: the box's middle and size, in shares of the upright picture's sides. A line of a
  polygon, `class x1 y1 x2 y2 x3 y3 …`, counts as the box around it.
- Names of the classes: `names` of the data set's YAML file, a list or a mapping of numbers; else a line for each class
  in classes.txt, obj.names or another .names file. Without names: refused, no_class_names.
- Splits: `train`, `val` and `test` of the YAML file, as folders or lists; else the lists train.txt, val.txt, test.txt;
  else folders named for a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any

import yaml

from saucer.dataset.labels import CategoryEntry, LabelLimits, Labels
from saucer.dataset.layout import SPLIT_NAMES, split_of
from saucer.dataset.pairing import images_among, listed_splits, pair, read_text, split_of_folders
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
    return bool(_names_file(files)) or bool(pair(images_among(files), _text_files(files)))


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
    splits = _splits(folder, files, images, settings)
    label_file_of = pair(images, _text_files(files))
    labels = read_per_image(
        folder,
        images,
        label_file_of,
        lambda image: splits.get(image) if splits else split_of_folders(image),
        lambda data, name: _parse(data, name, report),
        limits,
        report,
    )
    labels.normalised = True
    labels.categories = [CategoryEntry(number, name) for number, name in sorted(names.items())]
    labels.counts["categories"] = len(names)
    _report_lonely(_text_files(files), label_file_of, report)
    return labels


def _report_lonely(text_files: Sequence[str], label_file_of: Mapping[str, str], report: Report) -> None:
    """Label files without an image: those that lie where others are that have one."""
    paired = set(label_file_of.values())
    label_folders = {dirname(file) for file in paired}
    for file in text_files:
        if file not in paired and dirname(file) in label_folders:
            report.images_read += 1
            report.refuse(ItemKind.IMAGE, ItemReason.MISSING_IMAGE, file, "No image belongs to this label file.")


def _text_files(files: Sequence[str]) -> list[str]:
    """Those that may be labels."""
    return [
        file
        for file in files
        if file.endswith(".txt") and basename(file) not in _NAME_LISTS and split_of(splitext(basename(file))[0]) is None
    ]


def _names_file(files: Sequence[str]) -> str | None:
    """The YAML file, else the list of names; the one nearest to the top."""
    kinds = (
        [file for file in files if _is_yaml(file) and "/" not in file],
        [file for file in files if basename(file) in _NAME_LISTS or file.endswith(".names")],
    )
    for found in kinds:
        if found:
            return min(found, key=lambda file: (file.count("/"), basename(file) != "data.yaml", file))
    return None


def _is_yaml(file: str) -> bool:
    return file.endswith((".yaml", ".yml"))


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


def _splits(folder: Path, files: Sequence[str], images: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Split]:
    """As the YAML file says, else as lists beside it; empty where only the folders' names may tell."""
    places = [
        (_inside(place, settings.get("path")), split)
        for key, split in SPLIT_NAMES.items()
        for place in _texts(settings.get(key))
    ]
    lists = [(place, split) for place, split in places if place in files]
    if not lists:
        lists = [
            (file, split)
            for file in files
            if file.endswith(".txt") and (split := split_of(splitext(basename(file))[0])) is not None
        ]
    found = listed_splits(folder, lists, images)
    for place, split in places:
        for image in images:
            if image.startswith(f"{place}/"):
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


def _parse(data: bytes, name: str, report: Report) -> ImageLabels:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableLabelsError(f"{name} is not UTF-8.") from error
    boxes = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        box = _box(line.split())
        if box is None:
            sentence = "It is neither `class x y width height` nor a class and the points of a polygon."
            refuse_annotation(report, name, f"line {number}", sentence)
        else:
            boxes.append(box)
    return ImageLabels(boxes)


def _box(values: Sequence[str]) -> LabelledBox | None:
    category = _class_number(values[0])
    try:
        numbers = [float(value) for value in values[1:]]
    except ValueError:
        return None
    if category is None:
        return None
    if len(numbers) == _BOX_VALUES:
        x, y, width, height = numbers
        return LabelledBox(category, (x - width / 2, y - height / 2, width, height))
    if len(numbers) >= _LEAST_POLYGON_VALUES and len(numbers) % 2 == 0:
        xs, ys = numbers[::2], numbers[1::2]
        return LabelledBox(category, (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)))
    return None


def _class_number(text: str) -> int | None:
    """Some tools write 3.0 for 3."""
    digits = text.removesuffix(".0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None
