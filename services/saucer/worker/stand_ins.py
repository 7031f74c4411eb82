"""Stands in for what MMDetection imports but RTMDet does not need, where it is not installed.

mmcv's compiled operators: PyPI has no wheels with them and compiling takes eleven minutes; of all of them RTMDet needs
non-maximum suppression, which OpenCV has. imgaug: imported for lane lines only, and its last release does not run with
numpy 2. With the real ones installed nothing is done here.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import cv2
import torch
from torch import Tensor

LANE_LINES = "mmdet.datasets.transforms.generate_line"
LANE_LINE_NAMES = ("ImageAug", "LinesToArray", "PackLineDetectionInputs")


def install() -> None:
    """Puts the stand-ins in place; to be called before mmdet is imported.

    Any other operator of mmcv stays missing: importing it raises ImportError, as mmdet expects.
    """
    try:
        importlib.import_module("mmcv.ops")
    except ImportError:
        for name in ("mmcv.ops", "mmcv.ops.nms"):
            _put(name, nms=nms, batched_nms=batched_nms)
    if importlib.util.find_spec("imgaug") is None:
        _put(LANE_LINES, **dict.fromkeys(LANE_LINE_NAMES))


def _put(name: str, **content: Any) -> None:
    module = ModuleType(name, __doc__)
    module.__dict__.update(content)
    sys.modules[name] = module


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, **_: Any) -> tuple[Tensor, Tensor]:
    """Boxes with scores [k, 5] and indices [k] of what greedy suppression keeps of boxes [n, 4] xyxy."""
    return _kept(boxes, scores, cv2.dnn.NMSBoxes(_xywh(boxes), scores.tolist(), 0.0, iou_threshold))


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict[str, Any] | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """As nms, within each group of `idxs`; `nms_cfg` None keeps all, sorted by score."""
    if nms_cfg is None:
        return _kept(boxes, scores, range(len(boxes)))
    threshold = float(nms_cfg.get("iou_threshold", 0.5))
    if class_agnostic or nms_cfg.get("class_agnostic", False):
        return nms(boxes, scores, threshold)
    kept = cv2.dnn.NMSBoxesBatched(_xywh(boxes), scores.tolist(), idxs.tolist(), 0.0, threshold)
    return _kept(boxes, scores, kept)


def _xywh(boxes: Tensor) -> Any:
    corners = boxes.detach().double()
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()


def _kept(boxes: Tensor, scores: Tensor, kept: Any) -> tuple[Tensor, Tensor]:
    indices = torch.as_tensor([int(index) for index in kept], dtype=torch.long, device=boxes.device)
    indices = indices[scores[indices].argsort(descending=True, stable=True)]
    return torch.cat([boxes[indices], scores[indices, None]], dim=1), indices
