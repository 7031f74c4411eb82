"""The model as Triton's Python backend runs it.

Publishing lays out a version folder so:

    <name>/config.pbtxt          triton_config.config_pbtxt
    <name>/<version>/model.py    this file
    <name>/<version>/serving/    this package
    <name>/<version>/model.onnx  and model.json

In: IMAGE [1] bytes. Out: BOXES [n, 4] float32 xyxy in source pixels, SCORES [n] float32, LABELS [n] int32, COUNT [1]
int32. One image a request is answered without padding. Several in one request are padded with zeros to the largest n,
and COUNT says how many rows of each are real. An image that cannot be read makes an error of its own request only.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

# A __pycache__ written into the version folder makes Triton's next load reload a version that runs. Python has already
# decided about this file itself, so Triton's environment needs PYTHONDONTWRITEBYTECODE=1 as well.
sys.dont_write_bytecode = True
# Triton imports this file as `<version>.model`; the package beside it is relative to that.
_detector = importlib.import_module(".serving.detector", __package__)
_errors = importlib.import_module(".serving.errors", __package__)
_trial = importlib.import_module(".serving.trial", __package__)


class TritonPythonModel:
    """One instance is one process with one loaded detector."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters", {})
        threads = int(parameters.get("threads", {}).get("string_value", "1"))
        # A model that ends this process while it loads would block its name in Triton for good.
        _trial.attempt(Path(__file__).parent, threads, float(parameters["trial_s"]["string_value"]))
        cv2.setNumThreads(1)
        self._detector = _detector.Detector.load(Path(__file__).parent, threads)
        self._detector.warm()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request; the images of all of them go through the network together."""
        prepared = [self._prepare(request) for request in requests]
        readable = [images for images in prepared if not isinstance(images, _errors.UnreadableImage)]
        detections = iter(self._detector.infer([image for images in readable for image in images]))
        responses = []
        for images in prepared:
            if isinstance(images, _errors.UnreadableImage):
                error = pb_utils.TritonError(f"IMAGE: {images.reason}", pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
            else:
                responses.append(_response([next(detections) for _ in images]))
        return responses

    def _prepare(self, request: Any) -> Any:
        """The prepared images of a request, or the reason why one of them cannot be read."""
        data = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            return [self._detector.prepare(item) for item in data.reshape(-1)]
        except _errors.UnreadableImage as error:
            return error


def _response(detections: list[Any]) -> Any:
    rows = max(len(item.scores) for item in detections)
    boxes = np.zeros((len(detections), rows, 4), np.float32)
    scores = np.zeros((len(detections), rows), np.float32)
    labels = np.zeros((len(detections), rows), np.int32)
    for index, item in enumerate(detections):
        count = len(item.scores)
        boxes[index, :count], scores[index, :count], labels[index, :count] = item.boxes, item.scores, item.labels
    counts = np.array([[len(item.scores)] for item in detections], np.int32)
    named = {"BOXES": boxes, "SCORES": scores, "LABELS": labels, "COUNT": counts}
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in named.items()])
