"""Checkpoints: written whole or not at all, and read without unpickling anything but tensors and plain values."""

import io
import os
import pickle
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer
from numpy._core.multiarray import _reconstruct

from saucer.worker.errors import CheckpointError

BACKEND = "saucer-atomic"
# The object store's checksum of the whole file is what a checkpoint is checked by; a second one took as long as all the
# rest of writing it.
torch.serialization.set_crc32_options(compute_crc32=False)


def _no_method(owner: object, name: str) -> None:
    """Stands in for getattr, by which a HistoryBuffer names methods of its own; nothing here calls them."""
    if owner is not HistoryBuffer:
        raise pickle.UnpicklingError(f"{name} of {owner!r} is not to be had")


METRIC_CLASSES: list[Any] = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    (_no_method, "builtins.getattr"),
    # By its name in numpy 2, and in 1.
    _reconstruct,
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
]
"""What may stand in a file of the model zoo beside tensors and plain values: smoothed metrics, in arrays of numbers."""
STATE_KEY = "saucer"
"""Under it a checkpoint keeps what mmengine does not: RunState, as plain values."""


@dataclass
class RunState:
    """What a run knows beside weights and optimiser, and takes along into the next attempt.

    `best_weights` is the state dict at the best validation, None before the first, and `best_map_50` its accuracy: a
    classifier's is top-1; `history` the metrics so far, as written to metrics.jsonl; `validated_iteration` that of the
    last whole validation; `validation_interval` in iterations, 0 before training began; `random` as
    randomness.capture() gives it, and `others_random` of the other processes that train together.
    """

    iteration: int
    elapsed_ms: int
    precision: str
    history: list[dict[str, Any]]
    best_weights: dict[str, torch.Tensor] | None = None
    best_map_50: float | None = None
    best_iteration: int = 0
    validated_iteration: int = 0
    validation_interval: int = 0
    random: dict[str, Any] | None = None
    others_random: list[dict[str, Any]] = field(default_factory=list)


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old file or the whole new one, also after a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes what torch.load(weights_only=True) reads again."""
    with io.BytesIO() as buffer:
        torch.save(content, buffer)
        write_atomically(path, buffer.getvalue())


def load(path: Path) -> tuple[dict[str, Any], RunState]:
    """A checkpoint's weights and its RunState.

    Raises CheckpointError if the file is cut, would need unpickling of more than tensors, or is not one of ours. Called
    before mmengine resumes from the file, since mmengine falls back to unrestricted unpickling.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content["state_dict"], RunState(**content[STATE_KEY])
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name} is not a checkpoint of a run: {error}") from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model's state, from a file of ours or of MMDetection's model zoo.

    The zoo's files carry metrics beside them, whose classes are those of METRIC_CLASSES. Raises CheckpointError.
    """
    try:
        with torch.serialization.safe_globals(METRIC_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor for name, tensor in content["state_dict"].items() if isinstance(tensor, torch.Tensor)}
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name} holds no weights: {error}") from error


class AtomicBackend(LocalBackend):  # type: ignore[misc]  # mmengine ships no types
    """mmengine's local files, written by write_atomically."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(Path(filepath), obj)


register_backend(BACKEND, AtomicBackend, force=True)
