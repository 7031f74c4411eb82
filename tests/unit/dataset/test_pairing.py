"""Which label file an image gets, where each image has one of its own."""

from pathlib import Path

import pytest

from saucer.dataset.report import ItemReason
from tests.unit.dataset.folders import picture, run_import, write
from tests.unit.dataset.truth import (
    FOLDERS,
    TRUTH,
    Box,
    as_yolo,
    found_boxes,
    voc_file,
    yolo_lines,
)


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


def test_a_yolo_label_file_that_is_named_as_a_list_of_a_split_belongs_to_its_image(tmp_path: Path) -> None:
    names = ("test1", "test2", "train7", "val3", "photo4", "test")
    files = {"data.yaml": b"names: [cup]\n", "train.txt": b"images/test1.png\n", "val.txt": b"images/photo4.png\n"}
    for number, name in enumerate(names):
        files |= {f"images/{name}.png": picture(number), f"labels/{name}.txt": b"0 0.5 0.5 0.5 0.5\n"}
    done = run_import(write(tmp_path / "f", files))
    assert len(done.boxes) == len(names)
    assert done.splits["images/photo4.png"] == "validation"
    assert done.refused == {}


def test_of_several_label_folders_the_one_that_is_called_so_is_read(tmp_path: Path) -> None:
    folder = as_yolo(tmp_path / "f")
    write(folder, {"labels_old/train/1.txt": b"0 0.5 0.5 1 1\n"})
    done = run_import(folder)
    assert found_boxes(done) == TRUTH
    assert done.refused == {}


@pytest.mark.parametrize(
    ("image", "label_file", "other"),
    [
        ("train/{}.png", "train/labels/{}.txt", "train/labels_old/{}.txt"),
        ("images/cam1/{}.png", "labels/{}.txt", "labels_old/{}.txt"),
        ("images/{}.png", "labels/{}.txt", "txt/{}.txt"),
    ],
)
def test_a_whole_copy_of_the_folder_of_labels_takes_nothing_from_it(
    tmp_path: Path, image: str, label_file: str, other: str
) -> None:
    files = {"data.yaml": b"names: [cup]\n"}
    for number in (1, 2):
        files[image.format(number)] = picture(number)
        files[label_file.format(number)] = b"0 0.5 0.5 0.5 0.5\n"
        files[other.format(number)] = b""
    done = run_import(write(tmp_path / "f", files))
    assert (len(done.boxes), done.refused) == (2, {})


def test_folders_below_that_pair_among_themselves_are_no_others(tmp_path: Path) -> None:
    files = {"data.yaml": b"names: [cup]\n", "images/1.png": picture(1), "images/extra/img/2.png": picture(2)}
    for label_file in ("labels/1.txt", "images/extra/boxes/2.txt"):
        files[label_file] = b"0 0.5 0.5 0.5 0.5\n"
    done = run_import(write(tmp_path / "f", files))
    assert (len(done.boxes), done.refused) == (2, {})


@pytest.mark.parametrize(
    "other",
    [
        "labels_old/train/9.txt",
        "labels_old/9.txt",
        "old/labels/train/9.txt",
        "9.txt",
        "images/old/9.txt",
        "images/labels_old/9.txt",
    ],
)
def test_an_image_without_a_file_in_the_folder_of_labels_takes_none_of_another(tmp_path: Path, other: str) -> None:
    folder = write(as_yolo(tmp_path / "f"), {"images/train/9.png": picture(9), other: b"0 0.5 0.5 1 1\n"})
    if other.startswith("images"):
        (folder / "labels").rename(folder / "images/labels")
    done = run_import(folder)
    assert found_boxes(done) == TRUTH | {"9": ("train", [])}
    assert done.result.statistics.total.unlabelled_images == 1


@pytest.mark.parametrize("lost", ["train", "val"])
def test_a_split_without_labels_takes_none_of_another_folder(tmp_path: Path, lost: str) -> None:
    folder = as_yolo(tmp_path / "f")
    (folder / "labels_old").mkdir()
    (folder / "labels" / lost).rename(folder / "labels_old" / lost)
    found = found_boxes(run_import(folder))
    assert found == {name: (split, [] if FOLDERS[split] == lost else boxes) for name, (split, boxes) in TRUTH.items()}


def test_a_folder_of_labels_leaves_others_theirs_and_one_without_labels_of_an_image_is_none(tmp_path: Path) -> None:
    files = {"data.yaml": b"names: [cup]\n", "annotations/notes.txt": b"see the wiki\n", "set/labels/2.txt": b""}
    for number, folder in enumerate(("boxes", "set/labels", "other/boxes"), 1):
        files[f"{folder.replace('boxes', 'images').replace('labels', 'images')}/{number}.png"] = picture(number)
        files[f"{folder}/{number}.txt"] = b"0 0.5 0.5 0.5 0.5\n"
    assert len(run_import(write(tmp_path / "f", files)).boxes) == 3


@pytest.mark.parametrize(
    ("images", "label_files"),
    [
        (("images/{n}.png", "images2/{n}.png"), ("labels/{n}", "labels2/{n}")),
        (("images/{n}.png", "val_images/{n}.png"), ("labels/{n}", "val_labels/{n}")),
        (("JPEGImages/{n}.png", "extra_img/{n}.png"), ("Annotations/{n}", "extra_xml/{n}")),
        (("data/images/{n}.png", "data/val_images/{n}.png"), ("labels/{n}", "data/val_labels/{n}")),
        (("{n}.png", "more/{n}.png"), ("labels/{n}", "boxes/{n}")),
    ],
)
@pytest.mark.parametrize("ending", ["txt", "xml"])
def test_a_folder_of_labels_leaves_other_folders_of_images_theirs(
    tmp_path: Path, images: tuple[str, str], label_files: tuple[str, str], ending: str
) -> None:
    boxes: list[Box] = [("cup", 4, 4, 10, 10)]
    files = {"data.yaml": b"names: [cup]\n"}
    for number in range(1, 5):
        which = number > 2
        files[images[which].format(n=number)] = picture(number)
        data = yolo_lines(boxes) if ending == "txt" else voc_file(boxes)
        files[f"{label_files[which].format(n=number)}.{ending}"] = data
    done = run_import(write(tmp_path / "f", files))
    assert (len(done.boxes), done.refused) == (4, {})


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images2", "labels2"), ("val_images", "val_labels"), ("extra_img", "extra_txt"), ("cam1", "cam1_labels")],
)
def test_frames_of_equal_names_have_the_labels_of_the_folder_that_is_called_after_theirs(
    tmp_path: Path, images: str, labels: str
) -> None:
    files = {"data.yaml": b"names: [cup]\n"}
    for place, (folder, label_folder) in enumerate((("images", "labels"), (images, labels))):
        for number in (1, 2):
            files[f"{folder}/{number}.png"] = picture(10 * place + number)
            files[f"{label_folder}/{number}.txt"] = place * b"0 0.5 0.5 0.5 0.5\n"
    done = run_import(write(tmp_path / "f", files))
    assert done.refused == {}
    assert sorted(done.empty) == ["images/1.png", "images/2.png"]
    assert len(done.boxes) == 2


@pytest.mark.parametrize("other", ["labels_old/train/9.txt", "images/old/9.txt"])
def test_a_label_file_that_is_passed_over_for_the_folder_of_labels_is_named(tmp_path: Path, other: str) -> None:
    done = run_import(write(as_yolo(tmp_path / "f"), {"images/train/9.png": picture(9), other: b"0 0.5 0.5 1 1\n"}))
    assert done.refused == {"missing_image": 1}
    (example,) = done.result.report.examples[ItemReason.MISSING_IMAGE]
    assert example.item == other
    assert found_boxes(done) == TRUTH | {"9": ("train", [])}


def test_an_image_takes_no_label_file_below_its_folder_where_others_have_theirs_in_the_one_of_labels(
    tmp_path: Path,
) -> None:
    files = {f"images/{number}.png": picture(number) for number in (1, 2)}
    files |= {"data.yaml": b"names: [cup]\n", "labels/1.txt": b"", "images/old/2.txt": b"0 0.5 0.5 1 1\n"}
    done = run_import(write(tmp_path / "f", files))
    assert (done.boxes, done.empty) == ([], ["images/1.png"])


def test_an_image_of_which_several_label_files_could_be_meant_is_refused_by_name(tmp_path: Path) -> None:
    files: dict[str, bytes] = {"data.yaml": b"names: [cup]\n"}
    for number in (1, 2):
        files[f"images/{number}.png"] = picture(number)
        files[f"boxes/{number}.txt"] = b"0 0.5 0.5 0.5 0.5\n"
    done = run_import(write(tmp_path / "f", files | {"boxes_old/2.txt": b"0 0.5 0.5 1 1\n"}))
    assert list(done.splits) == ["images/1.png"]
    assert done.refused == {"unreadable_labels": 1}
    (example,) = done.result.report.examples[ItemReason.UNREADABLE_LABELS]
    assert example.item == "images/2.png"
    assert example.sentence == "Several label files could be meant: boxes/2.txt, boxes_old/2.txt."
