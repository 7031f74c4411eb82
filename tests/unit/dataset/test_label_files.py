"""Label files as hostile or careless tools write them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from saucer.dataset.importer import ImportLimits
from saucer.dataset.labels import LabelLimits
from saucer.dataset.report import ImportReason, ImportRefusedError
from tests.unit.dataset.folders import box, coco, image, picture, run_import, simple, write


def refusal(folder: Path, content: bytes, limits: LabelLimits | None = None) -> ImportRefusedError:
    write(folder, {"annotations.json": content, "images/1.png": picture(1)})
    with pytest.raises(ImportRefusedError) as caught:
        run_import(folder, limits=ImportLimits(labels=limits or LabelLimits()))
    assert "annotations.json" in caught.value.sentence
    assert not list(folder.parent.glob("*.manifest.json"))
    return caught.value


def text(**changes: Any) -> str:
    return json.dumps(coco([image(1)], [box(1, 1)]) | changes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"<xml/>",
        text()[:-1].encode(),
        text().encode() + b"x",
        text().replace("10]", "NaN]").encode(),
        text().replace("10]", "Infinity]").encode(),
        text().replace("10]", "1e999]").encode(),
        text().replace('"image_id": 1', '"image_id": 99999999999999999999').encode(),
        text().replace('"id": 1', "'id': 1").encode(),
    ],
)
def test_what_is_not_json_is_refused_as_a_whole(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path / "f", content).reason is ImportReason.NOT_JSON


@pytest.mark.parametrize(
    "content",
    [
        text().encode("utf-16"),
        text().encode("utf-16-be"),
        text().encode("utf-32"),
        text().replace("cup", "tasse à café").replace("\\u00e0", "à").encode("latin-1"),
    ],
)
def test_other_encodings_than_utf8_are_refused(tmp_path: Path, content: bytes) -> None:
    if content.startswith(b"{") and b"\0" not in content:
        content = content.replace(b"tasse", b"\xe0\xe9")
    assert refusal(tmp_path / "f", content).reason is ImportReason.WRONG_ENCODING


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    write(tmp_path / "f", {"annotations.json": text().encode("utf-8-sig"), "images/1.png": picture(1)})
    assert len(run_import(tmp_path / "f").boxes) == 1


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "5",
        "{}",
        '{"images": [], "annotations": []}',
        '{"images": {}, "annotations": [], "categories": []}',
        '{"images": null, "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": [], "images": []}',
    ],
)
def test_other_json_is_refused_as_no_coco(tmp_path: Path, content: str) -> None:
    assert refusal(tmp_path / "f", content.encode()).reason is ImportReason.NOT_COCO


@pytest.mark.parametrize("place", ["info", "images", "annotations"])
def test_deep_nesting_is_refused(tmp_path: Path, place: str) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    content = text().replace('{"images": [', f'{{"info": {deep}, "images": [' if place == "info" else '{"images": [')
    if place != "info":
        content = content.replace(f'"{place}": [', f'"{place}": [{deep},')
    assert refusal(tmp_path / "f", content.encode()).reason is ImportReason.NESTED_TOO_DEEP


def test_a_single_huge_value_is_refused(tmp_path: Path) -> None:
    content = text(info="x" * 20_000_000).encode()
    assert refusal(tmp_path / "f", content).reason is ImportReason.NOT_JSON


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (LabelLimits(max_label_file_bytes=10), ImportReason.LABEL_FILE_TOO_LARGE),
        (LabelLimits(max_images=2), ImportReason.TOO_MANY_IMAGES),
        (LabelLimits(max_annotations=2), ImportReason.TOO_MANY_ANNOTATIONS),
        (LabelLimits(max_categories=2), ImportReason.TOO_MANY_CATEGORIES),
    ],
)
def test_each_limit_has_its_reason_and_counts_broken_entries_too(
    tmp_path: Path, limits: LabelLimits, reason: ImportReason
) -> None:
    content = json.dumps({"images": [0, [], {}], "annotations": [None, "x", {}], "categories": [0, 0, 0]})
    if reason is ImportReason.TOO_MANY_ANNOTATIONS:
        content = json.dumps({"annotations": [None, "x", {}], "images": [], "categories": []})
    if reason is ImportReason.TOO_MANY_CATEGORIES:
        content = json.dumps({"categories": [0, [], {}], "images": [], "annotations": []})
    assert refusal(tmp_path / "f", content.encode(), limits).reason is reason


def test_limits_are_over_all_label_files(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        f"{s}.json": coco([image(1)], [box(1, 1), box(2, 1, 20, 20, 9, 9)]) for s in ("train", "val")
    }
    write(tmp_path / "f", files | {"1.png": picture(1)})
    with pytest.raises(ImportRefusedError) as caught:
        run_import(tmp_path / "f", limits=ImportLimits(labels=LabelLimits(max_annotations=3)))
    assert caught.value.reason is ImportReason.TOO_MANY_ANNOTATIONS


BROKEN_ANNOTATIONS: list[Any] = [
    None,
    7,
    [],
    {},
    {**box(1, 1), "id": "1"},
    {**box(1, 1), "id": True},
    {**box(1, 1), "image_id": 1.5},
    {**box(1, 1), "category_id": {}},
    {**box(1, 1), "bbox": ["1", 2, 3, 4]},
    {**box(1, 1), "bbox": [1, 2, 3]},
    {**box(1, 1), "bbox": [1, 2, 3, 4, 5]},
    {**box(1, 1), "bbox": [1, 2, 3, None]},
    {**box(1, 1), "bbox": [[1, 2], 3, 4, 5]},
    {**box(1, 1), "bbox": {"x": 1}},
    {**box(1, 1), "bbox": None},
    {**box(1, 1), "iscrowd": "1"},
    {key: value for key, value in box(1, 1).items() if key != "bbox"},
]


def test_a_broken_annotation_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    done = run_import(simple(tmp_path / "f", [*BROKEN_ANNOTATIONS, box(99, 1)]))
    assert done.refused == {"malformed_annotation": len(BROKEN_ANNOTATIONS)}
    assert done.boxes == [[4, 4, 10, 10]]
    assert done.result.report.annotations_read == len(BROKEN_ANNOTATIONS) + 1


def test_segmentations_and_unknown_keys_are_skipped(tmp_path: Path) -> None:
    extra = {
        "segmentation": {"counts": [1, 2], "size": [3, 4], "bbox": [9]},
        "attributes": {"bbox": [0, 0, 1, 1], "id": 5, "deep": [[{"id": [6]}]]},
        "keypoints": [1, 2, 3],
    }
    document = coco([image(1, license={"id": 7})], [{**extra, **box(1, 1), **extra, "id": 1.0}])
    document["info"] = {"images": [1], "annotations": {"id": 3}}
    document["bbox"] = [1, 2]
    write(tmp_path / "f", {"annotations.json": document, "images/1.png": picture(1)})
    done = run_import(tmp_path / "f")
    assert done.boxes == [[4, 4, 10, 10]]
    assert not done.refused


def test_broken_images_take_their_annotations_with_them(tmp_path: Path) -> None:
    broken = [
        image(2, width="64"),
        image(3, height=0),
        image(4, file_name=5),
        image(5, file_name=""),
        image(6, file_name="x" * 2000),
        image(7, split="holdout"),
    ]
    document = coco([image(1), *broken, 9, {"id": None}], [box(n, n) for n in range(1, 8)])
    write(tmp_path / "f", {"annotations.json": document} | {f"images/{n}.png": picture(n) for n in range(1, 8)})
    done = run_import(tmp_path / "f")
    assert done.refused == {"malformed_image": 8, "image_refused": 6}
    assert len(done.boxes) == 1


def test_images_may_leave_out_their_size(tmp_path: Path) -> None:
    document = coco([{"id": 1, "file_name": "1.png"}])
    write(tmp_path / "f", {"annotations.json": document, "1.png": picture(1)})
    assert run_import(tmp_path / "f").manifest["images"][0]["width"] == 64


def test_categories_are_renumbered_in_order_of_id_and_stripped(tmp_path: Path) -> None:
    categories = [
        {"id": 90, "name": " tray"},
        {"id": 7, "name": "cup\n"},
        {"id": 8, "name": ""},
        {"id": "9", "name": "x"},
    ]
    done = run_import(simple(tmp_path / "f", [box(1, 1, category=90), box(2, 1, category=8)], categories=categories))
    assert done.manifest["categories"] == [{"id": 0, "name": "cup"}, {"id": 1, "name": "tray"}]
    assert done.manifest["annotations"][0]["category_id"] == 1
    assert done.refused == {"malformed_category": 2, "unknown_category": 1}
    assert done.result.statistics.classes_without_boxes == ("cup",)


def test_a_name_under_two_ids_with_boxes_is_refused(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "cup "}]
    folder = simple(tmp_path / "f", [box(1, 1), box(2, 1, 9, 9, 9, 9, category=2)], categories=categories)
    with pytest.raises(ImportRefusedError) as caught:
        run_import(folder)
    assert caught.value.reason is ImportReason.DUPLICATE_CATEGORY


def test_an_empty_category_of_a_real_ones_name_is_left_out(tmp_path: Path) -> None:
    categories = [{"id": 0, "name": "cup"}, {"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]
    done = run_import(simple(tmp_path / "f", [box(1, 1, category=1)], categories=categories))
    assert done.result.class_names == ("cup", "plate")
    assert done.manifest["annotations"][0]["category_id"] == 0
    assert done.refused == {"duplicate_category": 1}


def test_an_id_with_two_names_is_refused(tmp_path: Path) -> None:
    one = coco([image(1)], categories=[{"id": 1, "name": "cup"}])
    other = coco([image(1)], categories=[{"id": 1, "name": "plate"}])
    write(tmp_path / "f", {"train.json": one, "val.json": other, "1.png": picture(1)})
    with pytest.raises(ImportRefusedError) as caught:
        run_import(tmp_path / "f")
    assert caught.value.reason is ImportReason.DUPLICATE_CATEGORY


MEASURE = """
import resource, sys
from pathlib import Path
from saucer.dataset.labels import LabelLimits
from saucer.dataset.importer import ImportLimits, import_folder
from saucer.dataset.report import ImportRefusedError

base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    result = import_folder(Path(sys.argv[1]), sink=lambda *_: None, progress=lambda *_: None,
                           manifest_path=Path(sys.argv[2]), listing_path=Path(sys.argv[2] + ".list"), seed=0,
                           limits=ImportLimits(labels=LabelLimits(max_annotations=int(sys.argv[3]))))
    outcome = result.statistics.total.boxes
except ImportRefusedError as refused:
    outcome = refused.reason.value
print(outcome, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


def measure(folder: Path, max_annotations: int) -> tuple[str, int]:
    """Outcome, and by how many MiB the import's process grew."""
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(folder.parent / "manifest.json"), str(max_annotations)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    return answer[0], int(answer[1])


LONG_IMAGES = 20


def write_long(folder: Path, count: int) -> None:
    """A label file of `count` annotations of LONG_IMAGES images, each with a polygon, never whole in memory."""
    write(folder, {f"images/{number}.png": picture(number) for number in range(1, LONG_IMAGES + 1)})
    polygon = ",".join(["12.5"] * 16)
    images = [image(number) for number in range(1, LONG_IMAGES + 1)]
    with (folder / "annotations.json").open("w") as file:
        file.write(json.dumps(coco(images))[:-1].replace('"annotations": [], ', "") + ', "annotations": [')
        for n in range(1, count + 1):
            place = f"{n % 50}.{n % 997},{n % 35}.{n % 991}"
            file.write(
                f'{{"id":{n},"image_id":{1 + n % LONG_IMAGES},"category_id":1,"segmentation":[[{polygon}]],'
                f'"bbox":[{place},9,9]}}' + ("," if n < count else "")
            )
        file.write("]}")


def test_hundreds_of_thousands_of_annotations_are_read_in_bounded_memory(tmp_path: Path) -> None:
    write_long(tmp_path / "f", 150_000)
    size_mb = (tmp_path / "f/annotations.json").stat().st_size >> 20
    outcome, grown_mb = measure(tmp_path / "f", 150_000)
    assert int(outcome) > 149_000
    assert size_mb > 20
    assert grown_mb < 90


def test_a_file_of_too_many_entries_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    write(tmp_path / "f", {"images/1.png": picture(1)})
    content = b'{"categories":[],"images":[],"annotations":[' + b"0," * 10_000_000 + b"0]}"
    (tmp_path / "f/annotations.json").write_bytes(content)
    outcome, grown_mb = measure(tmp_path / "f", 500_000)
    assert outcome == "too_many_annotations"
    assert grown_mb < 60
