"""Calls about one thing that wait while the last is in flight, and then go as one: no timer, so an idle call waits for
nothing, and a busy account has as many calls in a statement as came during the one before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
A = TypeVar("A")

# Calls that go as one at most; more wait for the next.
MAX_TOGETHER = 64


class Coalescer(Generic[K, R, A]):
    """`send` takes a key and its requests, and answers each in its place: with a value, or with the error to raise.

    What `send` itself raises, every caller of that round gets. A caller that is cancelled loses its answer; what it
    asked for is done all the same, as when a reply is lost.
    """

    def __init__(self, send: Callable[[K, Sequence[R]], Awaitable[Sequence[A | Exception]]]) -> None:
        self._send = send
        self._waiting: dict[K, list[tuple[R, asyncio.Future[A]]]] = {}
        # Kept here, since the loop itself holds tasks only weakly.
        self._rounds: set[asyncio.Task[None]] = set()

    async def __call__(self, key: K, request: R) -> A:
        """The answer to one request. Raises its error, or what `send` raised."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        in_flight = key in self._waiting
        self._waiting.setdefault(key, []).append((request, answer))
        if not in_flight:
            task = asyncio.create_task(self._go_on(key))
            self._rounds.add(task)
            task.add_done_callback(self._rounds.discard)
        return await answer

    async def _go_on(self, key: K) -> None:
        while waiting := self._waiting[key]:
            together, self._waiting[key] = waiting[:MAX_TOGETHER], waiting[MAX_TOGETHER:]
            try:
                answers = await self._send(key, [request for request, _ in together])
            except Exception as error:  # told to everyone who waits for it
                answers = [error] * len(together)
            for (_, future), answer in zip(together, answers, strict=True):
                if future.cancelled():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        del self._waiting[key]
