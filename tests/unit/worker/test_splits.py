"""The splits of a job as they are written anew for the engine."""

import json
from pathlib import Path

from saucer.worker.job import TrainJob
from saucer.worker.splits import prepare


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
