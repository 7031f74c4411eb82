"""Rounds go on after an interruption, and end with any other failure."""

import asyncio
from collections.abc import Sequence

import pytest

from saucer.lib.errors import UnavailableError
from saucer.lib.rounds import repeat

PAUSE_S = 0.05
# A test that had to wait for it would never end.
ENDLESS_S = 1e6


class Rounds:
    """Each does what the next of the outcomes says: raises it, or returns it. After the last it waits for ever."""

    def __init__(self, *outcomes: object) -> None:
        self._outcomes = list(outcomes)
        self.begun_at_s: list[float] = []
        self.done = asyncio.Event()

    async def once(self) -> object:
        self.begun_at_s.append(asyncio.get_running_loop().time())
        if not self._outcomes:
            self.done.set()
            await asyncio.Event().wait()
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def run(self, every_s: float = PAUSE_S, *, at_once: bool = True) -> Sequence[float]:
        """The pauses before each round, in seconds."""
        begun_s = asyncio.get_running_loop().time()
        repeating = asyncio.create_task(repeat("work", self.once, every_s, at_once=at_once))
        waiting = asyncio.create_task(self.done.wait())
        try:
            await asyncio.wait({repeating, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if repeating.done():
                repeating.result()
        finally:
            repeating.cancel()
            waiting.cancel()
            await asyncio.gather(repeating, waiting, return_exceptions=True)
        return [at_s - before_s for before_s, at_s in zip([begun_s, *self.begun_at_s], self.begun_at_s, strict=False)]


async def test_rounds_follow_each_other_after_a_pause() -> None:
    _, *others = await Rounds(None, 3, False).run()
    assert len(others) == 3
    assert min(others) >= PAUSE_S


async def test_a_round_that_says_there_is_more_is_followed_at_once() -> None:
    assert len(await Rounds(True, True).run(ENDLESS_S)) == 3


async def test_the_first_round_comes_at_once() -> None:
    assert len(await Rounds().run(ENDLESS_S)) == 1


async def test_the_first_round_may_wait_too() -> None:
    (first,) = await Rounds().run(at_once=False)
    assert first >= PAUSE_S


@pytest.mark.parametrize("error", [ConnectionError(), TimeoutError(), UnavailableError("AWAY", "It is away.")])
async def test_a_round_that_is_interrupted_is_followed_by_the_next_after_the_pause(error: Exception) -> None:
    _, second = await Rounds(error).run()
    assert second >= PAUSE_S


async def test_any_other_failure_ends_the_rounds() -> None:
    with pytest.raises(ZeroDivisionError):
        await Rounds(ZeroDivisionError()).run()
