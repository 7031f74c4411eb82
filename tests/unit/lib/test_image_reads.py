"""Images for a page: which of them fit, and what reading them costs their owner."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from saucer.lib import image_reads
from saucer.lib.image_reads import PAGE_IMAGES_BYTES, ImageReads, StoredImage
from saucer.lib.objects import Objects
from saucer.lib.postgres import Database


class Counted:
    """A database that only sums up what is counted."""

    def __init__(self) -> None:
        self.reads = self.bytes = 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        yield SimpleNamespace(now=datetime(2026, 1, 1, tzinfo=UTC), connection=self)

    async def execute(self, _sql: str, _account_id: str, _day: object, reads: int, size_bytes: int) -> None:
        self.reads += reads
        self.bytes += size_bytes


async def pages(sizes: list[int], most_bytes: int) -> tuple[list[list[int]], Counted]:
    """The sizes of the images of each page, all pages of images of these sizes."""
    objects, counted = Objects("memory:///"), Counted()
    stored = [StoredImage(f"images/{number}") for number in range(len(sizes))]
    for image, size in zip(stored, sizes, strict=True):
        await objects.put(image.key, bytes(size))
    reads = ImageReads("test", cast("Database", counted), objects)
    found: list[list[int]] = []
    while stored:
        page = await reads.page("a", stored, most_bytes)
        found.append([len(data) for data in page])
        stored = stored[len(page) :]
    return found, counted


@pytest.mark.parametrize(
    ("size", "a_page"), [(2_000_000, 1), (PAGE_IMAGES_BYTES // 2, 2), (100_000, 31), (PAGE_IMAGES_BYTES + 1, 1)]
)
async def test_images_of_like_size_fill_pages_and_each_is_read_once(size: int, a_page: int) -> None:
    found, counted = await pages([size] * 40, PAGE_IMAGES_BYTES)
    assert found[0] == [size] * a_page
    assert sum(map(len, found)) == 40
    assert (counted.reads, counted.bytes) == (40, 40 * size)


async def test_an_image_larger_than_all_before_it_may_cost_a_request_more_and_no_byte() -> None:
    found, counted = await pages([10, 95, 20], 100)
    assert found == [[10], [95], [20]]
    assert (counted.reads, counted.bytes) == (4, 125)


async def test_an_image_too_large_to_be_shown_comes_empty_and_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reads, "MAX_SHOWN_BYTES", 200)
    found, counted = await pages([201, 200, 10, 201, 10], 100)
    assert found == [[0], [200], [10], [0, 10]]
    assert (counted.reads, counted.bytes) == (7, 220)


async def test_an_image_that_is_gone_comes_empty_and_its_read_is_counted() -> None:
    counted = Counted()
    reads = ImageReads("test", cast("Database", counted), Objects("memory:///"))
    assert await reads.page("a", [StoredImage("images/gone")] * 2) == [b"", b""]
    assert (counted.reads, counted.bytes) == (2, 0)
