"""Detections of whole splits, by the very code that serves."""

import time
from collections.abc import Callable
from pathlib import Path

from saucer.serving.detections import Detections
from saucer.serving.detector import MAX_BATCH, Detector, ImageDetections


def predict(
    detector: Detector,
    images: tuple[tuple[int, Path], ...],
    *,
    deadline_s: float,
    on_batch: Callable[[int], None],
) -> Detections:
    """Detections of `images` (id, path), batch by batch; `on_batch` is told how many images are done and may raise.

    At `deadline_s`, by time.monotonic(), it ends with the images done so far, which the result names. Raises
    UnreadableImage at an image that cannot be read.
    """
    done: list[int] = []
    found: list[ImageDetections] = []
    for start in range(0, len(images), MAX_BATCH):
        if time.monotonic() >= deadline_s:
            break
        part = images[start : start + MAX_BATCH]
        found += detector.detect([path.read_bytes() for _, path in part])
        done += [image for image, _ in part]
        on_batch(len(done))
    return Detections.collect(done, found)
