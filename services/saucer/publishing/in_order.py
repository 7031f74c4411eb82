"""Many requests at once, answered in the order in which they came."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


async def in_order(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    at_once: int,
    size: Callable[[Request], int],
    max_bytes: int,
) -> AsyncIterator[Response]:
    """The answers, each as soon as it and those before it are there.

    At most `at_once` requests are in progress or answered and not yet taken, and those in progress have at most
    `max_bytes` by their `size`, or are one; beside them one is read. What reading or an answer raises comes after the
    answers before it. When the iteration is closed, what is in progress is cancelled.
    """
    room = _Room(max_bytes)

    async def following() -> Request | None:
        request = await anext(requests, None)
        if request is not None:
            await room.take(size(request))
        return request

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        finally:
            room.give(size(request))

    answers: deque[asyncio.Task[Response]] = deque()
    reading: asyncio.Task[Request | None] | None = asyncio.create_task(following())
    try:
        while reading is not None or answers:
            awaited = [task for task in (reading if len(answers) < at_once else None, *list(answers)[:1]) if task]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if answers and answers[0].done():
                yield answers.popleft().result()
            elif reading is not None and reading.done():
                if reading.exception() is not None and answers:
                    yield await answers.popleft()
                    continue
                request = reading.result()
                reading = None if request is None else asyncio.create_task(following())
                if request is not None:
                    answers.append(asyncio.create_task(answered(request)))
    finally:
        left = [task for task in (reading, *answers) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Room:
    """Bytes of the requests in progress, for which one at a time waits."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._given = asyncio.Event()

    async def take(self, size_bytes: int) -> None:
        """One that is larger than the whole room has it when nothing else does."""
        while self._held_bytes and self._held_bytes + size_bytes > self._max_bytes:
            self._given.clear()
            await self._given.wait()
        self._held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        self._given.set()
