"""The splits of a job as they are written anew for the engine."""

import json
from pathlib import Path

from saucer.worker.job import TrainJob
from saucer.worker.splits import prepare


def test_the_area_of_a_label_is_kept_and_one_without_has_its_boxs(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    label = {"image_id": 1, "category_id": 4, "bbox": [0, 0, 2, 3]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 4, "name": "cup"}],
        "annotations": [{**label, "id": 1, "area": 2.5}, {**label, "id": 2}],
    }
    file = tmp_path / "all.coco.json"
    file.write_text(json.dumps(content))
    splits = prepare(
        TrainJob(
            workdir=str(tmp_path),
            images=str(tmp_path),
            train=str(file),
            validation=str(file),
            test=str(file),
            classes=("cup",),
        )
    )
    for split in (splits.train, splits.validation, splits.test):
        assert split is not None
        assert [box["area"] for box in json.loads(split.annotations.read_text())["annotations"]] == [2.5, 6]


def test_labels_that_stand_for_a_class_under_another_name_are_that_classes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 4, "name": "plate"}, {"id": 5, "name": "Mug"}, {"id": 6, "name": "cup"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": number, "bbox": [0, 0, 2, 2]} for number in (4, 5, 6)
        ],
    }
    (tmp_path / "train.coco.json").write_text(json.dumps(content))
    job = TrainJob(
        workdir=str(tmp_path),
        images=str(tmp_path),
        train=str(tmp_path / "train.coco.json"),
        classes=("cup", "plate"),
        label_names={"Mug": "cup"},
    )
    written = json.loads(prepare(job).train.annotations.read_text())
    assert [box["category_id"] for box in written["annotations"]] == [1, 0, 0]
