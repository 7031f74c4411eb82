"""COCO's mean average precision, through pycocotools."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saucer.serving.detections import Detections
from saucer.worker import ranks

MAX_DETECTIONS_PER_IMAGE = 100
"""COCO's own limit."""


def mean_average_precision(truth: COCO, rows: NDArray[np.float64]) -> dict[str, float]:
    """`map` (IoU 0.50:0.95), `map_50` and `map_75` of detections [n, 7]: image id, x, y, width, height, score, label.

    Not rounded, 0 when there is no detection or nothing to detect.
    """
    names = ("map", "map_50", "map_75")
    if len(rows) == 0 or not truth.anns:
        return dict.fromkeys(names, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.maxDets = [1, 10, MAX_DETECTIONS_PER_IMAGE]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: max(0.0, float(value)) for name, value in zip(names, evaluation.stats[:3], strict=True)}


def load_truth(annotations: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations))


def as_rows(detections: Detections) -> NDArray[np.float64]:
    """Detections in the form of mean_average_precision, for files whose category ids are labels."""
    box = detections.box.astype(np.float64)
    box[:, 2:] -= box[:, :2]
    return np.column_stack([detections.image_id, box, detections.score, detections.label]).astype(np.float64)


def top_one(truth: COCO, answers: Detections) -> dict[str, float]:
    """`top_1`: of the labelled images that were predicted, the share whose best answer is right; 0 without one."""
    best: dict[int, tuple[float, int]] = {}
    for image, score, label in zip(
        answers.image_id.tolist(), answers.score.tolist(), answers.label.tolist(), strict=True
    ):
        if image not in best or score > best[image][0]:
            best[image] = (score, label)
    predicted = set(answers.images.tolist())
    labels = {
        label["image_id"]: label["category_id"] for label in truth.anns.values() if label["image_id"] in predicted
    }
    right = sum(image in best and best[image][1] == label for image, label in labels.items())
    return {"top_1": right / len(labels) if labels else 0.0}


@METRICS.register_module()
class ValidationMetric(BaseMetric):  # type: ignore[misc]  # mmengine ships no types
    """What CocoMetric reports, under the same names (`coco/bbox_mAP_50`), but unrounded, with COCO's 100 detections an
    image, and 0 where CocoMetric reports nothing since there is not one detection."""

    default_prefix = "coco"

    def __init__(self, annotations: str) -> None:
        super().__init__(collect_device=ranks.COLLECT)
        self._truth = load_truth(Path(annotations))

    def process(self, data_batch: Any, data_samples: Any) -> None:
        for sample in data_samples:
            found = sample["pred_instances"]
            box = found["bboxes"].double().cpu().numpy()
            box[:, 2:] -= box[:, :2]
            image = np.full(len(box), sample["img_id"])
            self.results.append(np.column_stack([image, box, found["scores"].cpu(), found["labels"].cpu()]))

    def compute_metrics(self, results: list[NDArray[np.float64]]) -> dict[str, float]:
        values = mean_average_precision(self._truth, np.concatenate(results))
        return {f"bbox_{name.replace('map', 'mAP')}": value for name, value in values.items()}
