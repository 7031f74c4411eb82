"""Every format in, the manifest (COCO) out: the same boxes, classes and splits."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saucer.dataset.domain import LabelKind, SourceFormat
from saucer.dataset.report import ImportReason, ImportRefusedError
from tests.unit.dataset.folders import coco, image, picture, run_import, write
from tests.unit.dataset.truth import (
    CLASSES,
    TRUTH,
    as_coco,
    as_voc,
    as_voc_in_split_folders,
    as_yolo,
    as_yolo_of_darknet,
    as_yolo_of_roboflow,
    found_boxes,
    voc_file,
)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (as_coco, SourceFormat.COCO),
        (as_voc, SourceFormat.PASCAL_VOC),
        (as_voc_in_split_folders, SourceFormat.PASCAL_VOC),
        (as_yolo, SourceFormat.YOLO),
        (as_yolo_of_roboflow, SourceFormat.YOLO),
        (as_yolo_of_darknet, SourceFormat.YOLO),
    ],
)
def test_every_format_comes_out_as_the_same_boxes_classes_and_splits(
    tmp_path: Path, build: Any, expected: SourceFormat
) -> None:
    done = run_import(build(tmp_path / "f"))
    assert (done.result.source_format, done.result.label_kind) == (expected, LabelKind.BOXES)
    assert done.result.class_names == CLASSES
    assert found_boxes(done) == TRUTH
    assert done.result.statistics.total.unlabelled_images == 0
    assert done.empty == [next(name for name in done.splits if Path(name).stem == "2")]
    assert done.refused == {}


def test_every_format_makes_the_same_version(tmp_path: Path) -> None:
    hashes = {run_import(build(tmp_path / build.__name__)).result.content_hash for build in (as_coco, as_voc, as_yolo)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("said", "empty"),
    [
        ({}, False),
        ({"labels/9.txt": b""}, True),
        ({"labels/9.txt": b"\n \n"}, True),
        ({"labels/9.txt": b"0 nonsense\n"}, False),
        ({"labels/9.txt": b"0 5 5 0.1 0.1\n"}, False),
    ],
)
def test_a_yolo_image_is_empty_if_its_label_file_is_and_unlabelled_without_one(
    tmp_path: Path, said: dict[str, bytes], empty: bool
) -> None:
    done = run_import(write(as_yolo(tmp_path / "f"), {"images/9.png": picture(9), **said}))
    assert ("images/9.png" in done.empty) == empty
    assert done.result.statistics.total.unlabelled_images == (not empty)


@pytest.mark.parametrize(
    ("said", "empty"),
    [
        ({}, False),
        ({"VOC/Annotations/9.xml": voc_file([])}, True),
        ({"VOC/Annotations/9.xml": voc_file([], more="<object><name>cup</name></object>")}, False),
        ({"VOC/Annotations/9.xml": voc_file([("cup", 400, 400, 4, 4)])}, False),
    ],
)
def test_a_voc_image_is_empty_if_its_label_file_has_no_object_and_unlabelled_without_one(
    tmp_path: Path, said: dict[str, bytes], empty: bool
) -> None:
    done = run_import(write(as_voc(tmp_path / "f"), {"VOC/JPEGImages/9.png": picture(9), **said}))
    assert ("JPEGImages/9.png" in done.empty) == empty
    assert done.result.statistics.total.unlabelled_images == (not empty)


@pytest.mark.parametrize("places", ["{cls}/{n}.png", "set/{cls}/deep/{n}.png", "{split}/{cls}/{n}.png"])
def test_a_folder_for_each_class_labels_whole_images(tmp_path: Path, places: str) -> None:
    of_image = {n: (CLASSES[n % 2], ("train", "val", "test")[n % 3]) for n in range(12)}
    files = {places.format(cls=class_name, split=split, n=n): picture(n) for n, (class_name, split) in of_image.items()}
    done = run_import(write(tmp_path / "f", files))
    assert (done.result.source_format, done.result.label_kind) == (SourceFormat.CLASS_FOLDERS, LabelKind.CLASSES)
    assert done.manifest["categories"] == [{"id": 0, "name": "cup"}, {"id": 1, "name": "plate"}]
    assert all(set(annotation) == {"id", "image_id", "category_id"} for annotation in done.manifest["annotations"])
    class_of = {row["image_id"]: CLASSES[row["category_id"]] for row in done.manifest["annotations"]}
    for entry in done.manifest["images"]:
        assert f"/{class_of[entry['id']]}/" in f"/{entry['source_name']}"
        if "{split}" in places:
            assert entry["source_name"].startswith(entry["split"][:3])
    total = done.result.statistics.total
    assert (total.images, total.unlabelled_images, total.boxes) == (12, 0, 0)
    assert [(row.images, row.boxes, row.share) for row in total.classes] == [(6, 0, 0.5), (6, 0, 0.5)]
    # What Saucer wrote, it reads again.
    again = write(tmp_path / "again", {"annotations.json": done.manifest, **done.stored})
    assert run_import(again).result.content_hash == done.result.content_hash


def test_an_image_with_two_classes_has_none(tmp_path: Path) -> None:
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1},
        {"id": 2, "image_id": 1, "category_id": 2},
        {"id": 3, "image_id": 2, "category_id": 2},
    ]
    document = coco([image(1), image(2)], annotations)
    done = run_import(write(tmp_path / "f", {"annotations.json": document, "1.png": picture(1), "2.png": picture(2)}))
    assert done.result.label_kind is LabelKind.CLASSES
    assert done.refused == {"several_labels": 2}
    assert done.result.statistics.total.unlabelled_images == 1


def test_images_alone_are_imported_to_be_labelled(tmp_path: Path) -> None:
    done = run_import(
        write(tmp_path / "f", {"photos/1.png": picture(1), "photos/2.png": picture(2), "photos/a.md": b""})
    )
    assert (done.result.source_format, done.result.label_kind) == (SourceFormat.IMAGES, LabelKind.BOXES)
    assert done.result.statistics.total.unlabelled_images == 2
    assert done.result.class_names == ()


def test_a_format_that_the_caller_names_is_not_guessed(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {f"{cls}/{n}.png": picture(n + ord(cls)) for n in range(2) for cls in "ab"})
    write(folder, {"labels.json": {"images": []}})
    with pytest.raises(ImportRefusedError) as caught:
        run_import(folder)
    assert caught.value.reason is ImportReason.NOT_COCO
    done = run_import(folder, source_format=SourceFormat.CLASS_FOLDERS)
    assert done.result.class_names == ("a", "b")
    assert run_import(folder, source_format=SourceFormat.IMAGES).result.class_names == ()


DOCTYPE = b'<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no xml",
        b"<annotation><size>",
        b"<html></html>",
        DOCTYPE,
        b"<annotation>" * 40 + b"</annotation>" * 40,
        b"<annotation>" + b"<a/>" * 1_200_000 + b"</annotation>",
        b'<?xml version="1.0" encoding="klingon"?><annotation/>',
        b"<annotation><name>\xff</name></annotation>",
    ],
    ids=["empty", "text", "cut", "html", "entities", "deep", "huge", "unknown encoding", "not utf-8"],
)
def test_an_image_whose_voc_file_makes_no_sense_is_left_out(tmp_path: Path, data: bytes) -> None:
    folder = as_voc(tmp_path / "f")
    (folder / "VOC/Annotations/1.xml").write_bytes(data)
    done = run_import(folder)
    assert done.refused == {"unreadable_labels": 1}
    assert found_boxes(done) == {name: entry for name, entry in TRUTH.items() if name != "1"}


def test_voc_objects_that_make_no_sense_are_named_and_the_others_stay(tmp_path: Path) -> None:
    folder = as_voc(tmp_path / "f")
    broken = (
        b"<object><name>cup</name></object>"
        b"<object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        b"<object><name>cup</name><bndbox><xmin>NaN</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        b"<object><name>cup</name><bndbox><xmin>9</xmin><ymin>1</ymin><xmax>2</xmax><ymax>9</ymax></bndbox></object>"
        b"<object><name>cup</name><difficult>1</difficult>"
        b"<bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    ).decode()
    (folder / "VOC/Annotations/3.xml").write_bytes(voc_file(TRUTH["3"][1], more=broken))
    (folder / "VOC/Annotations/lonely.xml").write_bytes(voc_file([]))
    done = run_import(folder)
    assert done.refused == {"malformed_annotation": 2, "box_not_finite": 1, "box_no_area": 1, "missing_image": 1}
    assert [row["bbox"] for row in done.manifest["annotations"] if row["iscrowd"]] == [[2, 2, 7, 7]]
    report = done.result.report
    assert report.annotations_read == len(done.manifest["annotations"]) + 4
    assert report.images_read == len(TRUTH) + 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"0 0.5 0.5 0.1", "malformed_annotation"),
        (b"cup 0.5 0.5 0.1 0.1", "malformed_annotation"),
        (b"0 a 0.5 0.1 0.1", "malformed_annotation"),
        (b"0 0.5 0.5 0.1 0.1 0.9", "malformed_annotation"),
        (b"-1 0.5 0.5 0.1 0.1", "malformed_annotation"),
        (b"7 0.5 0.5 0.1 0.1", "unknown_category"),
        (b"0 nan 0.5 0.1 0.1", "box_not_finite"),
        (b"0 1e308 0.5 1e308 0.1", "box_not_finite"),
        (b"0 0.5 0.5 0 0.1", "box_no_area"),
        (b"0 3 3 0.1 0.1", "box_outside"),
        (b"\xff\xfe0\x00", "unreadable_labels"),
    ],
)
def test_yolo_lines_that_make_no_sense_are_named(tmp_path: Path, line: bytes, reason: str) -> None:
    folder = as_yolo(tmp_path / "f")
    (folder / "labels/train/2.txt").write_bytes(line + b"\n\n")
    done = run_import(folder)
    assert done.refused == {reason: 1}
    (example,) = (example for examples in done.result.report.examples.values() for example in examples)
    assert "2." in example.item


def test_a_yolo_polygon_is_the_box_around_it(tmp_path: Path) -> None:
    folder = as_yolo(tmp_path / "f")
    (folder / "labels/train/2.txt").write_bytes(b"1 0.25 0.25 0.5 0.75 0.125 0.5\n")
    assert found_boxes(run_import(folder))["2"][1] == [("plate", 8, 12, 24, 24)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (b"nc: 2\n", ImportReason.NO_CLASS_NAMES),
        (b"names: 3\n", ImportReason.NO_CLASS_NAMES),
        (b"names: [cup, [plate]]\n", ImportReason.NO_CLASS_NAMES),
        (b"names: {a: cup}\n", ImportReason.NO_CLASS_NAMES),
        (b"names: [cup\n", ImportReason.NOT_YAML),
        (b"? [a]\n: names\n", ImportReason.NOT_YAML),
        (b"names: \xff\n", ImportReason.WRONG_ENCODING),
        (b"names: " + b"[" * 5_000, ImportReason.NESTED_TOO_DEEP),
        (b"#" * 1_100_000, ImportReason.LABEL_FILE_TOO_LARGE),
    ],
)
def test_a_yolo_set_without_usable_names_is_refused(tmp_path: Path, settings: bytes, reason: ImportReason) -> None:
    folder = as_yolo(tmp_path / "f")
    (folder / "data.yaml").write_bytes(settings)
    with pytest.raises(ImportRefusedError) as caught:
        run_import(folder)
    assert caught.value.reason is reason


def test_class_names_are_text_whatever_yaml_makes_of_them_and_may_be_a_list_of_lines(tmp_path: Path) -> None:
    folder = as_yolo(tmp_path / "f")
    (folder / "data.yaml").write_bytes(b"names: [no, 12]\n")
    assert run_import(folder).result.class_names == ("no", "12")
    (folder / "data.yaml").write_bytes(b"names: !!python/object/apply:os.system [ls, rm]\n")
    assert run_import(folder).result.class_names == ("ls", "rm")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_bytes(b"cup\nplate\n\n")
    assert run_import(folder).result.class_names == CLASSES


@pytest.mark.parametrize(("shape", "points"), [(b"[2, 3]", b"0.9 0.9 2 0 0 0"), (b"[2, 2]", b"0.9 0.9 0 0")])
def test_the_key_points_of_a_yolo_box_do_not_change_it(tmp_path: Path, shape: bytes, points: bytes) -> None:
    folder = as_yolo(tmp_path / "f")
    (folder / "data.yaml").write_bytes((folder / "data.yaml").read_bytes() + b"kpt_shape: " + shape)
    (folder / "labels/train/2.txt").write_bytes(b"1 0.5 0.5 0.25 0.25 " + points + b"\n1 0.25 0.5 0.25\n")
    done = run_import(folder)
    assert found_boxes(done)["2"][1] == [("plate", 24, 18, 16, 12)]
    assert done.refused == {"malformed_annotation": 1}


@pytest.mark.parametrize("content", [{"categories": [{"id": 0}, 5], "info": {"year": 2024}}, b"[]"])
def test_json_of_something_else_does_not_hide_the_labels_beside_it(tmp_path: Path, content: Any) -> None:
    folder = write(as_yolo(tmp_path / "f"), {"notes.json": content})
    done = run_import(folder)
    assert (done.result.source_format, found_boxes(done), done.refused) == (SourceFormat.YOLO, TRUTH, {})
    with pytest.raises(ImportRefusedError) as caught:
        run_import(folder, source_format=SourceFormat.COCO)
    assert caught.value.reason is ImportReason.NOT_COCO
    with pytest.raises(ImportRefusedError) as caught:
        run_import(write(tmp_path / "alone", {"notes.json": content, "1.png": picture(1)}))
    assert caught.value.reason is ImportReason.NOT_COCO


@pytest.mark.parametrize("more", ["test/{n}.png", "{n}.png"])
def test_images_beside_class_folders_have_no_label_and_leave_the_others_theirs(tmp_path: Path, more: str) -> None:
    files = {f"train/{CLASSES[n % 2]}/{n}.png": picture(n) for n in range(10)}
    files |= {more.format(n=n): picture(n) for n in range(10, 13)}
    done = run_import(write(tmp_path / "f", files))
    assert (done.result.source_format, done.result.class_names) == (SourceFormat.CLASS_FOLDERS, CLASSES)
    total = done.result.statistics.total
    assert (total.images, total.unlabelled_images) == (13, 3)
    if more.startswith("test"):
        assert {name for name, split in done.splits.items() if split == "test"} == {
            f"test/{n}.png" for n in (10, 11, 12)
        }


def test_folders_of_splits_and_an_image_beside_them_are_no_classes(tmp_path: Path) -> None:
    files = {"train/1.png": picture(1), "test/2.png": picture(2), "cover.png": picture(3)}
    assert run_import(write(tmp_path / "f", files)).result.source_format is SourceFormat.IMAGES


def spelled_coco(image_name: str, label_name: str) -> dict[str, Any]:
    images = [image(1), image(2, file_name=f"{label_name}.png", split="test")]
    annotations = [{"id": 1, "image_id": 2, "category_id": 1, "bbox": [8, 6, 48, 36]}]
    files: dict[str, Any] = {"images/1.png": picture(1), f"images/{image_name}.png": picture(2)}
    return files | {"annotations.json": coco(images, annotations)}


def spelled_voc(image_name: str, label_name: str) -> dict[str, Any]:
    return {
        "JPEGImages/1.png": picture(1),
        f"JPEGImages/{image_name}.png": picture(2),
        f"Annotations/{label_name}.xml": voc_file([("cup", 8, 6, 48, 36)]),
        "ImageSets/Main/test.txt": f"{label_name}\n".encode(),
    }


def spelled_yolo(image_name: str, label_name: str) -> dict[str, Any]:
    return {
        "data.yaml": b"names: [cup]\n",
        "images/1.png": picture(1),
        f"images/{image_name}.png": picture(2),
        f"labels/{label_name}.txt": b"0 0.5 0.5 0.75 0.75\n",
        "test.txt": f"images/{label_name}.png\n".encode(),
    }


@pytest.mark.parametrize(("on_disk", "in_labels"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
@pytest.mark.parametrize("build", [spelled_coco, spelled_voc, spelled_yolo])
def test_a_name_is_the_same_however_unicode_spells_it(
    tmp_path: Path, build: Callable[[str, str], dict[str, Any]], on_disk: Any, in_labels: Any
) -> None:
    image_name, label_name = (unicodedata.normalize(form, "Käse") for form in (on_disk, in_labels))
    done = run_import(write(tmp_path / "f", build(image_name, label_name)))
    assert done.boxes == [[8, 6, 48, 36]]
    assert {unicodedata.normalize("NFC", Path(name).stem): split for name, split in done.splits.items()} == {
        "Käse": "test",
        "1": "train",
    }
    assert done.refused == {}


def test_of_two_spellings_the_one_that_a_label_file_has_is_taken(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD")]
    files: dict[str, Any] = {"data.yaml": b"names: [cup]\n"}
    for number, name in enumerate(names, 1):
        files |= {f"images/{name}.png": picture(number), f"labels/{name}.txt": f"0 0.5 0.5 {number / 4} 0.5\n".encode()}
    done = run_import(write(tmp_path / "f", files))
    widths = {row["image_id"]: row["bbox"][2] for row in done.manifest["annotations"]}
    assert {entry["source_name"]: widths[entry["id"]] for entry in done.manifest["images"]} == {
        f"images/{names[0]}.png": 16,
        f"images/{names[1]}.png": 32,
    }


@pytest.mark.parametrize("build", [as_voc, as_yolo, as_yolo_of_darknet])
def test_endings_may_be_in_capitals(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    folder = build(tmp_path / "f")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.rename(path.with_suffix(path.suffix.upper()))
    done = run_import(folder)
    assert found_boxes(done) == TRUTH
    assert done.refused == {}


@pytest.mark.parametrize(("text", "crowd"), [("True", 1), ("true", 1), ("False", 0), ("0", 0)])
def test_a_difficult_voc_object_may_be_called_so_in_words(tmp_path: Path, text: str, crowd: int) -> None:
    folder = as_voc(tmp_path / "f")
    path = folder / "VOC/Annotations/3.xml"
    path.write_bytes(path.read_bytes().replace(b"<difficult>0", b"<difficult>" + text.encode()))
    done = run_import(folder)
    assert [row["iscrowd"] for row in done.manifest["annotations"] if row["bbox"] == [20, 7, 31, 40]] == [crowd]
