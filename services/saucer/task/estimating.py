"""How long a run will take: by what earlier runs took on the spec, or by rules of thumb before there were any."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from saucer.task.defaults import Data, Machine
from saucer.task.domain import Config, Form

# Seconds for each image and megapixel of the input on one core, or one GPU, before anything was measured.
CPU_S_PER_MEGAPIXEL = 2.6
GPU_S_PER_MEGAPIXEL = 0.03
# Of a run that only predicts, an image takes this share: no way back, and a runtime made for inference.
PREDICTING_SHARE = 0.1
# Loading, export and prediction.
OVERHEAD_MS = 30_000
# Of the runs most like the one that is asked for, the newest that count.
NEWEST = 5
# Runs on the spec among which those are looked for.
LOOKED_AT = 200


@dataclass(frozen=True)
class Pace:
    """What one run took. Megapixels are those of the input, over all images of all iterations, or those predicted."""

    run_id: str
    region_id: str
    spec_id: str
    count: int
    starting_point: str
    classification: bool
    dataset_version_id: str
    input_size: int
    # Of training, validation included, or of prediction.
    ms_per_megapixel: float
    # Of the rest.
    overhead_ms: int
    ended_at: datetime


def megapixels(images: int, input_size: int) -> float:
    """Of so many images of that input."""
    return images * input_size**2 / 1e6


def estimate_ms(form: Form, config: Config, data: Data, machine: Machine, paces: Sequence[Pace]) -> int:
    """Of the whole run, from start to model or detections.

    `paces` are those of the spec and count, of runs that train or that predict as this one, the newest first.
    """
    work = megapixels(_images(config, data), config.input_size)
    like = _most_alike(form, config, paces)
    if not like:
        # Prediction is one process's, however many train together.
        processes = 1 if config.model_id else form.count
        # Processes have a GPU each, and share the cores of a machine without.
        per_megapixel = GPU_S_PER_MEGAPIXEL / processes if machine.gpus else CPU_S_PER_MEGAPIXEL / machine.cpu_cores
        share = PREDICTING_SHARE if config.model_id else 1
        return OVERHEAD_MS + round(1000 * share * work * per_megapixel)
    return round(
        statistics.median(pace.overhead_ms for pace in like)
        + work * statistics.median(pace.ms_per_megapixel for pace in like)
    )


def _images(config: Config, data: Data) -> int:
    """That a run goes through, each epoch's again."""
    if config.model_id:
        return data.validation_images + data.test_images
    return config.epochs * config.batch_size * -(-data.training_images // config.batch_size)


def _most_alike(form: Form, config: Config, paces: Sequence[Pace]) -> list[Pace]:
    """The same network; of these the same data if there are any, and of these the nearest input size."""
    like = [
        pace
        for pace in paces
        if (pace.starting_point, pace.classification) == (config.starting_point, config.classification)
    ]
    like = [pace for pace in like if pace.dataset_version_id == form.dataset_version_id] or like
    nearest = min((abs(pace.input_size - config.input_size) for pace in like), default=0)
    return [pace for pace in like if abs(pace.input_size - config.input_size) == nearest][:NEWEST]
