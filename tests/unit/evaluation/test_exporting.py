"""Bad cases as files: what was listed is in them, in the form that others read."""

import csv
import io
import json
from dataclasses import replace

import pytest
from pycocotools.coco import COCO

from saucer.evaluation import reading
from saucer.evaluation.bad_cases import FaultKind
from saucer.evaluation.exporting import CSV_COLUMNS, ExportFormat, export
from saucer.evaluation.reading import CaseFilter, find_bad_cases
from saucer.evaluation.stored import LabelledSet, load
from saucer.evaluation.truth import from_coco
from tests.unit.evaluation.test_reading import stored

WANTED = [CaseFilter(), CaseFilter([FaultKind.MISS]), CaseFilter(class_name="class 0"), CaseFilter(scores=(0.4, 0.9))]


@pytest.mark.parametrize("wanted", [*WANTED, CaseFilter(scores=(0.0, 0.1))])
@pytest.mark.parametrize("seed", [3, 10])
def test_a_csv_has_a_row_for_each_fault_of_the_list(
    seed: int, wanted: CaseFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CASES_AT_ONCE", 2)
    loaded = load(*stored(seed))
    cases, _ = find_bad_cases(loaded, 0.3, wanted, offset=0, limit=1000)
    rows = list(csv.DictReader(io.StringIO("".join(export(loaded, 0.3, wanted, ExportFormat.CSV)), newline="")))
    expected = [(case, fault) for case in cases for fault in case.faults]
    assert [(row["image_id"], row["file_name"], row["kind"]) for row in rows] == [
        (str(case.image_id), case.file_name, fault.kind.name) for case, fault in expected
    ]
    for row, (case, fault) in zip(rows, expected, strict=True):
        assert list(row) == list(CSV_COLUMNS)
        if fault.detection is None:
            assert row["score"] == row["x1"] == ""
        else:
            box = case.detections[fault.detection]
            assert (row["class"], float(row["score"]), float(row["x2"])) == (box.class_name, box.score, box.corners[2])
        if fault.truth is not None:
            assert row["truth_class"] == case.truth[fault.truth].class_name


def test_names_in_a_csv_are_no_formulas_for_a_spreadsheet() -> None:
    truth, found, scored = stored(10)
    plain = LabelledSet.from_bytes(truth)
    classes = tuple(f"=1+{name}" for name in plain.truth.classes)
    files = tuple(f"@{name}" for name in plain.source_names)
    hostile = LabelledSet(replace(plain.truth, classes=classes), plain.object_names, files)
    loaded = load(hostile.to_bytes(), found, scored)
    rows = list(csv.DictReader(io.StringIO("".join(export(loaded, 0.3, CaseFilter(), ExportFormat.CSV)), newline="")))
    assert {row["file_name"] for row in rows} <= {f"'{name}" for name in files}
    assert {row["class"] for row in rows} | {row["truth_class"] for row in rows} == {
        *(f"'{name}" for name in classes),
        "",
    }


@pytest.mark.parametrize("wanted", WANTED)
def test_coco_reads_the_labels_of_the_bad_images_and_tags_say_what_is_wrong(
    wanted: CaseFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CASES_AT_ONCE", 2)
    loaded = load(*stored(10))
    cases, _ = find_bad_cases(loaded, 0.3, wanted, offset=0, limit=1000)
    document = json.loads("".join(export(loaded, 0.3, wanted, ExportFormat.COCO)))
    assert [image["id"] for image in document["images"]] == [case.image_id for case in cases]
    truth = from_coco(document, loaded.truth.classes)
    assert truth.label.size == sum(len(case.truth) for case in cases)
    assert truth.crowd.sum() == sum(box.crowd for case in cases for box in case.truth)
    tags = {image["id"]: set(image["tags"]) for image in document["images"]}
    assert tags == {case.image_id: {fault.kind.name for fault in case.faults} for case in cases}
    marked = sum(bool(entry["tags"]) for entry in document["detections"])
    assert marked == sum(len({f.detection for f in case.faults if f.detection is not None}) for case in cases)
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    if cases:
        coco.loadRes(document["detections"])
