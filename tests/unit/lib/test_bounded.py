"""Coroutines side by side, a few at a time."""

import asyncio

import pytest

from saucer.lib.bounded import Bounded


async def test_no_more_run_at_once_than_the_limit_and_all_are_done() -> None:
    running, greatest, done = 0, 0, 0

    async def work() -> None:
        nonlocal running, greatest, done
        running += 1
        greatest = max(greatest, running)
        await asyncio.sleep(0)
        running -= 1
        done += 1

    async with Bounded(3) as tasks:
        for _ in range(20):
            await tasks.start(work())
    assert (greatest, done, running) == (3, 20, 0)


async def test_the_first_error_is_raised_as_it_is_and_the_others_are_cancelled() -> None:
    cancelled = 0

    async def stay() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    async def fail() -> None:
        raise KeyError("the first")

    async def all_of_them() -> None:
        async with Bounded(3) as tasks:
            for work in (stay(), stay(), fail(), stay()):
                await tasks.start(work)

    with pytest.raises(KeyError, match="the first"):
        await all_of_them()
    assert cancelled == 2


async def test_an_error_in_the_block_cancels_what_runs() -> None:
    ended = asyncio.Event()

    async def stay() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def broken() -> None:
        async with Bounded(2) as tasks:
            await tasks.start(stay())
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await broken()
    assert ended.is_set()
