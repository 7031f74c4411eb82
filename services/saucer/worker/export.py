"""The trained detector as a model folder: one graph from raw pixels to boxes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saucer.serving.runtime import INPUT_NAME, OUTPUT_NAMES, Network
from saucer.serving.spec import GRAPH_FILE, SPEC_FILE, ModelSpec

OPSET = 17
BOX_TOLERANCE_PX = 0.05
SCORE_TOLERANCE = 1e-3
"""More difference between graph and torch, on one image, fails the export."""


class ExportError(Exception):
    """The exported graph does not compute what the trained model computes."""


class RawDetector(nn.Module):
    """Normalisation, network and box decoding of an RTMDet, without selection of boxes.

    uint8 [n, size, size, 3] BGR → boxes [n, anchors, 4] xyxy in input pixels, scores [n, anchors, classes].
    """

    mean: Tensor
    std: Tensor
    points: Tensor

    def __init__(self, detector: nn.Module, size: int) -> None:
        super().__init__()
        detector = detector.cpu().eval()
        preprocessor: Any = detector.data_preprocessor
        head: Any = detector.bbox_head
        parts: Any = detector
        self.backbone, self.neck, self.head = parts.backbone, parts.neck, head
        self.swap = bool(preprocessor._channel_conversion)
        self.register_buffer("mean", preprocessor.mean.float().clone())
        self.register_buffer("std", preprocessor.std.float().clone())
        sizes = [(size // height, size // width) for height, width in head.prior_generator.strides]
        self.register_buffer("points", torch.cat(head.prior_generator.grid_priors(sizes, device="cpu")))
        self.classes = int(head.num_classes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.permute(0, 3, 1, 2).float()
        if self.swap:
            pixels = torch.flip(pixels, dims=[1])
        levels = self.head(self.neck(self.backbone((pixels - self.mean) / self.std)))
        scores = torch.cat([self._flat(level, self.classes) for level in levels[0]], dim=1).sigmoid()
        distances = torch.cat([self._flat(level, 4) for level in levels[1]], dim=1)
        boxes = torch.cat([self.points - distances[..., :2], self.points + distances[..., 2:]], dim=-1)
        return boxes, scores

    @staticmethod
    def _flat(level: Tensor, channels: int) -> Tensor:
        return level.permute(0, 2, 3, 1).flatten(1, 2).reshape(level.shape[0], -1, channels)


def export(raw: nn.Module, spec: ModelSpec, folder: Path, probe: NDArray[np.uint8]) -> None:
    """Writes the model folder, and checks the graph against torch on `probe` uint8 [size, size, 3].

    `raw`: a RawDetector, or a RawClassifier.

    Raises ExportError if they differ by more than the tolerances.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = raw.eval()
    images = torch.from_numpy(np.stack([probe, probe[:, ::-1].copy()]))
    with torch.no_grad():
        torch.onnx.export(
            raw,
            (images,),
            str(folder / GRAPH_FILE),
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes={name: {0: "n"} for name in (INPUT_NAME, *OUTPUT_NAMES)},
            opset_version=OPSET,
            dynamo=False,
        )
        expected = [tensor.numpy() for tensor in raw(images[:1])]
    (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
    boxes, scores = Network(folder / GRAPH_FILE, threads=1)(images[:1].numpy())
    box_difference = float(np.abs(boxes - expected[0]).max())
    score_difference = float(np.abs(scores - expected[1]).max())
    if not (box_difference <= BOX_TOLERANCE_PX and score_difference <= SCORE_TOLERANCE):
        raise ExportError(f"boxes differ by {box_difference} px, scores by {score_difference}")
