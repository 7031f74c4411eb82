"""Claimed work goes on while its claim does, and no longer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from saucer.lib.claims import ClaimLostError, while_held

EVERY_S = 0.01


class Work:
    """Counts prolongations, and remembers how it ended."""

    def __init__(self) -> None:
        self.prolonged = 0
        self.cancelled = False
        self.enough = asyncio.Event()

    async def make(self) -> str:
        try:
            await self.enough.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "made"

    async def prolong(self) -> None:
        self.prolonged += 1
        if self.prolonged == 3:
            self.enough.set()

    async def lose(self) -> None:
        raise ClaimLostError

    async def be_away(self) -> None:
        self.prolonged += 1
        raise ConnectionError

    async def be_away_twice(self) -> None:
        await self.prolong()
        if self.prolonged < 3:
            raise ConnectionError


async def held(work: Work, prolong: Callable[[], Awaitable[None]], claim_s: float = 30.0) -> str:
    return await while_held(
        work.make(), prolong, claim_s=claim_s, every_s=EVERY_S, transient=(ConnectionError, ValueError)
    )


async def test_the_claim_is_prolonged_until_the_work_is_made() -> None:
    work = Work()
    assert await held(work, work.prolong) == "made"
    assert work.prolonged == 3


async def test_work_whose_claim_is_lost_is_stopped_at_once() -> None:
    work = Work()
    with pytest.raises(ClaimLostError):
        await held(work, work.lose)
    assert work.cancelled


async def test_a_database_that_is_away_for_a_moment_ends_nothing() -> None:
    work = Work()
    assert await held(work, work.be_away_twice) == "made"


async def test_a_database_that_is_away_for_longer_than_the_claim_ends_it() -> None:
    work = Work()
    with pytest.raises(ClaimLostError) as lost:
        await held(work, work.be_away, claim_s=1.0)
    assert isinstance(lost.value.__cause__, ConnectionError)
    assert work.prolonged > 1
    assert work.cancelled


async def test_what_the_work_raises_is_raised() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    work = Work()
    with pytest.raises(ZeroDivisionError):
        await while_held(fail(), work.prolong, claim_s=30.0, every_s=EVERY_S, transient=())


async def test_cancelled_neither_goes_on() -> None:
    work = Work()
    waiting = asyncio.create_task(held(work, work.prolong))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    prolonged = work.prolonged
    await asyncio.sleep(3 * EVERY_S)
    assert work.cancelled
    assert work.prolonged == prolonged
