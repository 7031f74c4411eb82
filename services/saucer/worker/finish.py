"""From weights to what the user gets: model folder, detections of validation and test split, report."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from mmengine.config import Config
from torch import nn

from saucer.serving.decode import decode
from saucer.serving.detector import Detector
from saucer.serving.letterbox import letterbox
from saucer.serving.spec import GRAPH_FILE, SPEC_FILE, ModelSpec
from saucer.worker import checkpoint, engine_config
from saucer.worker.checkpoint import RunState
from saucer.worker.classifier import Classifier, RawClassifier
from saucer.worker.export import RawDetector, export
from saucer.worker.hooks import Send
from saucer.worker.job import Stage, StageName, TrainJob
from saucer.worker.predict import predict_splits
from saucer.worker.splits import Split, Splits

EXPORT_STEPS = 2
MAX_ANSWERS = 5
"""Of a classifier to one image, the best; top-5 needs no more."""


def finish(
    job: TrainJob,
    splits: Splits,
    detector: nn.Module,
    state: RunState,
    *,
    threads: int,
    raise_if_halted: Callable[[], None],
    send: Send,
) -> dict[str, str]:
    """Writes the result below the work folder; returns paths by kind (job.Result.files).

    `detector` carries the weights to publish. Prediction that exceeds the job's finish limit leaves images out; the
    test split comes first.
    """
    deadline_s = time.monotonic() + job.finish_limit_ms / 1000
    folder = Path(job.workdir) / "result"
    folder.mkdir(parents=True, exist_ok=True)
    raise_if_halted()
    send(Stage(StageName.EXPORTING, 0, EXPORT_STEPS))
    files = {"weights": folder / "best.pth", "onnx": folder / GRAPH_FILE, "model": folder / SPEC_FILE}
    _write_weights(job, detector, state, files["weights"])
    files["config"] = _write_config(job, splits, state, folder)
    send(Stage(StageName.EXPORTING, 1, EXPORT_STEPS))
    spec = ModelSpec(
        classes=job.classes,
        input_size=job.input_size,
        score_floor=0.0 if job.classifies else engine_config.SCORE_FLOOR,
        nms_iou=engine_config.NMS_IOU,
        max_detections=MAX_ANSWERS if job.classifies else engine_config.MAX_DETECTIONS,
    )
    probe, _ = letterbox(decode(splits.train.images[0][1].read_bytes()), job.input_size)
    raw: nn.Module = (
        RawClassifier(cast(Classifier, detector), job.input_size)
        if job.classifies
        else RawDetector(detector, job.input_size)
    )
    export(raw, spec, folder, probe)
    send(Stage(StageName.EXPORTING, EXPORT_STEPS, EXPORT_STEPS))
    raise_if_halted()

    predicted = [split for split in (splits.test, splits.validation) if split is not None]
    served = Detector.load(folder, threads)
    files |= predict_splits(
        served,
        predicted,
        folder,
        deadline_s=deadline_s,
        raise_if_halted=raise_if_halted,
        send=send,
        classifies=job.classifies,
    ).files
    files |= {"metrics": Path(job.workdir) / "metrics.jsonl", "log": Path(job.workdir) / "log.txt"}
    # Written anew: a job that only finishes what a checkpoint holds has no such file yet.
    files["metrics"].write_text("".join(json.dumps(line) + "\n" for line in state.history), encoding="utf-8")
    return {kind: str(path) for kind, path in files.items()}


def _write_weights(job: TrainJob, detector: nn.Module, state: RunState, path: Path) -> None:
    meta = {
        "classes": list(job.classes),
        "input_size": job.input_size,
        "starting_point": str(job.starting_point),
        "iteration": state.best_iteration or state.iteration,
        "top_1" if job.classifies else "map_50": state.best_map_50,
    }
    weights = {name: tensor.detach().cpu() for name, tensor in detector.state_dict().items()}
    checkpoint.save(path, {"state_dict": weights, "meta": meta})


def _write_config(job: TrainJob, splits: Splits, state: RunState, folder: Path) -> Path:
    """The engine's configuration, with paths that mean something to the user instead of this worker's."""
    neutral = dataclasses.replace(job, workdir="work", images="images", resume=None, finish_only=False, processes=1)
    if neutral.weights is not None:
        neutral = dataclasses.replace(neutral, weights=Path(neutral.weights).name)

    def renamed(split: Split | None) -> Split | None:
        return None if split is None else dataclasses.replace(split, annotations=Path(f"{split.name}.json"))

    train = renamed(splits.train)
    assert train is not None
    names = Splits(train, renamed(splits.validation), renamed(splits.test))
    path = folder / "config.py"
    path.write_text(Config(engine_config.build(neutral, names, state.precision)).pretty_text, encoding="utf-8")
    return path
