"""Detections of whole splits, by the very code that serves."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saucer.serving.detections import Detections
from saucer.serving.detector import MAX_BATCH, Detector, ImageDetections
from saucer.worker import checkpoint, splits
from saucer.worker.errors import HaltedError
from saucer.worker.hooks import Send
from saucer.worker.job import EndReason, PredictJob, Result, Stage, StageName
from saucer.worker.metric import as_rows, load_truth, mean_average_precision, top_one
from saucer.worker.splits import Split
from saucer.worker.stopping import Stopper

PREDICT_STAGE_S = 0.5
"""The stage is told at most this often."""


@dataclass(frozen=True)
class Predicted:
    """Files by kind (job.Result.files); `whole`: of every image."""

    files: dict[str, Path]
    whole: bool


def run(job: PredictJob, stopper: Stopper, threads: int, send: Send) -> Result:
    """Predicts the job's splits. Raises HaltedError at any order to stop."""
    send(Stage(StageName.PREPARING))
    deadline_s = time.monotonic() + job.max_duration_ms / 1000

    def raise_if_stopped() -> None:
        if stopper.check() is EndReason.STOPPED:
            raise HaltedError(stopper.stop_reason)

    folder = Path(job.workdir) / "result"
    folder.mkdir(parents=True, exist_ok=True)
    detector, predicted = Detector.load(Path(job.model), threads), splits.predicted(job)
    # Now: what was loaded takes no longer for more images, and the elapsed time is what estimates learn from.
    stopper.clock.start()
    found = predict_splits(
        detector,
        predicted,
        folder,
        deadline_s=deadline_s,
        raise_if_halted=raise_if_stopped,
        send=send,
        classifies=job.classifies,
    )
    stopper.clock.stop()
    if not found.whole:
        return Result(EndReason.DURATION_REACHED, {}, 0, stopper.clock.elapsed_ms)
    files = {**_of_no_image(folder), **found.files, "log": Path(job.workdir) / "log.txt"}
    return Result(EndReason.COMPLETED, {kind: str(path) for kind, path in files.items()}, 0, stopper.clock.elapsed_ms)


def _of_no_image(folder: Path) -> dict[str, Path]:
    """Files for splits that the data does not have: who reads them need not know that."""
    files = {f"detections_{name}": folder / f"detections_{name}.npz" for name in ("validation", "test")}
    for path in files.values():
        if not path.exists():
            checkpoint.write_atomically(path, Detections.collect([], []).to_bytes())
    return files


def predict_splits(
    detector: Detector,
    predicted: Sequence[Split],
    folder: Path,
    *,
    deadline_s: float,
    raise_if_halted: Callable[[], None],
    send: Send,
    classifies: bool,
) -> Predicted:
    """Writes detections of each split and a report; see predict()."""
    files: dict[str, Path] = {}
    report: dict[str, object] = {}
    told = _StageTeller(sum(len(split.images) for split in predicted), raise_if_halted, send)
    whole = True
    for split in predicted:
        detections = predict(detector, split.images, deadline_s=deadline_s, on_batch=told)
        told.split_done(len(detections.images))
        whole = whole and len(detections.images) == len(split.images)
        path = folder / f"detections_{split.name}.npz"
        checkpoint.write_atomically(path, detections.to_bytes())
        files[f"detections_{split.name}"] = path
        truth = load_truth(split.annotations)
        accuracy = top_one(truth, detections) if classifies else mean_average_precision(truth, as_rows(detections))
        report[split.name] = _scores(split, detections_count=len(detections.images)) | accuracy
    files["report"] = folder / "report.json"
    files["report"].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return Predicted(files, whole)


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


class _StageTeller:
    def __init__(self, total: int, raise_if_halted: Callable[[], None], send: Send) -> None:
        self._total = total
        self._raise_if_halted = raise_if_halted
        self._send = send
        self._before = 0
        self._told_s = 0.0
        send(Stage(StageName.PREDICTING, 0, total))

    def __call__(self, done: int) -> None:
        self._raise_if_halted()
        if time.monotonic() - self._told_s >= PREDICT_STAGE_S or self._before + done == self._total:
            self._told_s = time.monotonic()
            self._send(Stage(StageName.PREDICTING, self._before + done, self._total))

    def split_done(self, images: int) -> None:
        self._before += images


def _scores(split: Split, *, detections_count: int) -> dict[str, float]:
    if detections_count < len(split.images):
        logging.getLogger("saucer").warning(
            "the finish limit ended prediction of the %s split after %d of %d images",
            split.name,
            detections_count,
            len(split.images),
        )
    return {"images": len(split.images), "predicted_images": detections_count}
