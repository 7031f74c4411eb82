"""A whole folder becomes a version: layouts, refused items, splits and hashes."""

import io
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saucer.dataset.images import ImageLimits
from saucer.dataset.importer import ImportLimits, import_folder
from saucer.dataset.labels import MAX_BOXES_PER_IMAGE
from saucer.dataset.report import MAX_REPORTED, ImportReason, ImportRefusedError, ItemReason
from saucer.dataset.splits import Split
from tests.unit.dataset.folders import HEIGHT, WIDTH, Imported, box, coco, image, picture, run_import, simple, write

ONE = coco([image(1)], [box(1, 1)])


def refused_as(folder: Path) -> ImportReason:
    with pytest.raises(ImportRefusedError) as caught:
        run_import(folder)
    assert str(folder) not in caught.value.sentence
    return caught.value.reason


@pytest.mark.parametrize(
    "files",
    [
        ["annotations.json", "1.png"],
        ["annotations.json", "images/1.png"],
        ["annotations.json", "data/1.png"],
        ["labels.json", "data/1.png"],
        ["annotations/whatever.json", "images/1.png"],
        ["annotations/instances_default.json", "images/default/1.png"],
        ["annotations/instances_default.json", "annotations/1.png"],
        ["annotations.json", "other.json", "images/1.png"],
        ["wrapped/data set/annotations.json", "wrapped/data set/images/1.png", "__MACOSX/._a.json", ".DS_Store"],
        ["test.json", "1.png"],
    ],
)
def test_single_label_files_are_found(tmp_path: Path, files: list[str]) -> None:
    contents: dict[str, Any] = {
        name: picture(1) if name.endswith("png") else b"no json" if "other" in name or "/._" in name else ONE
        for name in files
    }
    done = run_import(write(tmp_path / "f", contents))
    assert done.boxes == [[4, 4, 10, 10]]
    assert done.splits == {"1.png": "train"}


@pytest.mark.parametrize(
    ("labels", "images"),
    [
        ("annotations/{}.json", "images/{}.png"),
        ("annotations/instances_{}2017.json", "{}2017/{}.png"),
        ("annotations/instances_{}2017.json", "images/{}2017/{}.png"),
        ("{}.json", "{}/{}.png"),
        ("{}.json", "{}/images/{}.png"),
        ("{}/_annotations.coco.json", "{}/{}.png"),
    ],
)
@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_split_files_are_found_and_ids_are_each_files_own(
    tmp_path: Path, labels: str, images: str, validation: str
) -> None:
    files: dict[str, Any] = {"annotations/captions_train2017.json": b"not looked at"}
    for number, split in enumerate(["train", validation, "test"]):
        files[labels.format(split)] = coco(
            [image(1, file_name=f"{split}.png")], [box(1, 1, 1 + number, 1, 9, 9)], [{"id": 1, "name": "cup"}]
        )
        files[images.format(split, split)] = picture(number)
    done = run_import(write(tmp_path / "f", files))
    assert done.splits == {"train.png": "train", f"{validation}.png": "validation", "test.png": "test"}
    assert sorted(done.boxes) == [[1, 1, 9, 9], [2, 1, 9, 9], [3, 1, 9, 9]]


def test_each_split_file_has_its_own_image_of_the_same_name(tmp_path: Path) -> None:
    files: dict[str, Any] = {"annotations/instances_train2017.json": ONE, "annotations/instances_val2017.json": ONE}
    files |= {"train2017/1.png": picture(1), "val2017/1.png": picture(2)}
    assert len(run_import(write(tmp_path / "f", files)).manifest["images"]) == 2


def test_folders_without_one_clear_label_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "none", {"1.png": picture(1), "a/b.json": b"", "c/d": b""})
    write(tmp_path / "two", {"a.json": ONE, "b.json": ONE})
    write(tmp_path / "twice", {"train.json": ONE, "annotations/instances_train2017.json": ONE})
    write(tmp_path / "link", {"real.txt": json.dumps(ONE).encode()})
    (tmp_path / "link/annotations.json").symlink_to("real.txt")
    assert refused_as(tmp_path / "none") is ImportReason.NO_LABEL_FILE
    assert refused_as(tmp_path / "link") is ImportReason.NO_LABEL_FILE
    assert refused_as(tmp_path / "two") is ImportReason.AMBIGUOUS_LAYOUT
    assert refused_as(tmp_path / "twice") is ImportReason.AMBIGUOUS_LAYOUT


def test_an_import_without_one_usable_image_is_refused_with_its_report(tmp_path: Path) -> None:
    write(tmp_path / "f", {"annotations.json": coco([image(1), image(2)])})
    with pytest.raises(ImportRefusedError) as caught:
        run_import(tmp_path / "f")
    assert caught.value.reason is ImportReason.NO_USABLE_IMAGE
    assert caught.value.report is not None
    assert caught.value.report.as_json()["refused"] == {"missing_image": 2}
    assert not (tmp_path / "f.manifest.json").exists()


@pytest.mark.parametrize(
    ("file_name", "reason"),
    [
        ("../secret.png", "climbing_path"),
        ("images/../../secret.png", "climbing_path"),
        ("/secret.png", "climbing_path"),
        ("..\\secret.png", "climbing_path"),
        ("C:\\secret.png", "climbing_path"),
        ("link.png", "link"),
        ("linked/secret.png", "link"),
        ("pipe.png", "missing_image"),
        ("folder.png", "missing_image"),
        ("1.png/x.png", "missing_image"),
        ("none.png", "missing_image"),
        (".", "missing_image"),
        ("n" * 300, "missing_image"),
        ("nul\0.png", "climbing_path"),
        ("text.png", "unreadable_image"),
        ("cut.png", "unreadable_image"),
        ("large.png", "image_too_large"),
        ("small.png", "image_too_small"),
        ("./1.png", "duplicate_image"),
        ("same.png", "duplicate_image"),
        ("wide.png", "size_mismatch"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_and_takes_its_boxes_with_it(
    tmp_path: Path, file_name: str, reason: str
) -> None:
    (tmp_path / "secret.png").write_bytes(picture(9))
    document = coco([image(1), image(2, file_name=file_name)], [box(1, 1), box(2, 2), box(3, 2, 1, 1, 3, 3)])
    files = {
        "1.png": picture(1),
        "same.png": picture(1),
        "text.png": b"hello",
        "cut.png": picture(2)[:500],
        "large.png": picture(3, 300, 300),
        "small.png": picture(3, 4, 4),
        "wide.png": picture(3, 65, 48),
        "folder.png/x": b"",
    }
    folder = write(tmp_path / "f", {"annotations.json": document} | {f"images/{name}": d for name, d in files.items()})
    (folder / "images/link.png").symlink_to("../../secret.png")
    (folder / "images/linked").symlink_to("../..")
    os.mkfifo(folder / "images/pipe.png")
    # "./1.png" sorts before "1.png", and the first in that order wins: either way one of them stays.
    done = run_import(folder, limits=ImportLimits(images=ImageLimits(max_pixels=80_000)))
    boxes = 1 if file_name != "./1.png" else 2
    assert done.refused == {reason: 1, "image_refused": 3 - boxes}
    assert len(done.manifest["images"]) == 1
    assert len(done.boxes) == boxes
    example = next(e for e in done.result.report.examples.values() if e[0].reason == reason)[0]
    assert example.kind == "image"
    assert example.sentence.endswith(".")
    assert str(tmp_path) not in example.sentence


def test_annotations_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    annotations = [
        box(1, 1),
        box(1, 1, 30, 30, 5, 5),
        box(2, 77),
        box(3, 1, category=77),
        box(4, 1, 1e308, 0, 1e308, 5),
        box(5, 1, 5, 5, 0, 5),
        box(6, 1, 5, 5, 5, -5),
        box(7, 1, WIDTH, 0, 5, 5),
        box(8, 1, -20, -20, 5, 5),
        box(9, 1),
        box(10, 1, category=2),
        box(11, 1, 60, 40, 20, 20),
        box(12, 1, 2, 2, 9, 9, iscrowd=1, segmentation={"counts": "abc", "size": [48, 64]}),
    ]
    done = run_import(simple(tmp_path / "f", annotations))
    assert done.refused == {
        "duplicate_id": 1,
        "unknown_image": 1,
        "unknown_category": 1,
        "box_not_finite": 1,
        "box_no_area": 2,
        "box_outside": 2,
        "duplicate_box": 1,
    }
    accepted = [(a["bbox"], a["category_id"], a["iscrowd"]) for a in done.manifest["annotations"]]
    assert accepted == [
        ([2, 2, 9, 9], 0, 1),
        ([4, 4, 10, 10], 0, 0),
        ([60, 40, 4, 8], 0, 0),
        ([4, 4, 10, 10], 1, 0),
    ]
    report = done.result.report
    assert report.clipped_boxes == 1
    assert report.annotations_read == len(annotations) == len(accepted) + sum(done.refused.values())
    assert done.result.statistics.total.crowd_boxes == 1


def test_boxes_beyond_the_limit_of_an_image_are_left_out(tmp_path: Path) -> None:
    boxes = [box(n, 1 + n % 2, n % 50 + n / 1e5, n % 30 + n / 1e5, 5, 5) for n in range(1, 2 * MAX_BOXES_PER_IMAGE + 8)]
    done = run_import(simple(tmp_path / "f", boxes, count=2))
    assert done.refused == {"too_many_boxes": 7}
    assert len(done.boxes) == 2 * MAX_BOXES_PER_IMAGE


def test_the_report_is_bounded(tmp_path: Path) -> None:
    annotations = [box(n, 1, WIDTH + n, 0, 5, 5) for n in range(500)] + [box(n, 1, 0, 0, 0, 1) for n in range(500, 900)]
    name = "x" * 900 + ".png"
    write(tmp_path / "f", {"annotations.json": coco([image(1), image(2, file_name=name)], annotations)})
    write(tmp_path / "f", {"1.png": picture(1)})
    report = run_import(tmp_path / "f").result.report
    content = report.as_json()
    assert content["refused"] == {"missing_image": 1, "box_no_area": 400, "box_outside": 500}
    assert isinstance(content["examples"], list)
    assert len(content["examples"]) == 1 + 2 * MAX_REPORTED
    assert report.emptied_images == 1
    assert len(json.dumps(content)) < 50_000


def test_images_twice_by_id_name_and_content(tmp_path: Path) -> None:
    images = [
        image(1),
        image(1, file_name="2.png"),
        image(3, file_name="1.png"),
        image(4, file_name="copy.png"),
        image(5),
    ]
    annotations = [box(1, 1), box(2, 3), box(3, 4), box(4, 5)]
    files: dict[str, Any] = {"1.png": picture(1), "2.png": picture(2), "copy.png": picture(1), "5.png": picture(5)}
    done = run_import(write(tmp_path / "f", {"annotations.json": coco(images, annotations)} | files))
    assert done.refused == {"duplicate_image": 3, "image_refused": 2}
    assert set(done.splits) == {"1.png", "5.png"}


@pytest.mark.parametrize("in_one_file", [True, False])
def test_of_copies_of_a_picture_the_one_with_annotations_stays(tmp_path: Path, in_one_file: bool) -> None:
    boxes = [box(1, 2), box(2, 2, 1, 1, 5, 5), box(3, 3)]
    files: dict[str, Any] = {"1.png": picture(1), "2.png": picture(1), "3.png": picture(3)}
    if in_one_file:
        images = [image(1, split="train"), image(2, split="val"), image(3, split="train")]
        files["annotations.json"] = coco(images, boxes)
    else:
        files |= {"train.json": coco([image(1), image(3)], boxes[2:]), "val.json": coco([image(2)], boxes[:2])}
    done = run_import(write(tmp_path / "f", files))
    assert done.splits["2.png"] == "validation"
    assert "1.png" not in done.splits
    assert len(done.boxes) == 3
    (example,) = done.result.report.examples[ItemReason.DUPLICATE_IMAGE]
    assert (example.item, example.sentence) == ("1.png", "The same picture as 2.png.")
    assert done.refused == {"duplicate_image": 1}


def phone_photo(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (orientation, 9, 9)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def test_labels_for_the_upright_picture_are_taken_as_they_are(tmp_path: Path) -> None:
    document = coco([image(1, file_name="p.jpg", width=HEIGHT, height=WIDTH)], [box(1, 1, 2, 50, 8, 12)])
    done = run_import(write(tmp_path / "f", {"annotations.json": document, "p.jpg": phone_photo(6)}))
    assert (done.manifest["images"][0]["width"], done.manifest["images"][0]["height"]) == (HEIGHT, WIDTH)
    assert done.boxes == [[2, 50, 8, 12]]
    assert done.result.report.turned_images == 0


def test_labels_for_the_stored_array_are_turned_with_the_picture(tmp_path: Path) -> None:
    document = coco([image(1, file_name="p.jpg"), image(2)], [box(1, 1, 50, 2, 12, 8), box(2, 2)])
    files: dict[str, Any] = {"annotations.json": document, "p.jpg": phone_photo(6), "2.png": picture(2)}
    done = run_import(write(tmp_path / "f", files))
    assert sorted(done.boxes) == [[4, 4, 10, 10], [HEIGHT - 2 - 8, 50, 8, 12]]
    assert done.result.report.turned_images == 1
    assert not done.refused


def test_transposed_sizes_of_an_image_that_is_not_turned_are_a_mismatch(tmp_path: Path) -> None:
    document = coco(
        [image(1, width=HEIGHT, height=WIDTH), image(2), image(3, file_name="180.jpg", width=48, height=64)]
    )
    files: dict[str, Any] = {"annotations.json": document, "1.png": picture(1), "2.png": picture(2)}
    files["180.jpg"] = phone_photo(3)
    assert run_import(write(tmp_path / "f", files)).refused == {"size_mismatch": 2}


def many(folder: Path, order: random.Random | None, rename: str = "") -> Imported:
    """Thirty images of two classes with some duplicates; `order` shuffles every list of the label file."""
    images = [image(n, file_name=f"{rename}{n:02d}.png") for n in range(1, 31)]
    images += [image(31, file_name=f"{rename}07.png"), image(5, file_name=f"{rename}99.png")]
    annotations = [box(n, n, 1, 1, n, n, category=1 + n % 2) for n in range(1, 29)]
    annotations += [box(40, 5, 9, 9, 9, 9), box(40, 6, 8, 8, 8, 8), box(41, 7, -9, 2, 20, 20), box(42, 31)]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}]
    if order:
        for rows in (images, annotations, categories):
            order.shuffle(rows)
    files = {f"images/{rename}{n:02d}.png": picture(n) for n in [*range(1, 31), 99]}
    files[f"images/{rename}30.png"] = picture(29)
    return run_import(write(folder, {"annotations.json": coco(images, annotations, categories), **files}))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_version_does_not_depend_on_the_order_of_the_input(tmp_path: Path, seed: int) -> None:
    sorted_one = many(tmp_path / "a", None)
    shuffled = many(tmp_path / "b", random.Random(seed))
    assert shuffled.manifest == sorted_one.manifest
    assert shuffled.result.content_hash == sorted_one.result.content_hash
    assert shuffled.result.manifest_sha256 == sorted_one.result.manifest_sha256
    assert shuffled.refused == sorted_one.refused


def test_the_content_hash_covers_labels_and_splits_but_not_file_names(tmp_path: Path) -> None:
    first = many(tmp_path / "a", None)
    renamed = many(tmp_path / "b", None, rename="photo-")
    assert renamed.result.content_hash == first.result.content_hash
    assert renamed.result.manifest_sha256 != first.result.manifest_sha256
    document = json.loads((tmp_path / "a/annotations.json").read_text())
    document["annotations"][0]["bbox"][0] += 1
    write(tmp_path / "a", {"annotations.json": document})
    assert run_import(tmp_path / "a").result.content_hash != first.result.content_hash
    assert run_import(tmp_path / "b", seed=5).result.content_hash != first.result.content_hash


def test_a_split_in_the_image_entries_is_the_sources_own(tmp_path: Path) -> None:
    splits = ["train", "train", "val", "test", None]
    document = coco([image(n, split=split) for n, split in enumerate(splits)], [])
    folder = write(tmp_path / "f", {"annotations.json": document} | {f"{n}.png": picture(n) for n in range(5)})
    assert run_import(folder).splits == {
        "0.png": "train",
        "1.png": "train",
        "2.png": "validation",
        "3.png": "test",
        "4.png": "train",
    }


def test_statistics_say_what_the_version_holds(tmp_path: Path) -> None:
    annotations = [box(1, 1, 0, 0, 32, 24), box(2, 1, 0, 0, 16, 12), box(3, 2, 0, 0, 16, 12, iscrowd=1), box(4, 2)]
    annotations[3]["category_id"] = 2
    done = run_import(simple(tmp_path / "f", annotations, count=3))
    statistics = done.result.statistics
    assert (statistics.total.images, statistics.total.unlabelled_images, statistics.total.boxes) == (3, 1, 3)
    cup, plate = statistics.total.classes
    assert (cup.name, cup.boxes, cup.images) == ("cup", 2, 1)
    assert cup.share == pytest.approx(2 / 3)
    assert (plate.boxes, plate.images) == (1, 1)
    assert statistics.width_px.median == WIDTH
    assert statistics.box_area_share.max == 0.25
    assert statistics.boxes_per_image.max == 2
    assert {split: counts.images for split, counts in statistics.splits.items()} == dict.fromkeys(Split, 1)
    json.dumps(statistics.as_json())


def test_images_without_any_box_make_a_version(tmp_path: Path) -> None:
    done = run_import(simple(tmp_path / "f", [], count=3, categories=[]))
    assert done.result.statistics.total.unlabelled_images == 3
    assert done.result.statistics.box_area_share.median == 0
    assert set(done.splits.values()) == {"train", "validation", "test"}


def test_a_manifest_can_be_imported_again(tmp_path: Path) -> None:
    first = many(tmp_path / "a", None)
    write(tmp_path / "b", {"annotations.json": first.manifest, **{f"images/{k}": v for k, v in first.stored.items()}})
    again = run_import(tmp_path / "b")
    assert not again.refused
    assert again.result.content_hash == first.result.content_hash


@pytest.mark.parametrize("said", [False, None, 1, "true", {"a": True}, [True]])
def test_an_image_without_a_box_is_empty_only_if_its_entry_says_so(tmp_path: Path, said: object) -> None:
    images = [image(1, empty=True), image(2, empty=said), image(3, empty=True), image(4, empty=True)]
    boxes = [box(1, 3), box(2, 4, 400, 400, 5, 5)]
    files: dict[str, Any] = {f"{number}.png": picture(number) for number in range(1, 5)}
    done = run_import(write(tmp_path / "f", {"annotations.json": coco(images, boxes)} | files))
    # The third has a box, and the fourth had one that was refused.
    assert done.empty == ["1.png"]
    assert done.result.statistics.total.unlabelled_images == 2
    plain = write(tmp_path / "plain", {"annotations.json": coco([image(n) for n in range(1, 5)], boxes)} | files)
    assert run_import(plain).result.content_hash != done.result.content_hash


@pytest.mark.parametrize(
    "wrong", [{"bbox": []}, {"bbox": "1 2 3 4"}, {"id": None}, {"category_id": "cup"}, {"iscrowd": 2}]
)
def test_an_image_of_which_a_label_makes_no_sense_is_not_empty_though_its_entry_says_so(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    files: dict[str, Any] = {f"{number}.png": picture(number) for number in (1, 2, 3)}
    images = [image(1), image(2, empty=True), image(3, empty=True)]
    document = coco(images, [box(1, 1), box(2, 2) | wrong])
    done = run_import(write(tmp_path / "f", {"annotations.json": document} | files))
    assert done.refused == {"malformed_annotation": 1}
    assert done.empty == ["3.png"]


def test_each_split_has_its_share_of_the_empty_images(tmp_path: Path) -> None:
    # As many again are unlabelled.
    numbers = range(1, 41)
    images = [image(number, empty=number % 2 == 0) for number in numbers]
    files: dict[str, Any] = {f"{number}.png": picture(number) for number in numbers}
    done = run_import(write(tmp_path / "f", {"annotations.json": coco(images, [])} | files))
    assert Counter(done.splits[name] for name in done.empty) == {"train": 14, "validation": 3, "test": 3}


def test_of_copies_of_a_picture_an_empty_one_goes_before_one_that_nobody_labelled(tmp_path: Path) -> None:
    images = [image(1), image(2, empty=True), image(3)]
    files: dict[str, Any] = {"1.png": picture(1), "2.png": picture(1), "3.png": picture(3)}
    done = run_import(write(tmp_path / "f", {"annotations.json": coco(images, [box(1, 3)])} | files))
    assert set(done.splits) == {"2.png", "3.png"}
    assert done.empty == ["2.png"]


def test_a_whole_image_without_a_class_is_unlabelled_whatever_its_entry_says(tmp_path: Path) -> None:
    label = {"id": 1, "image_id": 1, "category_id": 1}
    files: dict[str, Any] = {f"{number}.png": picture(number) for number in (1, 2)}
    document = coco([image(1), image(2, empty=True)], [label])
    done = run_import(write(tmp_path / "f", {"annotations.json": document} | files))
    assert done.empty == []
    assert done.result.statistics.total.unlabelled_images == 1


def areas(done: Imported) -> list[float]:
    return [annotation["area"] for annotation in done.manifest["annotations"]]


def test_the_area_that_a_label_states_is_kept_and_is_part_of_the_content(tmp_path: Path) -> None:
    plain = run_import(simple(tmp_path / "plain", [box(1, 1, 4, 4, 10, 10)]))
    stated = run_import(simple(tmp_path / "stated", [box(1, 1, 4, 4, 10, 10, area=61.5)]))
    assert (areas(plain), areas(stated)) == ([100], [61.5])
    assert stated.result.content_hash != plain.result.content_hash
    write(tmp_path / "b", {"annotations.json": stated.manifest, **{f"images/{k}": v for k, v in stated.stored.items()}})
    assert run_import(tmp_path / "b").result.content_hash == stated.result.content_hash


@pytest.mark.parametrize("area", [100, 100.0, 130, 0, -1, 1e300, 2**60, None, "61.5", True, [61.5], {"a": 1}])
def test_an_area_that_is_none_or_no_less_than_the_boxs_changes_nothing(tmp_path: Path, area: object) -> None:
    plain = run_import(simple(tmp_path / "plain", [box(1, 1, 4, 4, 10, 10)]))
    stated = run_import(simple(tmp_path / "stated", [box(1, 1, 4, 4, 10, 10, area=area)]))
    assert not stated.refused
    assert stated.result.content_hash == plain.result.content_hash


def test_the_area_of_a_box_that_is_cut_to_less_is_the_boxs(tmp_path: Path) -> None:
    cut = [box(1, 1, -20, 4, 30, 10, area=250), box(2, 1, -20, 20, 30, 10, area=90)]
    assert areas(run_import(simple(tmp_path / "f", cut))) == [100, 90]


def test_an_error_of_the_sink_ends_the_import_and_leaves_no_manifest(tmp_path: Path) -> None:
    def full(_: str, __: Sequence[str]) -> None:
        raise OSError("no space left")

    manifest = tmp_path / "manifest.json"
    with pytest.raises(OSError, match="no space"):
        import_folder(
            simple(tmp_path / "f"),
            sink=full,
            progress=lambda *_: None,
            manifest_path=manifest,
            listing_path=tmp_path / "listing",
            seed=0,
        )
    assert not manifest.exists()
