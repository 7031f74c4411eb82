"""What is kept in memory, and how often it is made."""

import asyncio

import pytest

from saucer.evaluation.cache import Cache

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
