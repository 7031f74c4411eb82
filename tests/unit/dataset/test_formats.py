"""Every format in, the manifest (COCO) out: the same boxes, classes and splits."""

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest

from saucer.dataset.domain import LabelKind, SourceFormat
from saucer.dataset.report import ImportReason, ImportRefusedError
from tests.unit.dataset.folders import HEIGHT, WIDTH, Imported, coco, image, picture, run_import, write

Box = tuple[str, float, float, float, float]

# Of each image: its split, and class, x, y, width, height of its boxes.
TRUTH: dict[str, tuple[str, list[Box]]] = {
    "1": ("train", [("cup", 4, 4, 10, 10), ("plate", 0, 0, WIDTH, HEIGHT)]),
    "2": ("train", []),
    "3": ("validation", [("plate", 20, 7, 31, 40)]),
    "4": ("test", [("cup", 1, 2, 3, 4), ("cup", 50, 40, 14, 8)]),
}
CLASSES = ("cup", "plate")
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def as_coco(folder: Path) -> Path:
    number = 0
    annotations = []
    for name, (_, boxes) in TRUTH.items():
        for class_name, *xywh in boxes:
            number += 1
            category = 1 + CLASSES.index(class_name)
            annotations.append({"id": number, "image_id": int(name), "category_id": category, "bbox": xywh})
    images = [image(int(name), split=split) for name, (split, _) in TRUTH.items()]
    return write(folder, {"annotations.json": coco(images, annotations), **pictures("images/{name}.png")})


def pictures(path: str) -> dict[str, bytes]:
    return {path.format(name=name, split=FOLDERS[split]): picture(int(name)) for name, (split, _) in TRUTH.items()}


def voc_file(boxes: list[Box], size: tuple[int, int] = (WIDTH, HEIGHT), more: str = "") -> bytes:
    objects = "".join(
        f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox>"
        f"<part><name>rim</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        for name, x, y, width, height in boxes
    )
    return (
        f"<annotation><filename>old name.jpg</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
        f"<depth>3</depth></size>{objects}{more}</annotation>"
    ).encode()


def as_voc(folder: Path) -> Path:
    files = {f"VOC/Annotations/{name}.xml": voc_file(boxes) for name, (_, boxes) in TRUTH.items()}
    for split, listed in FOLDERS.items():
        lines = "".join(f"{name}\n" for name, (own, _) in TRUTH.items() if own == split)
        files[f"VOC/ImageSets/Main/{listed}.txt"] = lines.encode()
    files["VOC/ImageSets/Main/cup_train.txt"] = b"1  1\n4 -1\n"
    return write(folder, files | pictures("VOC/JPEGImages/{name}.png"))


def as_voc_in_split_folders(folder: Path) -> Path:
    files = {f"{FOLDERS[split]}/{name}.xml": voc_file(boxes, (0, 0)) for name, (split, boxes) in TRUTH.items()}
    return write(folder, files | pictures("{split}/{name}.png"))


def yolo_lines(boxes: list[Box]) -> bytes:
    return "".join(
        f"{CLASSES.index(name)} {(x + width / 2) / WIDTH} {(y + height / 2) / HEIGHT} {width / WIDTH} "
        f"{height / HEIGHT}\n"
        for name, x, y, width, height in boxes
    ).encode()


def labels(path: str) -> dict[str, bytes]:
    """Of those that have a box: an image without a label file has none."""
    return {
        path.format(name=name, split=FOLDERS[split]): yolo_lines(boxes)
        for name, (split, boxes) in TRUTH.items()
        if boxes
    }


def as_yolo(folder: Path) -> Path:
    settings = (
        b"path: ../datasets/mine\ntrain: images/train\nval: images/val\ntest: images/test\n"
        b"names:\n  0: cup\n  1: plate\n"
    )
    files = labels("labels/{split}/{name}.txt") | pictures("images/{split}/{name}.png")
    return write(folder, files | {"data.yaml": settings})


def as_yolo_of_roboflow(folder: Path) -> Path:
    settings = b"train: ../train/images\nval: ../val/images\ntest: ../test/images\nnc: 2\nnames: ['cup', 'plate']\n"
    files = labels("{split}/labels/{name}.txt") | pictures("{split}/images/{name}.png")
    return write(folder, files | {"data.yaml": settings, "README.txt": b"exported"})


def as_yolo_of_darknet(folder: Path) -> Path:
    files = labels("obj_train_data/{name}.txt") | pictures("obj_train_data/{name}.png") | {"obj.names": b"cup\nplate\n"}
    for split, listed in FOLDERS.items():
        lines = "".join(f"data/obj_train_data/{name}.png\n" for name, (own, _) in TRUTH.items() if own == split)
        files[f"{listed}.txt"] = lines.encode()
    return write(folder, files)


def found_boxes(done: Imported) -> dict[str, tuple[str, list[Box]]]:
    names = {category["id"]: category["name"] for category in done.manifest["categories"]}
    found: dict[str, tuple[str, list[Box]]] = {}
    for entry in done.manifest["images"]:
        boxes = [
            (names[annotation["category_id"]], *annotation["bbox"])
            for annotation in done.manifest["annotations"]
            if annotation["image_id"] == entry["id"]
        ]
        found[Path(entry["source_name"]).stem] = entry["split"], boxes
    return dict(sorted(found.items()))


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
    assert done.refused == {}


def test_every_format_makes_the_same_version(tmp_path: Path) -> None:
    hashes = {run_import(build(tmp_path / build.__name__)).result.content_hash for build in (as_coco, as_voc, as_yolo)}
    assert len(hashes) == 1


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
    write(folder, {"class_indices.json": {"a": 0}})
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


def test_label_files_of_the_same_name_in_several_splits_belong_to_their_own_images(tmp_path: Path) -> None:
    files = {"data.yaml": b"names: [cup]\n"}
    for number, split in enumerate(("train", "valid", "test"), 1):
        files[f"{split}/images/0.png"] = picture(number)
        if split != "valid":
            files[f"{split}/labels/0.txt"] = f"0 0.5 0.5 {number / 4} 0.5\n".encode()
    done = run_import(write(tmp_path / "f", files))
    widths = {
        entry["source_name"].split("/")[0]: [
            row["bbox"][2] for row in done.manifest["annotations"] if row["image_id"] == entry["id"]
        ]
        for entry in done.manifest["images"]
    }
    assert widths == {"train": [16], "valid": [], "test": [48]}
