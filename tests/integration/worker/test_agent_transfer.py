"""Data sets on a worker's disk, from a real object store."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from saucer.lib.errors import DataLossError, NotFoundError
from saucer.lib.objects import Objects, sha256_of
from saucer.worker.transfer import BadManifestError, DataOnDisk, ImageCache, fetch_data
from tests.support.training import object_store

PREFIX = "system/a/images"


class Store:
    """A data set of small "images" in a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.objects: Objects = object_store(folder)[1]
        self.cache_folder = folder / "cache"
        self.workdir = folder / "work"
        self.workdir.mkdir()

    def cache(self, limit_bytes: int = 1_000_000) -> ImageCache:
        return ImageCache(self.cache_folder, self.objects, limit_bytes)

    async def image(self, content: bytes) -> str:
        return (await self.objects.put(f"{PREFIX}/{sha256_of(content)}", content)) or ""

    async def fetch(self, cache: ImageCache, manifest: object) -> DataOnDisk:
        content = json.dumps(manifest).encode()
        sha256 = await self.objects.put("system/a/manifest.json", content)
        return await fetch_data(
            self.objects,
            cache,
            self.workdir,
            manifest_key="system/a/manifest.json",
            manifest_sha256=sha256,
            image_prefix=PREFIX,
            told=lambda done, images: None,
        )


def manifest(*images: tuple[str, str]) -> dict[str, object]:
    """Of images (hash, split), each with one box."""
    return {
        "categories": [{"id": 0, "name": "disc"}],
        "images": [
            {"id": number, "file_name": sha256, "width": 9, "height": 9, "split": split}
            for number, (sha256, split) in enumerate(images, start=1)
        ],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 0, "bbox": [0, 0, 1, 1]}
            for number in range(1, len(images) + 1)
        ],
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def test_a_data_set_becomes_a_coco_file_for_each_split_that_has_images(store: Store) -> None:
    names = [await store.image(f"image {number}".encode()) for number in range(3)]
    data = await store.fetch(store.cache(), manifest((names[0], "train"), (names[1], "train"), (names[2], "test")))
    assert set(data.splits) == {"train", "test"}
    train = json.loads(data.splits["train"].read_text())
    assert [image["file_name"] for image in train["images"]] == names[:2]
    assert [box["image_id"] for box in train["annotations"]] == [1, 2]
    assert (data.images / names[2]).read_bytes() == b"image 2"


async def test_what_is_cached_is_not_fetched_again(store: Store) -> None:
    name = await store.image(b"image")
    await store.fetch(store.cache(), manifest((name, "train")))
    await store.objects.delete(f"{PREFIX}/{name}")
    await store.fetch(store.cache(), manifest((name, "train")))


async def test_heartbeats_have_their_turn_while_many_images_are_found_cached(store: Store) -> None:
    cache = store.cache()
    names = [f"{number:064x}" for number in range(20_000)]
    for name in names:
        (store.cache_folder / name).write_bytes(b"image")
    turn, turns = 0, set()

    async def beat() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    heart = asyncio.create_task(beat())
    told: list[int] = []

    def tell(done: int) -> None:
        told.append(done)
        turns.add(turn)

    await cache.fetch(PREFIX, names, tell)
    heart.cancel()
    assert told[-1] == len(names)
    assert told == sorted(told)
    assert len(turns) > 10


async def test_an_image_that_is_not_what_its_name_says_is_not_kept(store: Store) -> None:
    name = await store.image(b"image")
    await store.objects.put(f"{PREFIX}/{name}", b"another image")
    with pytest.raises(DataLossError):
        await store.fetch(store.cache(), manifest((name, "train")))
    assert not (store.cache_folder / name).exists()
    assert not list(ImageCache(store.cache_folder, store.objects, 0).folder.iterdir()), (
        "halves are removed at the start"
    )


async def test_an_image_that_lost_its_bytes_with_the_machine_is_fetched_again(store: Store) -> None:
    name = await store.image(b"image")
    cache = store.cache()
    (store.cache_folder / name).touch()
    await store.fetch(cache, manifest((name, "train")))
    assert (store.cache_folder / name).read_bytes() == b"image"


async def test_the_least_recently_used_images_make_room_but_none_that_is_needed(store: Store) -> None:
    names = [await store.image(bytes([number]) * 100) for number in range(4)]
    cache = store.cache(limit_bytes=250)
    await store.fetch(cache, manifest((names[0], "train"), (names[1], "train")))
    for age_s, name in ((20, names[0]), (10, names[1])):
        past_s = (store.cache_folder / name).stat().st_mtime - age_s
        os.utime(store.cache_folder / name, (past_s, past_s))
    await store.fetch(cache, manifest((names[2], "train")))
    assert {file.name for file in store.cache_folder.iterdir()} == {names[1], names[2]}
    await store.fetch(cache, manifest(*((name, "train") for name in names)))
    assert {file.name for file in store.cache_folder.iterdir()} == set(names), "a run that needs more keeps more"


@pytest.mark.parametrize(
    "bad",
    [
        [],
        {"images": []},
        manifest(("../../etc/passwd", "train")),
        manifest(("a" * 64, "elsewhere")),
        manifest(("a" * 64, "train")) | {"annotations": [{"image_id": 7}]},
    ],
)
async def test_what_is_no_manifest_is_refused(store: Store, bad: object) -> None:
    with pytest.raises(BadManifestError):
        await store.fetch(store.cache(), bad)


async def test_a_manifest_or_image_that_is_missing_or_damaged_is_named(store: Store) -> None:
    with pytest.raises(NotFoundError, match="a" * 64):
        await store.fetch(store.cache(), manifest(("a" * 64, "train")))
    await store.objects.put("system/a/other.json", b"{}")
    with pytest.raises(DataLossError, match=r"other\.json"):
        await fetch_data(
            store.objects,
            store.cache(),
            store.workdir,
            manifest_key="system/a/other.json",
            manifest_sha256="0" * 64,
            image_prefix=PREFIX,
            told=lambda done, images: None,
        )
