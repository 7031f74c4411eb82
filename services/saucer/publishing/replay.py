"""The replay of PRODUCT 5.6: test images of the model's data set, through Triton, against the stored detections."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import ijson
import numpy as np

from saucer.lib.errors import DataLossError
from saucer.lib.objects import Objects
from saucer.publishing.domain import Model
from saucer.publishing.parity import Answered, Found, ImageParity, choose_evenly, compare_all
from saucer.publishing.triton import InferRefused, TritonClient
from saucer.serving.detections import Detections
from saucer.serving.errors import DetectionsError
from saucer.serving.header import stated_size
from saucer.serving.runtime import Tolerance

# Replayed at most, evenly chosen from those that were predicted; some five seconds on two processor cores.
MAX_IMAGES = 200
# On their way to Triton at once; the others wait, which bounds the memory.
AT_ONCE = 4
DETECTIONS_FILE = "detections_test.npz"


@dataclass(frozen=True)
class Sample:
    """One test image, by its key in the object store and SHA-256, with its stored boxes."""

    image_id: int
    key: str
    sha256: str
    stored: Found


class ImagesRefused(Exception):  # noqa: N818 - a finding about the model
    """The model refuses images that evaluation has read; `reason` is a sentence."""

    def __init__(self, refused: Sequence[tuple[int, str]], images: int) -> None:
        """`refused`: ids of some of so many images, and why."""
        image_id, why = min(refused)
        self.reason = (
            f"The model refuses {len(refused)} of {images} test images that the evaluation has read; the first, image "
            f"{image_id}: {why}"
        )
        super().__init__(self.reason)


async def choose_samples(objects: Objects, model: Model, work_folder: Path) -> list[Sample]:
    """The images to replay. `work_folder` takes the manifest.

    Raises:
        DataLossError: files of the model are missing, damaged, do not fit together, or there is no test image.
        NotFoundError, UnavailableError: of the object store.
    """
    if DETECTIONS_FILE not in model.files:
        raise DataLossError("NO_DETECTIONS", f"The model has no {DETECTIONS_FILE} to compare with.")
    key, sha256 = model.files[DETECTIONS_FILE]
    data = await objects.get(key, sha256=sha256)
    manifest = work_folder / "manifest.json"
    await objects.download(model.manifest_key, manifest, sha256=model.manifest_sha256)
    return await asyncio.to_thread(_samples, data, manifest, model.image_prefix)


def _samples(data: bytes, manifest: Path, image_prefix: str) -> list[Sample]:
    try:
        stored = Detections.from_bytes(data)
    except DetectionsError as error:
        raise DataLossError("DETECTIONS_UNREADABLE", f"{DETECTIONS_FILE} cannot be read: {error}") from error
    chosen = stored.images[choose_evenly(len(stored.images), MAX_IMAGES)].tolist()
    if not chosen:
        raise DataLossError("NO_TEST_IMAGES", "No test image was predicted, so there is nothing to compare with.")
    names = _file_names(manifest, set(chosen))
    rows = np.flatnonzero(np.isin(stored.image_id, chosen))
    samples = []
    for image_id in chosen:
        own = rows[stored.image_id[rows] == image_id]
        found = Found(stored.box[own], stored.score[own], stored.label[own])
        # An image's file name in a manifest is the SHA-256 of its bytes.
        samples.append(Sample(image_id, f"{image_prefix}/{names[image_id]}", names[image_id], found))
    return samples


def _file_names(manifest: Path, image_ids: Collection[int]) -> dict[int, str]:
    """By image id. The manifest is read as a stream: it may be far larger than what is wanted of it."""
    names: dict[int, str] = {}
    try:
        with manifest.open("rb") as file:
            for image in ijson.items(file, "images.item"):
                if image["id"] in image_ids:
                    names[image["id"]] = image["file_name"]
    except (ijson.JSONError, KeyError) as error:
        raise DataLossError("MANIFEST_UNREADABLE", f"The manifest cannot be read: {error!r}") from error
    missing = sorted(set(image_ids) - names.keys())
    if missing:
        raise DataLossError("MANIFEST_WITHOUT_IMAGE", f"The manifest has no image {missing[0]}.")
    return names


async def replay(
    triton: TritonClient,
    objects: Objects,
    samples: list[Sample],
    model_name: str,
    version: str,
    tolerance: Tolerance,
    input_size: int,
) -> tuple[list[ImageParity], str]:
    """The comparison, image by image, and the key of the smallest image, which later probes send.

    Raises ImagesRefused, ModelFailed, TritonUnavailable, and as Objects.get().
    """
    gate = asyncio.Semaphore(AT_ONCE)
    sizes: dict[str, int] = {}
    refused: list[tuple[int, str]] = []

    async def one(sample: Sample) -> Answered | None:
        async with gate:
            image = await objects.get(sample.key, sha256=sample.sha256)
            sizes[sample.key] = len(image)
            try:
                answer = await triton.infer(model_name, image, version)
            except InferRefused as error:
                refused.append((sample.image_id, error.reason))
                return None
        served = Found(answer.boxes, answer.scores, answer.labels)
        return Answered(sample.image_id, sample.stored, served, max(stated_size(image)) / input_size)

    tasks = [asyncio.ensure_future(one(sample)) for sample in samples]
    try:
        answered = await asyncio.gather(*tasks)
    finally:
        # After the first failure the others would only burden a server that is in trouble.
        for task in tasks:
            task.cancel()
    if refused:
        raise ImagesRefused(refused, len(samples))
    compared = await asyncio.to_thread(compare_all, [it for it in answered if it is not None], tolerance)
    return compared, min(sizes, key=lambda key: (sizes[key], key))
