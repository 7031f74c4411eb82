"""Reads COCO label files as a stream, whatever their size and whoever wrote them.

Format: cocodataset.org/#format-data. Only what detection needs is kept: segmentations, captions and the like are
skipped while they stream by. An annotation without `bbox` labels the whole image, as iNaturalist's sets have it. An
annotation's `area`, by which COCO's size classes go, is read if it is a number; boxes.own_areas() says which are used.
An image without annotations is unlabelled, unless its entry has `"empty": true`, as those of our own exports have: COCO
cannot say which of the two it is. Not even then is one empty of which an annotation is malformed.

Numbers must be JSON numbers: a number as a string makes its item malformed. NaN and Infinity are no JSON (RFC 8259):
they end the import with the place, since the file's writer is broken. Ids are integers of 64 bits.
"""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson

from saucer.dataset.labels import (
    MAX_CATEGORY_NAME_CHARS,
    MAX_FILE_NAME_CHARS,
    CategoryEntry,
    ImageEntry,
    LabelLimits,
    Labels,
)
from saucer.dataset.layout import SPLIT_NAMES
from saucer.dataset.report import ImportReason, ImportRefusedError, ItemKind, ItemReason, Report, printable
from saucer.dataset.splits import Split

# COCO needs 6. Above it: refused, nested_too_deep.
MAX_DEPTH = 32
# One string or number, or space between two. Above it: refused, not_json. The parser holds a token in memory.
MAX_TOKEN_BYTES = 16 * 1024**2

_CHUNK_BYTES = 64 * 1024
_ENTRY_DEPTH = 3
_WANTED = {
    "images": frozenset({"id", "file_name", "width", "height", "split", "source_name", "empty"}),
    "annotations": frozenset({"id", "image_id", "category_id", "bbox", "area", "iscrowd"}),
    "categories": frozenset({"id", "name"}),
}
_NESTED = object()  # stands for an object or array where a scalar belongs
_MAX_INT = 2**63 - 1


class OtherJsonError(ImportRefusedError):
    """The file has neither images nor annotations: it is about something else, and no broken label file."""


def read_labels(file: BinaryIO, name: str, limits: LabelLimits, report: Report) -> Labels:
    """Reads one label file; malformed items go to the report under `name`.

    Raises:
        OtherJsonError: not_coco, of a file that may well lie beside labels of another format.
        ImportRefusedError: label_file_too_large, wrong_encoding, not_json, nested_too_deep, not_coco, too_many_images,
            too_many_annotations or too_many_categories.
    """
    if os.fstat(file.fileno()).st_size > limits.max_label_file_bytes:
        raise ImportRefusedError(
            ImportReason.LABEL_FILE_TOO_LARGE,
            f"{printable(name)} is larger than {limits.max_label_file_bytes:,} bytes.",
        )
    labels = Labels()
    adders = {"images": _add_image, "annotations": _add_annotation, "categories": _add_category}
    most = {
        "images": (limits.max_images, ImportReason.TOO_MANY_IMAGES),
        "annotations": (limits.max_annotations, ImportReason.TOO_MANY_ANNOTATIONS),
        "categories": (limits.max_categories, ImportReason.TOO_MANY_CATEGORIES),
    }
    walk = _Walk(name)
    for section, entry in walk.entries(_events(file, name)):
        labels.counts[section] += 1
        limit, reason = most[section]
        if labels.counts[section] > limit:
            raise ImportRefusedError(reason, f"{printable(name)} takes the import over its limit of {section}.")
        adders[section](labels, entry, f"{name}, {section}[{labels.counts[section] - 1}]", report)
    missing = [section for section in _WANTED if section not in walk.seen]
    if missing:
        error = OtherJsonError if {"images", "annotations"} <= set(missing) else ImportRefusedError
        raise _not_coco(name, f"it has no '{missing[0]}'", error)
    report.images_read += labels.counts["images"]
    report.annotations_read += labels.counts["annotations"]
    return labels


def _events(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """JSON events, chunk by chunk; a token is refused once it spans more than MAX_TOKEN_BYTES."""
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    silent_bytes = 0
    first = True
    try:
        while chunk := file.read(_CHUNK_BYTES):
            parser.send(_without_mark(chunk, name) if first else chunk)
            first = False
            silent_bytes = 0 if events else silent_bytes + len(chunk)
            if silent_bytes > MAX_TOKEN_BYTES:
                raise _not_json(name, "a single value is too long")
            yield from events
            events.clear()
        parser.close()
    except (ijson.JSONError, UnicodeError) as error:
        raise _unreadable(name, error) from error
    yield from events


def _without_mark(chunk: bytes, name: str) -> bytes:
    # Windows tools put a byte order mark before UTF-8; a mark or zeros of UTF-16 and 32 mean another encoding.
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in chunk[:4]:
        raise ImportRefusedError(ImportReason.WRONG_ENCODING, f"{printable(name)} is not UTF-8. Save it as UTF-8.")
    return chunk.removeprefix(codecs.BOM_UTF8)


class _Walk:
    """Picks the entries of the three sections out of the events. `seen` are those of the three met so far.

    Depth 1 is the document's object, 2 a section's array, 3 an entry, 4 a value of it that is nested (the box).
    """

    def __init__(self, name: str) -> None:
        self.seen: set[str] = set()
        self._name = name
        self._depth = 0
        self._section = ""
        self._key = ""
        self._entry: dict[str, Any] | None = None
        self._box: list[Any] | None = None

    def entries(self, events: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yields section and entry; None for an entry that is not an object."""
        for event, value in events:
            if event in ("start_map", "start_array"):
                self._open(event)
            elif event in ("end_map", "end_array"):
                if self._depth == _ENTRY_DEPTH and self._section in _WANTED:
                    yield self._section, self._entry
                    self._entry = None
                elif self._depth == _ENTRY_DEPTH + 1:
                    self._box = None
                self._depth -= 1
            elif event == "map_key":
                self._meet_key(value)
            elif self._meet_scalar(value):
                yield self._section, None

    def _open(self, event: str) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ImportRefusedError(
                ImportReason.NESTED_TOO_DEEP, f"{printable(self._name)} is nested deeper than {MAX_DEPTH} levels."
            )
        if self._depth == 1 and event != "start_map":
            raise _not_coco(self._name, "it is not an object", OtherJsonError)
        if self._section not in _WANTED:
            return
        if self._depth == 2 and event != "start_array":
            raise _not_coco(self._name, f"'{self._section}' is not an array")
        if self._depth == _ENTRY_DEPTH:
            self._entry = {} if event == "start_map" else None
        elif self._depth == _ENTRY_DEPTH + 1 and self._entry is not None and self._key in _WANTED[self._section]:
            self._box = [] if event == "start_array" and self._key == "bbox" else None
            self._entry[self._key] = _NESTED if self._box is None else self._box
        elif self._box is not None:
            self._add_to_box(_NESTED)

    def _meet_key(self, key: str) -> None:
        if self._depth == _ENTRY_DEPTH:
            self._key = key
        elif self._depth == 1:
            self._section = key
            if key in self.seen:
                raise _not_coco(self._name, f"it has '{key}' twice")
            if key in _WANTED:
                self.seen.add(key)

    def _meet_scalar(self, value: Any) -> bool:
        """True if the scalar stands where an entry belongs."""
        if self._depth > _ENTRY_DEPTH:
            if self._box is not None:
                self._add_to_box(value)
        elif self._section in _WANTED:
            if self._depth == 1:
                raise _not_coco(self._name, f"'{self._section}' is not an array")
            if self._depth == 2:
                return True
            if self._entry is not None and self._key in _WANTED[self._section]:
                self._entry[self._key] = value
        return False

    def _add_to_box(self, value: Any) -> None:
        if self._box is not None and len(self._box) <= 4:
            self._box.append(value)


def _add_image(labels: Labels, entry: dict[str, Any] | None, item: str, report: Report) -> None:
    identifier = _integer((entry or {}).get("id"))
    try:
        if entry is None:
            raise _MalformedError("not an object")
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not 0 < len(file_name) <= MAX_FILE_NAME_CHARS:
            raise _MalformedError(f"file_name is not a text of 1 to {MAX_FILE_NAME_CHARS} characters")
        item = file_name
        labels.images.add(
            ImageEntry(
                file_name,
                _required(entry, "id"),
                _side(entry, "width"),
                _side(entry, "height"),
                _own_split(entry),
                _source_name(entry),
                empty=entry.get("empty") is True,
            )
        )
    except _MalformedError as error:
        report.refuse(ItemKind.IMAGE, ItemReason.MALFORMED_IMAGE, item, f"{error}.")
        if identifier is not None:
            labels.malformed_image_ids.add(identifier)


def _add_annotation(labels: Labels, entry: dict[str, Any] | None, item: str, report: Report) -> None:
    identifier = _integer((entry or {}).get("image_id"))
    try:
        if entry is None:
            raise _MalformedError("not an object")
        ids = [_required(entry, key) for key in ("id", "image_id", "category_id")]
        box = entry.get("bbox")
        if box is not None and not _is_box(box):
            raise _MalformedError("bbox is not an array of four numbers")
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise _MalformedError("iscrowd is neither 0 nor 1")
    except _MalformedError as error:
        report.refuse(ItemKind.ANNOTATION, ItemReason.MALFORMED_ANNOTATION, item, f"{error}.")
        if identifier is not None:
            labels.misread_image_ids.append(identifier)
        return
    number, image_id, category_id = ids
    area = entry.get("area")
    labels.annotations.add(
        number,
        image_id,
        category_id,
        box,
        area=float(area) if area is not None and _is_number(area) else None,
        crowd=bool(crowd),
    )


def _add_category(labels: Labels, entry: dict[str, Any] | None, item: str, report: Report) -> None:
    try:
        if entry is None:
            raise _MalformedError("not an object")
        name = entry.get("name")
        stripped = name.strip() if isinstance(name, str) else ""
        if not 0 < len(stripped) <= MAX_CATEGORY_NAME_CHARS or not stripped.isprintable():
            raise _MalformedError(f"name is not a printable text of 1 to {MAX_CATEGORY_NAME_CHARS} characters")
        labels.categories.append(CategoryEntry(_required(entry, "id"), stripped))
    except _MalformedError as error:
        report.refuse(ItemKind.CATEGORY, ItemReason.MALFORMED_CATEGORY, item, f"{error}.")


class _MalformedError(Exception):
    pass


def _required(entry: dict[str, Any], key: str) -> int:
    number = _integer(entry.get(key))
    if number is None:
        raise _MalformedError(f"{key} is missing" if key not in entry else f"{key} is not an integer")
    return number


def _side(entry: dict[str, Any], key: str) -> int | None:
    if entry.get(key) is None:
        return None
    side = _required(entry, key)
    if side <= 0:
        raise _MalformedError(f"{key} is not positive")
    return side


def _own_split(entry: dict[str, Any]) -> Split | None:
    split = entry.get("split")
    if split is None:
        return None
    if not isinstance(split, str) or split.lower() not in SPLIT_NAMES:
        raise _MalformedError(f"split is none of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[split.lower()]


def _source_name(entry: dict[str, Any]) -> str | None:
    name = entry.get("source_name")
    return name if isinstance(name, str) and 0 < len(name) <= MAX_FILE_NAME_CHARS else None


def _integer(value: object) -> int | None:
    """An integer of 64 bits; tools that keep tables write 3.0 for 3, which is taken as meant."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and math.isfinite(value) and value == math.floor(value):
        value = int(value)
    return value if isinstance(value, int) and abs(value) <= _MAX_INT else None


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(number) for number in value)


def _is_number(value: object) -> bool:
    # An integer beyond 64 bits may not fit a float either.
    return isinstance(value, float) or _integer(value) is not None


def _unreadable(name: str, error: Exception) -> ImportRefusedError:
    text = str(error)
    if "UTF8" in text or isinstance(error, UnicodeError):
        return ImportRefusedError(ImportReason.WRONG_ENCODING, f"{printable(name)} is not UTF-8. Save it as UTF-8.")
    # The parser shows the place in its second line; the first says what is wrong.
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it ends early"]
    place = f", near {lines[1]}" if len(lines) > 2 else ""
    return _not_json(name, lines[0].rstrip(".") + place)


def _not_json(name: str, detail: str) -> ImportRefusedError:
    return ImportRefusedError(
        ImportReason.NOT_JSON, f"{printable(name)} is not JSON (which knows no NaN): {printable(detail)}."
    )


def _not_coco(name: str, detail: str, error: type[ImportRefusedError] = ImportRefusedError) -> ImportRefusedError:
    return error(ImportReason.NOT_COCO, f"{printable(name)} is not a COCO label file: {detail}.")
