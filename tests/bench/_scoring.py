"""score_vs_hotcoco_s, score_vs_pycocotools_s, score_memory_mb, large_score_memory_mb and score_growth.

Run as a program, `python -m tests.bench._scoring [large]`, it scores val2017's size, or the largest, as the service
does, in a child process, and says the peak of that child's resident memory in MB.
"""

import asyncio
import contextlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from saucer.evaluation.bad_cases import bad_cases
from saucer.evaluation.confusion import confusion_matrix
from saucer.evaluation.domain import DEFAULT_THRESHOLD
from saucer.evaluation.matching import Scored
from saucer.evaluation.metrics import coco_evaluation
from saucer.evaluation.scoring import score
from saucer.evaluation.scoring_child import keep_pages
from saucer.evaluation.scoring_process import FILE_BYTES, MEMORY_BYTES, TIME_LIMIT_S, ScoringFiles, run_child
from saucer.evaluation.truth import Truth, from_coco
from saucer.lib.confinement import ChildLimits
from saucer.serving.detections import Detections
from tests.bench._detections import Split, large_split, split
from tests.bench.harness import LEAST_ROUNDS, Row, Say, row

IMAGES, CLASSES = 5_000, 80
GROWN = 10
MEMORY_REFERENCE_MB = 300.0
LARGE_MEMORY_REFERENCE_MB = MEMORY_BYTES / 1024**2


def ours_s(scored_split: Split) -> float:
    """The whole stage."""
    started = time.perf_counter()
    made = score(scored_split.manifest, scored_split.test, scored_split.validation, scored_split.classes)
    scored = Scored.from_bytes(made.scored)
    bad_cases(scored, DEFAULT_THRESHOLD)
    confusion_matrix(scored, DEFAULT_THRESHOLD)
    return time.perf_counter() - started


def hotcoco_s(truth: Truth, detections: Detections) -> float:
    """Evaluate and accumulate."""
    evaluation = coco_evaluation(truth, detections)
    started = time.perf_counter()
    evaluation.evaluate()
    evaluation.accumulate()
    return time.perf_counter() - started


def pycocotools_s(labels: COCO, results: COCO) -> float:
    """Evaluate and accumulate."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(labels, results, "bbox")
        started = time.perf_counter()
        evaluation.evaluate()
        evaluation.accumulate()
        return time.perf_counter() - started


def _coco(document: dict[str, Any]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = document
        coco.createIndex()
    return coco


def _results(document: dict[str, Any], detections: Detections) -> COCO:
    corners = detections.box.astype(np.float64)
    size = corners[:, 2:] - corners[:, :2]
    rows = zip(
        detections.image_id.tolist(),
        detections.label.tolist(),
        np.concatenate([corners[:, :2], size], axis=1).tolist(),
        size.prod(axis=1).tolist(),
        detections.score.tolist(),
        strict=True,
    )
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": area,
            "iscrowd": 0,
            "score": value,
        }
        for number, (image, label, box, area, value) in enumerate(rows, 1)
    ]
    return _coco(document | {"annotations": annotations})


async def measure(say: Say) -> list[Row]:
    """The issue's rows, each reference measured in turns with ours, and what the largest size takes."""
    small, large = split(IMAGES, CLASSES), split(GROWN * IMAGES, CLASSES)
    document, detections = json.loads(small.manifest), Detections.from_bytes(small.test)
    truth = from_coco(document, small.classes)
    labels, results = _coco(document), _results(document, detections)
    measured: dict[str, list[float]] = {}

    def take(name: str, measure_s: Callable[[], float]) -> None:
        measured.setdefault(name, []).append(measure_s())
        say(f"{name} {len(measured[name])}/{LEAST_ROUNDS}: {measured[name][-1]:.4g} s")

    keep_pages()  # as the child process has it, here for all
    ours_s(small)  # what is imported and compiled at the first use
    for _ in range(LEAST_ROUNDS):
        take("ours", lambda: ours_s(small))
        take("hotcoco", lambda: hotcoco_s(truth, detections))
        take("pycocotools", lambda: pycocotools_s(labels, results))
        take("ours, grown", lambda: ours_s(large))
    peaks_mb: dict[str, list[float]] = {"": [], "large": []}
    for size, peaks in peaks_mb.items():
        for _ in range(LEAST_ROUNDS):
            peaks.append(await asyncio.to_thread(_peak_mb, size))
            say(f"{size} memory {len(peaks)}/{LEAST_ROUNDS}: {peaks[-1]:.4g} MB")
    return [
        row("score_vs_hotcoco_s", "s", "<= 4", measured["ours"], measured["hotcoco"]),
        row("score_vs_pycocotools_s", "s", "<= 0.025", measured["ours"], measured["pycocotools"]),
        row("score_memory_mb", "MB", "<= 1.0", peaks_mb[""], [MEMORY_REFERENCE_MB] * LEAST_ROUNDS),
        row("large_score_memory_mb", "MB", "<= 1.0", peaks_mb["large"], [LARGE_MEMORY_REFERENCE_MB] * LEAST_ROUNDS),
        row("score_growth", "s", "<= 11", measured["ours, grown"], measured["ours"]),
    ]


def _peak_mb(size: str) -> float:
    command = (sys.executable, "-m", "tests.bench._scoring", *size.split())
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def _score_as_the_service_does(scored_split: Split) -> None:
    with contextlib.ExitStack() as stack:
        files = ScoringFiles(*(stack.enter_context(TemporaryFile()) for _ in range(6)))
        for file, data in (
            (files.manifest, scored_split.manifest),
            (files.test, scored_split.test),
            (files.validation, scored_split.validation),
        ):
            file.write(data)
            file.flush()
        await run_child(files, scored_split.classes, ChildLimits(MEMORY_BYTES, FILE_BYTES, TIME_LIMIT_S), {})


if __name__ == "__main__":
    asyncio.run(_score_as_the_service_does(large_split() if "large" in sys.argv else split(IMAGES, CLASSES)))
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
