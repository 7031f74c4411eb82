"""Bad cases as files for other programs: COCO with tags, and CSV; written piece by piece, never whole in memory."""

import json
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any

from saucer.evaluation.reading import BadCase, CaseFilter, LabelledBox, every_bad_case, label_of
from saucer.evaluation.stored import Loaded
from saucer.lib.csv_lines import csv_line

CSV_COLUMNS = (
    *("image_id", "file_name", "kind", "class", "score", "iou", "x1", "y1", "x2", "y2"),
    *("truth_class", "truth_x1", "truth_y1", "truth_x2", "truth_y2"),
)


class ExportFormat(StrEnum):
    """Of a file."""

    COCO = "COCO"
    CSV = "CSV"


def export(loaded: Loaded, threshold: float, wanted: CaseFilter, as_format: ExportFormat) -> Iterator[str]:
    """The bad cases of reading.find_bad_cases(), worst first.

    COCO: the document of cocodataset.org/#format-data, whose `annotations` are the labels of these images and whose
    categories are the classes from 1 on; besides it `detections` in COCO's form of results. Images, labels and
    detections have `tags`: the kinds of the faults that name them. CSV: a row a fault, corners in pixels; names as
    csv_line() writes them. Raises InvalidArgumentError for an unknown class, before anything is written.
    """
    label_of(loaded.truth.classes, wanted.class_name)
    write = {ExportFormat.COCO: _coco, ExportFormat.CSV: _csv}[as_format]
    return write(loaded, lambda: every_bad_case(loaded, threshold, wanted), threshold)


def _csv(loaded: Loaded, cases: Callable[[], Iterable[BadCase]], threshold: float) -> Iterator[str]:
    yield csv_line(CSV_COLUMNS)
    for case in cases():
        for fault in case.faults:
            detection = None if fault.detection is None else case.detections[fault.detection]
            truth = None if fault.truth is None else case.truth[fault.truth]
            yield csv_line(
                (
                    *(case.image_id, case.file_name, fault.kind.name),
                    *((detection.class_name, detection.score) if detection else ("", "")),
                    *(fault.iou, *(detection.corners if detection else ("",) * 4)),
                    *((truth.class_name, *truth.corners) if truth else ("",) * 5),
                )
            )


def _coco(loaded: Loaded, cases: Callable[[], Iterable[BadCase]], threshold: float) -> Iterator[str]:
    category = {name: label + 1 for label, name in enumerate(loaded.truth.classes)}
    yield "{" + f'"info": {json.dumps({"description": f"Bad cases at threshold {threshold}"})}'
    yield f', "categories": {json.dumps([{"id": number, "name": name} for name, number in category.items()])}'
    yield ', "images": ['
    yield from _joined(
        {
            "id": case.image_id,
            "file_name": case.file_name,
            "width": case.width,
            "height": case.height,
            "tags": sorted({fault.kind.name for fault in case.faults}),
        }
        for case in cases()
    )
    yield '], "annotations": ['
    yield from _joined(
        {
            **_box(case, box, category),
            "iscrowd": int(box.crowd),
            "tags": sorted({fault.kind.name for fault in case.faults if fault.truth == place}),
        }
        for case in cases()
        for place, box in enumerate(case.truth)
    )
    yield '], "detections": ['
    yield from _joined(
        {
            **_box(case, box, category),
            "score": box.score,
            "tags": sorted({fault.kind.name for fault in case.faults if fault.detection == place}),
        }
        for case in cases()
        for place, box in enumerate(case.detections)
    )
    yield "]}"


def _joined(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """With an id of its own for each that has none."""
    for number, entry in enumerate(entries, 1):
        yield (", " if number > 1 else "") + json.dumps({"id": number} | entry)


def _box(case: BadCase, box: LabelledBox, category: dict[str, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = box.corners
    return {
        "image_id": case.image_id,
        "category_id": category[box.class_name],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": box.area,
    }
