"""The whole way from image bytes to boxes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .boxes import select
from .decode import decode
from .letterbox import Placement, into_source, letterbox
from .runtime import EVALUATED_WITH, Network
from .spec import GRAPH_FILE, ModelSpec

MAX_BATCH = 8
"""Images that one call of the network takes; longer lists are computed in parts, which bounds the memory."""


@dataclass(frozen=True)
class PreparedImage:
    """An image in the model's input: pixels uint8 [size, size, 3] and where they lie in the source."""

    pixels: NDArray[np.uint8]
    placement: Placement


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image by score descending: boxes float32 [n, 4] xyxy in source pixels, scores float32 [n],
    labels int32 [n] (index into the model's classes); width and height of the upright image in pixels."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    width: int
    height: int


class Detector:
    """A loaded model. One caller at a time."""

    def __init__(self, spec: ModelSpec, network: Network) -> None:
        self.spec = spec
        self._network = network

    @classmethod
    def load(cls, folder: str | Path, threads: int = 1, runtime: str = EVALUATED_WITH) -> "Detector":
        """Loads a model folder; `threads` is what the network may use.

        Raises ModelFolderError if a file is missing or is not what this version reads, RuntimeUnusable.
        """
        path = Path(folder)
        return cls(ModelSpec.load(path), Network(path / GRAPH_FILE, threads, runtime))

    def detect(self, images: Sequence[bytes]) -> list[ImageDetections]:
        """Detections of encoded images, one by one as they came.

        How images are batched together does not change an image's detections beyond rounding of the last digits.
        Raises UnreadableImage at the first image that cannot be read.
        """
        return self.infer([self.prepare(image) for image in images])

    def prepare(self, image: bytes) -> PreparedImage:
        """Decodes one image into the model's input. Raises UnreadableImage."""
        return PreparedImage(*letterbox(decode(image), self.spec.input_size))

    def infer(self, images: Sequence[PreparedImage]) -> list[ImageDetections]:
        """Detections of prepared images, in their order."""
        detections: list[ImageDetections] = []
        for start in range(0, len(images), MAX_BATCH):
            part = images[start : start + MAX_BATCH]
            boxes, scores = self._network(np.stack([image.pixels for image in part]))
            detections += self.finish(boxes, scores, part)
        return detections

    def finish(
        self, boxes: NDArray[np.float32], scores: NDArray[np.float32], images: Sequence[PreparedImage]
    ) -> list[ImageDetections]:
        """Selects detections from the network's output [n, anchors, 4] and [n, anchors, classes] for `images`."""
        return [self._finish(*item) for item in zip(boxes, scores, images, strict=True)]

    def compute_blank(self, batch: int) -> None:
        """One call of the network alone, with this many blank images."""
        size = self.spec.input_size
        self._network(np.zeros((batch, size, size, 3), np.uint8))

    def warm(self, batches: Iterable[int] = (1, MAX_BATCH, *range(2, MAX_BATCH))) -> None:
        """Computes once at every batch size, so that no caller pays for first allocations.

        The ends first: TensorRT makes its engine anew for a size outside of those that it has met.
        """
        for batch in batches:
            self.compute_blank(batch)

    def _finish(self, boxes: NDArray[np.float32], scores: NDArray[np.float32], image: PreparedImage) -> ImageDetections:
        spec, placement = self.spec, image.placement
        chosen, values, labels = select(
            # Before selection, so that what lies in the border only is clipped to nothing and left out.
            into_source(boxes, placement),
            scores,
            score_floor=spec.score_floor,
            nms_iou=spec.nms_iou,
            max_detections=spec.max_detections,
        )
        return ImageDetections(chosen, values, labels, placement.width, placement.height)
