"""Seeded pictures of discs and bars on noise, with COCO labels: the smallest data that a detector can learn from."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES = ("disc", "bar")


@dataclass(frozen=True)
class ShapesData:
    """A folder of JPEG images and one COCO file for each split."""

    images: Path
    train: Path
    validation: Path
    test: Path


def write_shapes(folder: Path, *, train: int, validation: int, test: int, seed: int = 7) -> ShapesData:
    """Writes a data set of these sizes; every tenth image has no shape."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    files = {}
    first = 1
    for name, count in (("train", train), ("validation", validation), ("test", test)):
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(_split(images, rng, first, count)))
        first += count
    return ShapesData(images, **files)


def _split(folder: Path, rng: np.random.Generator, first: int, count: int) -> dict[str, object]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id in range(first, first + count):
        width, height = int(rng.integers(150, 260)), int(rng.integers(120, 200))
        canvas = np.full((height, width, 3), rng.integers(60, 200, 3), np.uint8)
        boxes = [] if image_id % 10 == 0 else [_draw(canvas, rng) for _ in range(int(rng.integers(1, 4)))]
        noisy = np.clip(canvas + rng.normal(0, 8, canvas.shape), 0, 255).astype(np.uint8)
        file_name = f"{image_id}.jpg"
        cv2.imwrite(str(folder / file_name), noisy)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for label, box in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 5,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    # Ids and order as a foreign data set may have them: not from zero, not in the order of the classes.
    categories = [{"id": label + 5, "name": name} for label, name in enumerate(CLASSES)][::-1]
    return {"images": images, "annotations": annotations, "categories": categories}


def _draw(canvas: NDArray[np.uint8], rng: np.random.Generator) -> tuple[int, list[int]]:
    height, width = canvas.shape[:2]
    color = [int(value) for value in rng.integers(0, 255, 3)]
    label = int(rng.integers(2))
    if label == 0:
        radius = int(rng.integers(14, 32))
        x, y = int(rng.integers(radius, width - radius)), int(rng.integers(radius, height - radius))
        cv2.circle(canvas, (x, y), radius, color, -1)
        return label, [x - radius, y - radius, 2 * radius + 1, 2 * radius + 1]
    wide, tall = int(rng.integers(30, 70)), int(rng.integers(14, 28))
    x, y = int(rng.integers(0, width - wide)), int(rng.integers(0, height - tall))
    cv2.rectangle(canvas, (x, y), (x + wide - 1, y + tall - 1), color, -1)
    return label, [x, y, wide, tall]
