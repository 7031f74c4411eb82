"""The model as Triton's Python backend runs it.

Publishing lays out a version folder so:

    <name>/config.pbtxt          triton_config.config_pbtxt
    <name>/<version>/model.py    this file
    <name>/<version>/serving/    this package
    <name>/<version>/model.onnx  and model.json

In: IMAGE [1] bytes. Out: BOXES [n, 4] float32 xyxy in source pixels, SCORES [n] float32, LABELS [n] int32, COUNT [1]
int32. One image a request is answered without padding. Several in one request are padded with zeros to the largest n,
and COUNT says how many rows of each are real. An image that cannot be read makes an error of its own request only.

A request for the output REPORT alone is answered with that one, whatever its image: JSON that says with which runtime
this process serves, what each took when they were measured, and its last log lines (journal.py).
"""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
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
_journal = importlib.import_module(".serving.journal", __package__)
_trial = importlib.import_module(".serving.trial", __package__)

REPORT = "REPORT"
REFUSALS_S = 10.0
"""Between two lines about images that were refused: what comes from outside must not fill a log."""


class TritonPythonModel:
    """One instance is one process with one loaded detector."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"]).get("parameters", {})
        threads = int(parameters.get("threads", {}).get("string_value", "1"))
        runtimes = parameters["runtimes"]["string_value"].split(",")
        self._journal = _journal.Journal()
        self._refused, self._refusal_told_s = 0, -REFUSALS_S
        begun_s = time.perf_counter()
        # A model that ends this process while it loads would block its name in Triton for good.
        trial_s = float(parameters["trial_s"]["string_value"])
        self._choice = _trial.attempt(Path(__file__).parent, threads, trial_s, runtimes)
        tried_s = time.perf_counter()
        cv2.setNumThreads(1)
        self._detector = _detector.Detector.load(Path(__file__).parent, threads, self._choice.runtime)
        loaded_s = time.perf_counter()
        self._detector.warm()
        warm_s = time.perf_counter()
        for runtime, reason in self._choice.unusable.items():
            self._log("WARNING", f"{runtime} is not used: {reason}")
        for runtime, took_ms in self._choice.measured_ms.items():
            self._log("INFO", f"{runtime} takes {took_ms:.1f} ms for one image")
        self._log(
            "INFO",
            f"serves with {self._choice.runtime} on {threads} threads: trial {tried_s - begun_s:.1f} s, "
            f"load {loaded_s - tried_s:.1f} s, warm-up {warm_s - loaded_s:.1f} s",
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request; the images of all of them go through the network together."""
        prepared = [self._prepare(request) for request in requests]
        detections = iter(self._infer([image for images in prepared if isinstance(images, list) for image in images]))
        return [self._response(images, detections) for images in prepared]

    def _prepare(self, request: Any) -> Any:
        """A request's prepared images, the reason why one of them cannot be read, or None if it asks for REPORT."""
        if list(request.requested_output_names()) == [REPORT]:
            return None
        data = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        try:
            return [self._detector.prepare(item) for item in data.reshape(-1)]
        except _errors.UnreadableImage as error:
            self._tell_refusal(error.reason)
            return error

    def _tell_refusal(self, reason: str) -> None:
        self._refused += 1
        if time.monotonic() - self._refusal_told_s >= REFUSALS_S:
            self._log("WARNING", f"images were refused: {self._refused}; the last: {reason}")
            self._refused, self._refusal_told_s = 0, time.monotonic()

    def _infer(self, images: list[Any]) -> list[Any]:
        try:
            found: list[Any] = self._detector.infer(images)
        except Exception as error:
            self._log("ERROR", f"{len(images)} images were not computed: {error!r}")
            raise
        return found

    def _response(self, images: Any, detections: Iterator[Any]) -> Any:
        if images is None:
            report = {"process": self._journal.process, **asdict(self._choice), "lines": self._journal.lines()}
            content = np.array([[json.dumps(report)]], np.object_)
            return pb_utils.InferenceResponse([pb_utils.Tensor(REPORT, content)])
        if isinstance(images, _errors.UnreadableImage):
            error = pb_utils.TritonError(f"IMAGE: {images.reason}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return _boxes([next(detections) for _ in images])

    def _log(self, level: str, message: str) -> None:
        self._journal.write(level, message)
        write = {"INFO": pb_utils.Logger.log_info, "WARNING": pb_utils.Logger.log_warn}
        write.get(level, pb_utils.Logger.log_error)(message)


def _boxes(detections: list[Any]) -> Any:
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
