"""What is kept in memory, and how often it is made."""

import asyncio

import pytest

from saucer.evaluation.cache import MADE_AT_ONCE, Cache

VALUE = b"123"


class Asked:
    """A cache for so many values, and what it was asked to make."""

    def __init__(self, max_bytes: int) -> None:
        self.cache = Cache[str, bytes]("test", len, max_bytes)
        self.made: list[str] = []

    async def get(self, key: str) -> bytes:
        return await self.cache.get(key, lambda: self._make(key))

    async def _make(self, key: str) -> bytes:
        self.made.append(key)
        await asyncio.sleep(0)
        if key == "bad":
            raise OSError
        return VALUE


async def test_one_that_is_kept_is_not_made_again() -> None:
    asked = Asked(100)
    for _ in range(3):
        assert await asked.get("a") is VALUE
    assert asked.made == ["a"]


async def test_many_callers_at_once_make_one() -> None:
    asked = Asked(100)
    await asyncio.gather(*(asked.get("a") for _ in range(10)))
    assert asked.made == ["a"]


async def test_the_least_recently_read_leaves_when_the_bytes_are_taken() -> None:
    asked = Asked(2 * len(VALUE))
    for name in ("a", "b", "a", "c", "a", "c", "b"):
        await asked.get(name)
    assert asked.made == ["a", "b", "c", "b"]


async def test_one_that_is_larger_than_the_whole_is_answered_and_drives_nothing_out() -> None:
    asked = Asked(len(VALUE) - 1)
    for _ in range(2):
        assert await asked.get("a") is VALUE
    assert asked.made == ["a", "a"]


async def test_a_failure_is_not_kept() -> None:
    asked = Asked(100)
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011 - any
            await asked.get("bad")
    assert asked.made == ["bad", "bad"]


async def test_one_that_is_slow_to_make_keeps_no_caller_of_another_waiting() -> None:
    cache = Cache[str, bytes]("test", len, 100)
    read = asyncio.Event()

    async def slow() -> bytes:
        await read.wait()
        return VALUE

    async def fast() -> bytes:
        return VALUE

    waiting = asyncio.create_task(cache.get("slow", slow))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await cache.get("fast", fast) is VALUE
    read.set()
    assert await waiting is VALUE


async def test_no_more_are_made_at_once_than_the_memory_has_room_for() -> None:
    cache = Cache[int, bytes]("test", len, 100)
    making = most = 0

    async def make() -> bytes:
        nonlocal making, most
        making += 1
        most = max(most, making)
        await asyncio.sleep(0.01)
        making -= 1
        return VALUE

    await asyncio.gather(*(cache.get(key, make) for key in range(5 * MADE_AT_ONCE)))
    assert most == MADE_AT_ONCE


async def test_a_caller_that_gives_up_leaves_the_making_to_the_next() -> None:
    asked = Asked(100)
    first, second = (asyncio.create_task(asked.get("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is VALUE
    assert asked.made == ["a", "a"]
