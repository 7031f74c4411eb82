"""The files of an attempt: checked where the worker put them and, once accepted, copied to where the user finds them.

What Saucer loads again stays at the attempt's own prefix, where no user can write; the user's are copies.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from saucer.lib.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from saucer.lib.objects import Objects
from saucer.training.domain import ModelFile

# Names that a model's files may have, and those that every model has.
FILE_NAMES = frozenset(
    {
        "model.onnx",
        "model.json",
        "weights.pth",
        "config.py",
        "metrics.jsonl",
        "log.txt",
        "detections_validation.npz",
        "detections_test.npz",
        "report.json",
    }
)
NEEDED_NAMES = frozenset({"model.onnx", "model.json"})
# The same of a run that only predicts.
PREDICTION_NAMES = frozenset({"detections_validation.npz", "detections_test.npz", "report.json", "log.txt"})
NEEDED_PREDICTION_NAMES = frozenset({"detections_test.npz"})
# What a model predicts with.
SERVED_NAMES = NEEDED_NAMES
# A larger file is refused.
MAX_FILE_BYTES = 4 * 1024**3

LOG_NAME = "log.txt"
# After the key of an attempt's log: of the whole run's.
WHOLE_SUFFIX = ".whole"
# A run that is stopped at once has told nothing yet.
MAY_BE_EMPTY = frozenset({"metrics.jsonl", LOG_NAME})


def check_names(files: Sequence[ModelFile], prefix: str, *, prediction: bool = False) -> None:
    """Raises InvalidArgumentError for a file outside the prefix, an unknown or missing name, or one too large."""
    names = [file.name for file in files]
    needed, known = (NEEDED_PREDICTION_NAMES, PREDICTION_NAMES) if prediction else (NEEDED_NAMES, FILE_NAMES)
    if len(set(names)) != len(names) or not needed <= set(names) <= known:
        raise InvalidArgumentError(
            "FILE_NAMES",
            f"files: {', '.join(sorted(needed))} and any of {', '.join(sorted(known - needed))}, each once.",
        )
    for file in files:
        if file.key != f"{prefix}/{file.name}":
            raise InvalidArgumentError("KEY_OUTSIDE_ATTEMPT", f"files: {file.name} does not lie under {prefix}/.")
        least = 0 if file.name in MAY_BE_EMPTY else 1
        if not least <= file.size_bytes <= MAX_FILE_BYTES:
            raise InvalidArgumentError("FILE_SIZE", f"files: {file.name} is empty or larger than {MAX_FILE_BYTES} B.")


async def verify(objects: Objects, files: Sequence[ModelFile]) -> None:
    """Reads every file.

    Raises:
        FailedPreconditionError: ARTIFACT_MISSING. DataLossError: size or checksum differ. UnavailableError.
    """
    for file in files:
        await _verify(objects, file)


async def _verify(objects: Objects, file: ModelFile) -> None:
    size_bytes = 0
    try:
        async for chunk in objects.stream(file.key, sha256=file.sha256):
            size_bytes += len(chunk)
            if size_bytes > file.size_bytes:
                break
    except NotFoundError as error:
        raise FailedPreconditionError("ARTIFACT_MISSING", f"There is no {file.key} in the object store.") from error
    if size_bytes != file.size_bytes:
        raise DataLossError("SIZE_MISMATCH", f"{file.key} is not of the {file.size_bytes} bytes that were reported.")


async def copy_out(objects: Objects, files: Sequence[ModelFile], prefix: str) -> None:
    """Copies a model's files below the user's prefix; again is harmless. Raises UnavailableError."""
    for file in files:
        await objects.copy(file.key, f"{prefix}/{file.name}")


async def lengthen_log(
    objects: Objects, files: Sequence[ModelFile], earlier: AsyncIterator[bytes]
) -> Sequence[ModelFile]:
    """The same files, with what earlier attempts logged before the log: theirs were lost with their workers.

    It is an object of its own, so that a FinishRun that is repeated finds the worker's as it was reported. Raises as
    verify() does.
    """
    return [await _lengthen(objects, file, earlier) if file.name == LOG_NAME else file for file in files]


async def _lengthen(objects: Objects, log: ModelFile, earlier: AsyncIterator[bytes]) -> ModelFile:
    size_bytes = 0
    with NamedTemporaryFile(prefix="saucer-log-") as whole:
        for pieces in (earlier, objects.stream(log.key, sha256=log.sha256)):
            async for piece in pieces:
                size_bytes += await asyncio.to_thread(whole.write, piece)
        await asyncio.to_thread(whole.flush)
        key = f"{log.key}{WHOLE_SUFFIX}"
        return ModelFile(log.name, key, size_bytes, await objects.put(key, Path(whole.name)))
