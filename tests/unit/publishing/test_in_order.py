"""Answers in the order of the requests, a bounded number at once."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from saucer.publishing import in_order as module

AT_ONCE = 3
MAX_BYTES = 100
# Of requests of no size.
in_order = partial(module.in_order, size=lambda _: 0, max_bytes=MAX_BYTES)


class Work:
    """Requests that are counted when read, and answered when the test says so."""

    def __init__(self, count: int, failure: Exception | None = None) -> None:
        self.read = 0
        self.cancelled = 0
        self.ended = [asyncio.Event() for _ in range(count)]
        self.begun = asyncio.Semaphore(0)
        self._failure = failure

    async def requests(self) -> AsyncIterator[int]:
        for number in range(len(self.ended)):
            self.read += 1
            yield number
        if self._failure is not None:
            raise self._failure

    async def answer(self, number: int) -> int:
        self.begun.release()
        try:
            await self.ended[number].wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(5):
            for _ in range(count):
                await self.begun.acquire()

    async def begins_another(self) -> bool:
        """Whether what can go on without an answer begins one."""
        for _ in range(50):
            await asyncio.sleep(0)
        return not self.begun.locked()


async def test_answers_keep_the_order_of_requests_that_end_in_another() -> None:
    work = Work(AT_ONCE)
    gathered = asyncio.ensure_future(_all(in_order(work.requests(), work.answer, AT_ONCE)))
    await work.until_begun(AT_ONCE)
    for event in reversed(work.ended):
        event.set()
    assert await gathered == [0, 1, 2]


async def test_no_more_are_read_than_may_be_in_progress() -> None:
    work = Work(10)
    answers = in_order(work.requests(), work.answer, AT_ONCE)
    first = asyncio.ensure_future(anext(answers))
    await work.until_begun(AT_ONCE)
    # One that is read already waits for its turn: the next is asked for when the former is given out.
    assert work.read <= AT_ONCE + 1
    for event in work.ended:
        event.set()
    assert await first == 0
    assert [number async for number in answers] == list(range(1, 10))


async def test_a_large_request_waits_for_earlier_ones_until_it_fits() -> None:
    work, sizes = Work(4), [60, 40, 1, 10]
    answers = module.in_order(work.requests(), work.answer, AT_ONCE, sizes.__getitem__, MAX_BYTES)
    gathered = asyncio.ensure_future(_all(answers))
    await work.until_begun(2)
    assert not await work.begins_another()
    # Answered out of turn, it holds no request any more.
    work.ended[1].set()
    await work.until_begun(1)
    for event in work.ended:
        event.set()
    assert await gathered == [0, 1, 2, 3]


async def test_a_request_larger_than_all_together_may_be_is_answered_alone() -> None:
    work, sizes = Work(3), [1, MAX_BYTES + 1, 1]
    answers = module.in_order(work.requests(), work.answer, AT_ONCE, sizes.__getitem__, MAX_BYTES)
    gathered = asyncio.ensure_future(_all(answers))
    for event in work.ended:
        await work.until_begun(1)
        assert not await work.begins_another()
        event.set()
    assert await gathered == [0, 1, 2]


async def test_an_answer_is_given_while_the_next_request_is_waited_for() -> None:
    sent: asyncio.Queue[int] = asyncio.Queue()

    async def requests() -> AsyncIterator[int]:
        while True:
            yield await sent.get()

    async def answer(number: int) -> int:
        return number

    answers = in_order(requests(), answer, AT_ONCE)
    for number in range(5):
        sent.put_nowait(number)
        assert await asyncio.wait_for(anext(answers), 5) == number


async def test_what_reading_raises_comes_after_the_answers_before_it() -> None:
    work = Work(2, ValueError("cut"))
    for event in work.ended:
        event.set()
    answers = in_order(work.requests(), work.answer, AT_ONCE)
    assert [await anext(answers), await anext(answers)] == [0, 1]
    with pytest.raises(ValueError, match="cut"):
        await anext(answers)


async def test_closing_cancels_what_is_in_progress() -> None:
    work = Work(AT_ONCE)
    answers = in_order(work.requests(), work.answer, AT_ONCE)
    first = asyncio.ensure_future(anext(answers))
    await work.until_begun(AT_ONCE)
    work.ended[0].set()
    assert await first == 0
    await answers.aclose()  # type: ignore[attr-defined] # a generator
    assert work.cancelled == AT_ONCE - 1


async def _all(answers: AsyncIterator[int]) -> list[int]:
    return [number async for number in answers]
