"""COCO's sizes of an imported data set are those of its own file, whose areas are less than its boxes'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saucer.evaluation.metrics import coco_metrics
from saucer.evaluation.truth import from_coco
from tests.unit.dataset.folders import picture, run_import, write
from tests.unit.evaluation.generated import Columns, columns, pycocotools_of

SIDE = 320
CLASSES = ["cup", "plate"]
TWELVE = (
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
)


def generated() -> tuple[dict[str, Any], Columns]:
    """Labels whose shapes fill a third to the whole of their boxes, and detections near them."""
    random = np.random.default_rng(5)
    labels: list[dict[str, Any]] = []
    found = []
    for image in range(1, 13):
        for _ in range(8):
            label = int(random.integers(2))
            width, height = random.choice([24, 36, 60, 110, 150], 2).tolist()
            x, y = random.integers(0, SIDE - 150, 2).tolist()
            labels.append(
                {
                    "id": len(labels) + 1,
                    "image_id": image,
                    "category_id": 7 + 3 * label,
                    "bbox": [x, y, width, height],
                    "area": round(width * height * float(random.uniform(1 / 3, 1)), 2),
                    "iscrowd": int(random.random() < 0.05),
                }
            )
            if random.random() < 0.8:
                near = np.array([x, y, x + width, y + height]) + random.integers(-6, 7, 4)
                found.append((image, label, tuple(near.tolist()), float(random.random())))
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(1, 13)],
        "annotations": labels,
        "categories": [{"id": 7 + 3 * label, "name": name} for label, name in enumerate(CLASSES)],
    }
    return document, columns(list(range(1, 13)), found)


def twelve(document: dict[str, Any], detections: Columns) -> list[float | None]:
    metrics = coco_metrics(from_coco(document, CLASSES), detections)
    return [getattr(metrics, name) for name in TWELVE]


def test_the_twelve_numbers_of_an_imported_file_are_pycocotools_of_the_file_itself(tmp_path: Path) -> None:
    document, detections = generated()
    pictures = {f"images/{n}.png": picture(n, SIDE, SIDE) for n in range(1, 13)}
    manifest = run_import(write(tmp_path / "f", {"annotations.json": document, **pictures})).manifest
    id_of = {int(image["source_name"].removesuffix(".png")): image["id"] for image in manifest["images"]}
    renumbered = Columns(
        np.array([id_of[number] for number in detections.images.tolist()]),
        np.array([id_of[number] for number in detections.image_id.tolist()]),
        detections.box,
        detections.score,
        detections.label,
    )
    ours = twelve(manifest, renumbered)
    assert ours == pytest.approx(pycocotools_of(document, detections).stats.tolist(), abs=1e-12)
    for label in manifest["annotations"]:
        label["area"] = label["bbox"][2] * label["bbox"][3]
    assert twelve(manifest, renumbered)[3:6] != pytest.approx(ours[3:6], abs=0.01)
