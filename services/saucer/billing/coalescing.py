"""Calls about one thing that wait while the last is in flight, and then go as one: no timer, so an idle call waits for
nothing, and a busy account has as many calls in a statement as came during the one before, and as have arrived by then.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")
A = TypeVar("A")

# Calls that go as one at most; more wait for the next.
MAX_TOGETHER = 64
# Of the event loop, for those that have arrived to join: from its socket through gRPC to here a call takes several.
# Without them 64 callers went by eights, which is half as fast: a round costs the same for eight as for sixty-four.
TURNS = 10


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
        while together := await self._take(key):
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

    async def _take(self, key: K) -> list[tuple[R, asyncio.Future[A]]]:
        """Those of the next round; more are let in until some turns of the loop bring none."""
        known = 0
        while known < len(self._waiting[key]) < MAX_TOGETHER:
            known = len(self._waiting[key])
            for _ in range(TURNS):
                await asyncio.sleep(0)
        together, self._waiting[key] = self._waiting[key][:MAX_TOGETHER], self._waiting[key][MAX_TOGETHER:]
        return together
