"""Finished evaluations in memory: which are kept, and how often one is loaded."""

import asyncio
from dataclasses import replace

import pytest

from saucer.evaluation.cache import Cache
from saucer.evaluation.domain import Evaluation
from saucer.evaluation.stored import Loaded, load
from tests.unit.evaluation.test_domain import SCORING
from tests.unit.evaluation.test_reading import stored


class Loads:
    """Loads the same evaluation under any id, and remembers for which it was asked."""

    def __init__(self) -> None:
        self.loaded = load(*stored(10))
        self.ids: list[str] = []

    async def __call__(self, evaluation: Evaluation) -> Loaded:
        self.ids.append(evaluation.evaluation_id)
        await asyncio.sleep(0)
        if evaluation.evaluation_id == "bad":
            raise OSError
        return self.loaded


def named(evaluation_id: str) -> Evaluation:
    return replace(SCORING, evaluation_id=evaluation_id)


async def test_one_that_is_kept_is_not_loaded_again() -> None:
    loads = Loads()
    cache = Cache(loads)
    for _ in range(3):
        assert await cache.get(named("a")) is loads.loaded
    assert loads.ids == ["a"]


async def test_many_callers_at_once_load_once() -> None:
    loads = Loads()
    cache = Cache(loads)
    await asyncio.gather(*(cache.get(named("a")) for _ in range(10)))
    assert loads.ids == ["a"]


async def test_the_least_recently_read_leaves_when_the_bytes_are_taken() -> None:
    loads = Loads()
    cache = Cache(loads, 2 * loads.loaded.size_bytes)
    for name in ("a", "b", "a", "c", "a", "c", "b"):
        await cache.get(named(name))
    assert loads.ids == ["a", "b", "c", "b"]


async def test_one_that_is_larger_than_the_whole_is_answered_and_drives_nothing_out() -> None:
    loads = Loads()
    cache = Cache(loads, loads.loaded.size_bytes - 1)
    for _ in range(2):
        assert await cache.get(named("a")) is loads.loaded
    assert loads.ids == ["a", "a"]


async def test_a_failure_is_not_kept() -> None:
    loads = Loads()
    cache = Cache(loads)
    for _ in range(2):
        with pytest.raises(OSError):  # noqa: PT011 - any
            await cache.get(named("bad"))
    assert loads.ids == ["bad", "bad"]
