"""Generated test sets that lie on COCO's edges, and pycocotools' answer to them."""

import contextlib
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saucer.evaluation.truth import Truth, from_coco


@dataclass(frozen=True)
class Columns:
    images: NDArray[np.int64]
    image_id: NDArray[np.int64]
    box: NDArray[np.float32]
    score: NDArray[np.float32]
    label: NDArray[np.int32]

    def above(self, threshold: float) -> "Columns":
        kept = self.score >= np.float32(threshold)
        return Columns(self.images, self.image_id[kept], self.box[kept], self.score[kept], self.label[kept])


Row = tuple[int, int, tuple[float, float, float, float], float]
"""Image id, label, x1 y1 x2 y2, score."""
TruthRow = tuple[int, int, tuple[float, float, float, float], bool]
"""Image id, label, x1 y1 x2 y2, crowd."""
DECIMALS = 3
"""Of a label's numbers, of which float64 holds few exactly."""


def columns(images: list[int], rows: list[Row]) -> Columns:
    return Columns(
        np.array(images, np.int64),
        np.array([row[0] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[3] for row in rows], np.float32),
        np.array([row[1] for row in rows], np.int32),
    )


def document(images: list[int], classes: list[str], rows: list[TruthRow]) -> dict[str, Any]:
    """A COCO document whose category ids are not the labels; sizes are rounded to what a label file would say."""
    sizes = [(round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)) for _, _, (x1, y1, x2, y2), _ in rows]
    return {
        "images": [{"id": image, "width": 640, "height": 480} for image in images],
        "categories": [{"id": 7 + 3 * label, "name": name} for label, name in enumerate(classes)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": image,
                "category_id": 7 + 3 * label,
                "bbox": [x1, y1, width, height],
                "area": width * height,
                "iscrowd": int(crowd),
            }
            for number, ((image, label, (x1, y1, _, _), crowd), (width, height)) in enumerate(
                zip(rows, sizes, strict=True)
            )
        ],
    }


def truth_of(images: list[int], classes: list[str], rows: list[TruthRow]) -> Truth:
    return from_coco(document(images, classes, rows), classes)


def generate(seed: int) -> tuple[dict[str, Any], list[str], Columns]:
    """Boxes on a coarse grid and scores of few levels, so that overlaps, areas and scores tie and meet the limits.

    In most sets labels are moved off the grid by hundredths or thousandths, some are larger by as much: overlaps meet
    the limits there too, but only for one who takes sizes as they are labelled.
    """
    random = np.random.default_rng(seed)
    classes = [f"class {label}" for label in range(random.integers(1, 6))]
    images = sorted(random.choice(10_000, random.integers(1, 12), replace=False).tolist())
    grid = float(random.choice([0.25, 4.0, 16.0]))
    span = int(random.choice([40, 120]))
    crowded = random.random() < 0.7
    with_truth = [image for image in images if random.random() < 0.8]
    labelled = classes[: max(1, len(classes) - int(random.integers(0, 2)))]

    def box() -> tuple[float, float, float, float]:
        side = float(random.choice([32.0, 96.0])) if random.random() < 0.2 else None
        x, y = (random.integers(0, int(span / grid), 2) * grid).tolist()
        w, h = (side, side) if side else ((1 + random.integers(0, int(span / grid), 2)) * grid).tolist()
        return (x, y, x + w, y + h)

    step = float(random.choice([0.0, 0.01, 0.001]))

    def labelled_box() -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = box()
        dx, dy = (random.integers(0, 100, 2) * step * random.choice([(1, 0), (0, 1), (1, 1)])).tolist()
        dw, dh = (random.integers(0, 100, 2) * step).tolist() if random.random() < 0.2 else (0.0, 0.0)
        x1, y1, x2, y2 = np.round((x1 + dx, y1 + dy, x2 + dx + dw, y2 + dy + dh), DECIMALS).tolist()
        return (x1, y1, x2, y2)

    truths: list[TruthRow] = [
        (image, int(random.integers(0, len(labelled))), labelled_box(), bool(crowded and random.random() < 0.2))
        for image in with_truth
        for _ in range(random.integers(0, 9))
    ]

    def part_of(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Of a label that was moved along one axis at most: half or three quarters, exactly."""
        x1, y1, x2, y2 = corners
        left, top = math.ceil(4 * x1) / 4, math.ceil(4 * y1) / 4
        width, height = round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)
        share = float(random.choice([0.5, 0.75]))
        width, height = (width * share, height) if left > x1 else (width, height * share)
        return (left, top, left + width, top + height)

    rows: list[Row] = []
    levels = int(random.choice([3, 20, 100_000]))
    for image in images if random.random() > 0.05 else []:
        mine = [row for row in truths if row[0] == image]
        many = random.random() < 0.1
        for _ in range(int(random.integers(150, 260) if many else random.choice([0, 3, 20]))):
            label = 0 if many else int(random.integers(0, len(classes)))
            place = box()
            if mine and random.random() < 0.7:
                _, near, corners, _ = mine[random.integers(0, len(mine))]
                label = near if random.random() < 0.8 else label
                x1, y1, x2, y2 = (np.floor_divide(corners, grid) + random.integers(-2, 3, 4)) * grid
                beside = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
                place = part_of(corners) if random.random() < 0.3 else beside
            rows.append((image, label, place, float(random.integers(0, levels + 1)) / levels))
    random.shuffle(rows)
    return document(images, classes, truths), classes, columns(images, rows)


def pycocotools_of(labels: dict[str, Any], detections: Columns) -> COCOeval:
    """Evaluated, accumulated and summarized; quiet."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = labels
        coco.createIndex()
        results = COCO()
        x1, y1, x2, y2 = detections.box.astype(np.float64).T
        results.dataset = {
            "images": labels["images"],
            "categories": labels["categories"],
            "annotations": [
                {
                    "id": number + 1,
                    "image_id": image,
                    "category_id": 7 + 3 * label,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": score,
                }
                for number, (image, label, left, top, width, height, score) in enumerate(
                    zip(
                        detections.image_id.tolist(),
                        detections.label.tolist(),
                        x1.tolist(),
                        y1.tolist(),
                        (x2 - x1).tolist(),
                        (y2 - y1).tolist(),
                        detections.score.tolist(),
                        strict=True,
                    )
                )
            ],
        }
        results.createIndex()
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
