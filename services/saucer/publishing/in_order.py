"""Many requests at once, answered in the order in which they came."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")


async def in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Coroutine[Any, Any, Response]], at_once: int
) -> AsyncIterator[Response]:
    """The answers, each as soon as it and those before it are there.

    At most `at_once` requests are in progress or answered and not yet taken; no more are read meanwhile. What reading
    or an answer raises comes after the answers before it. When the iteration is closed, what is in progress is
    cancelled.
    """
    answers: deque[asyncio.Task[Response]] = deque()
    reading: asyncio.Task[Request | None] | None = _read(requests)
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
                reading = None if request is None else _read(requests)
                if request is not None:
                    answers.append(asyncio.create_task(answer(request)))
    finally:
        left = [task for task in (reading, *answers) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def _read(requests: AsyncIterator[Request]) -> asyncio.Task[Request | None]:
    async def following() -> Request | None:
        return await anext(requests, None)

    return asyncio.create_task(following())
