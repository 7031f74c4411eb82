"""The splits of a job as MMDetection and pycocotools read them.

A data set's COCO files may name categories in any order and leave out what is optional. MMDetection takes labels from
the order in the file, and both tools trip over what is missing. So each split is written anew into the work folder:
category id = label = index into the job's classes, ids counted from 1, area and iscrowd always there.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saucer.worker.errors import UserError
from saucer.worker.job import Job, PredictJob, TrainJob


@dataclass(frozen=True)
class Split:
    """`annotations` is the rewritten COCO file; `images` are pairs of image id and path, in the file's order; `boxes`
    counts those that are trained on (no crowds)."""

    name: str
    annotations: Path
    images: tuple[tuple[int, Path], ...]
    boxes: int


@dataclass(frozen=True)
class Splits:
    train: Split
    validation: Split | None
    test: Split | None


def prepare(job: TrainJob) -> Splits:
    """Rewrites the job's splits below its work folder.

    Raises UserError if there is nothing to train on, and OSError or ValueError if a file is not what a data set's
    manifest should be.
    """
    train = _rewrite(job, "train", job.train)
    if not train.images:
        raise UserError("The training split has no images. Import images, or change the split.")
    if not train.boxes:
        raise UserError(
            "No box in the training split has one of the task's classes. Label images, or change the classes."
        )
    return Splits(train, _optional(job, "validation", job.validation), _optional(job, "test", job.test))


def predicted(job: PredictJob) -> tuple[Split, ...]:
    """The splits that are there, the test split first. Raises as prepare() does, but for what is trained on."""
    splits = (_optional(job, "test", job.test), _optional(job, "validation", job.validation))
    return tuple(split for split in splits if split is not None)


def _optional(job: Job, name: str, source: str | None) -> Split | None:
    split = _rewrite(job, name, source) if source else None
    return split if split and split.images else None


def _rewrite(job: Job, name: str, source: str) -> Split:
    content = json.loads(Path(source).read_text(encoding="utf-8"))
    names = {item["id"]: job.label_names.get(item["name"], item["name"]) for item in content["categories"]}
    label_of = {number: job.classes.index(name) for number, name in names.items() if name in job.classes}
    images = [_image(item) for item in content["images"]]
    known = {item["id"]: item for item in images}
    boxes = [
        _box(number, _placed(job, item, known[item["image_id"]]), label_of[item["category_id"]])
        for number, item in enumerate(content.get("annotations", []), start=1)
        if item["category_id"] in label_of and item["image_id"] in known
    ]
    folder = Path(job.images)
    paths = tuple((item["id"], folder / item["file_name"]) for item in images)
    missing = [path for _, path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} images of the {name} split are missing, first {missing[0]}"
        )
    target = Path(job.workdir) / f"{name}.json"
    categories = [{"id": label, "name": class_name} for label, class_name in enumerate(job.classes)]
    target.write_text(
        json.dumps({"info": {}, "images": images, "annotations": boxes, "categories": categories}), encoding="utf-8"
    )
    return Split(name, target, paths, sum(not box["iscrowd"] for box in boxes))


def _placed(job: Job, item: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """A label of a whole image has the image's box; raises UserError if labels are not of the job's kind."""
    if job.classifies == ("bbox" in item):
        raise UserError(
            "The data labels objects by boxes, and this task wants a class for each whole image. "
            "Choose the scene object-detection."
            if job.classifies
            else "The data labels whole images, and this task wants boxes. Choose the scene image-classification."
        )
    return {**item, "bbox": [0, 0, image["width"], image["height"]]} if job.classifies else item


def _image(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in ("id", "file_name", "width", "height")}


def _box(number: int, item: dict[str, Any], label: int) -> dict[str, Any]:
    width, height = item["bbox"][2:]
    return {
        "id": number,
        "image_id": item["image_id"],
        "category_id": label,
        "bbox": item["bbox"],
        # MMDetection drops boxes without area; a polygon's area of 0 beside a real box is no reason to.
        "area": item.get("area") or width * height,
        "iscrowd": int(bool(item.get("iscrowd", 0))),
    }
