"""From the graph's dense output to detections."""

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = 3000
"""Boxes per image that non-maximum suppression looks at; beyond that, those of the lowest scores are left out."""


def select(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    *,
    score_floor: float,
    nms_iou: float,
    max_detections: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Boxes [n, 4], scores [n] and labels [n] of one image, by score descending.

    `boxes` is [anchors, 4] xyxy, `scores` [anchors, classes]. A box stands for each class whose score is above
    `score_floor`; within a class, greedy suppression removes what overlaps a better box by more than `nms_iou`. Boxes
    without area (the network's distances may be negative) are left out.
    """
    real = np.all(boxes[:, 2:] > boxes[:, :2], axis=1, keepdims=True)
    anchors, labels = np.nonzero((scores > score_floor) & real)
    values = scores[anchors, labels]
    order = np.argsort(-values, kind="stable")[:MAX_CANDIDATES]
    anchors, labels, values = anchors[order], labels[order], values[order]
    chosen = boxes[anchors]
    kept = suppress(chosen, values, labels, nms_iou)[:max_detections]
    return chosen[kept], values[kept].astype(np.float32), labels[kept].astype(np.int32)


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], iou: float
) -> NDArray[np.int64]:
    """Indices of the boxes that non-maximum suppression within each class keeps, by score descending.

    Equal scores keep their order, so that the answer is the same everywhere.
    """
    if len(boxes) == 0:
        return np.empty(0, np.int64)
    xywh = boxes.astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    # The floor of scores is the caller's; zero keeps OpenCV from applying one of its own.
    kept = cv2.dnn.NMSBoxesBatched(xywh.tolist(), scores.tolist(), labels.tolist(), 0.0, iou)
    indices = np.asarray(kept, np.int64).reshape(-1)
    return indices[np.argsort(-scores[indices], kind="stable")]
