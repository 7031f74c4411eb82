"""Images for training and validation, loaded exactly as the served model loads them."""

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from numpy.typing import NDArray

from saucer.serving.decode import decode
from saucer.serving.errors import UnreadableImage
from saucer.serving.letterbox import Placement, letterbox
from saucer.worker.errors import UserError

MAX_CACHE_BYTES = 1024 * 1024 * 1024
"""Letterboxed images that are kept in memory; images beyond it are decoded each time they are used."""


@TRANSFORMS.register_module()
class LoadLetterboxed(BaseTransform):  # type: ignore[misc]  # mmcv ships no types
    """Sets `img` to uint8 [size, size, 3] BGR, and scales boxes that are loaded already.

    Decoding and shrinking a photograph takes longer than all augmentations, and always gives the same pixels, so
    they are kept up to MAX_CACHE_BYTES.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._cache: dict[str, tuple[NDArray[np.uint8], Placement]] = {}
        self._cached_bytes = 0

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        pixels, placement = self._load(results["img_path"])
        results["img"] = pixels.copy()  # the augmentations after this one write into it
        results["img_shape"] = (self._size, self._size)
        results["ori_shape"] = (placement.height, placement.width)
        results["scale_factor"] = (placement.scale_x, placement.scale_y)
        if "gt_bboxes" in results:
            boxes = results["gt_bboxes"]
            boxes.clip_(results["ori_shape"])
            boxes.rescale_(results["scale_factor"])
        return results

    def _load(self, path: str) -> tuple[NDArray[np.uint8], Placement]:
        loaded = self._cache.get(path)
        if loaded is None:
            try:
                loaded = letterbox(decode(Path(path).read_bytes()), self._size)
            except UnreadableImage as error:
                raise UserError(f"Image {Path(path).name}: {error.reason}. Import the data without it.") from error
            if self._cached_bytes + loaded[0].nbytes <= MAX_CACHE_BYTES:
                self._cache[path] = loaded
                self._cached_bytes += loaded[0].nbytes
        return loaded
