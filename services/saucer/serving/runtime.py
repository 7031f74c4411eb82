"""The runtime that computes the graph."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ModelFolderError

INPUT_NAME = "image"
OUTPUT_NAMES = ("boxes", "scores")


class Network:
    """`image` uint8 [n, size, size, 3] in BGR order → `boxes` [n, anchors, 4] xyxy, `scores` [n, anchors, classes]."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises ModelFolderError if the file is no such graph."""
        # Here: services read detections with this package, and their image has no runtime.
        import onnxruntime  # noqa: PLC0415 - heavy, and not in every process

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take the processor from a training job or a second instance beside this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ModelFolderError(f"{path.name} cannot be loaded: {error}") from error
        names = [item.name for item in self._session.get_inputs()], [item.name for item in self._session.get_outputs()]
        if names != ([INPUT_NAME], list(OUTPUT_NAMES)):
            raise ModelFolderError(f"{path.name} has inputs and outputs {names}, not {INPUT_NAME} and {OUTPUT_NAMES}")

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        boxes, scores = self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: images})
        return np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
