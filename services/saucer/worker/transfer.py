"""Files between the object store and the worker's disk: a data set's images, checkpoints, a model's files.

Images are kept under their SHA-256, so that the next attempt or task on the same data finds them; the least recently
used make room when they exceed the cache's limit.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saucer.lib.bounded import Bounded
from saucer.lib.objects import Objects

# Images fetched at once.
CONCURRENT_DOWNLOADS = 8
# Cached images marked as used by one call of a thread, between which progress is told.
TOUCHED_AT_ONCE = 1_000
# Files of a model sent at once.
CONCURRENT_UPLOADS = 4
SPLITS = ("train", "validation", "test")
# By the child's kinds of files (job.Result.files).
FILE_NAMES: Mapping[str, str] = {
    "weights": "weights.pth",
    "onnx": "model.onnx",
    "model": "model.json",
    "config": "config.py",
    "metrics": "metrics.jsonl",
    "log": "log.txt",
    "detections_validation": "detections_validation.npz",
    "detections_test": "detections_test.npz",
    "report": "report.json",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BadManifestError(Exception):
    """The manifest is not what a data set's is."""


@dataclass(frozen=True)
class Uploaded:
    """A file that is whole in the object store."""

    name: str
    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class DataOnDisk:
    """COCO files by split, those with images only; their file names are relative to `images`."""

    images: Path
    splits: Mapping[str, Path]


class ImageCache:
    """A folder of images named by their SHA-256. One process uses it at a time."""

    def __init__(self, folder: Path, objects: Objects, limit_bytes: int) -> None:
        self.folder = folder
        self._objects = objects
        self._limit_bytes = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for half in folder.glob("*.partial"):  # of a worker that was killed
            half.unlink()

    async def fetch(self, prefix: str, names: list[str], told: Callable[[int], None]) -> None:
        """Makes sure that every image is there. `told` is called with the number that are.

        Raises NotFoundError, DataLossError for an image that is not what its name says, UnavailableError.
        """
        done = 0

        async def download(name: str) -> None:
            nonlocal done
            await self._objects.download(f"{prefix}/{name}", self.folder / name, sha256=name)
            done += 1
            told(done)

        async with Bounded(CONCURRENT_DOWNLOADS) as downloads:
            for begin in range(0, len(names), TOUCHED_AT_ONCE):
                batch = names[begin : begin + TOUCHED_AT_ONCE]
                missing = await asyncio.to_thread(self._touch, batch)
                done += len(batch) - len(missing)
                told(done)
                for name in missing:
                    await downloads.start(download(name))

    def _touch(self, names: list[str]) -> list[str]:
        """Marks those that are there as used now; those that are not.

        A file that is empty is not there: a machine that lost its power may have kept the name without the bytes.
        """
        missing = []
        for name in names:
            file = self.folder / name
            try:
                os.utime(file)
                empty = file.stat().st_size == 0
            except FileNotFoundError:
                empty = True
            if empty:
                missing.append(name)
        return missing

    def make_room(self, needed: set[str]) -> int:
        """Removes the least recently used images beyond the limit, none that are needed; the bytes that are left."""
        files = [(file.stat().st_mtime, file.stat().st_size, file) for file in self.folder.iterdir()]
        total_bytes = sum(size_bytes for _, size_bytes, _ in files)
        for _, size_bytes, file in sorted(files):
            if total_bytes <= self._limit_bytes:
                break
            if file.name not in needed:
                file.unlink()
                total_bytes -= size_bytes
        return total_bytes


async def fetch_data(
    objects: Objects,
    cache: ImageCache,
    workdir: Path,
    *,
    manifest_key: str,
    manifest_sha256: str,
    image_prefix: str,
    told: Callable[[int, int], None],
) -> DataOnDisk:
    """Images and COCO files of a data set version. `told` is called with how many images of how many are there.

    Raises BadManifestError, and what ImageCache.fetch() raises.
    """
    manifest = await objects.get(manifest_key, sha256=manifest_sha256)
    splits, names = await asyncio.to_thread(_split_files, manifest, workdir)
    await cache.fetch(image_prefix, names, lambda done: told(done, len(names)))
    await asyncio.to_thread(cache.make_room, set(names))
    return DataOnDisk(cache.folder, splits)


def _split_files(manifest: bytes, workdir: Path) -> tuple[dict[str, Path], list[str]]:
    """Writes a COCO file for each split that has images; these with the names of all images."""
    try:
        document = json.loads(manifest)
        by_split: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
        for image in document["images"]:
            if not _SHA256.fullmatch(image["file_name"]):
                raise BadManifestError(f"The manifest names an image {image['file_name']!r}, which is no SHA-256.")
            by_split[image["split"]].append(image)
        split_of = {image["id"]: name for name, images in by_split.items() for image in images}
        boxes: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
        for box in document["annotations"]:
            boxes[split_of[box["image_id"]]].append(box)
        categories = document["categories"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadManifestError(f"The manifest is not a data set's: {error!r}") from error
    files = {}
    for name, images in by_split.items():
        if images:
            files[name] = workdir / f"{name}.coco.json"
            content = {"images": images, "annotations": boxes[name], "categories": categories}
            files[name].write_text(json.dumps(content), encoding="utf-8")
    return files, sorted({image["file_name"] for image in document["images"]})


async def upload(objects: Objects, file: Path, key: str) -> Uploaded:
    """Puts a file into the object store. Raises UnavailableError."""
    sha256 = await objects.put(key, file)
    status = await asyncio.to_thread(file.stat)
    return Uploaded(key.rpartition("/")[2], key, status.st_size, sha256)


async def upload_files(objects: Objects, files: Mapping[str, str], prefix: str) -> list[Uploaded]:
    """A model's files, given by the child's kinds. Raises UnavailableError."""
    slots = asyncio.Semaphore(CONCURRENT_UPLOADS)

    async def one(kind: str, path: str) -> Uploaded:
        async with slots:
            return await upload(objects, Path(path), f"{prefix}/{FILE_NAMES[kind]}")

    return list(await asyncio.gather(*(one(kind, path) for kind, path in files.items())))
