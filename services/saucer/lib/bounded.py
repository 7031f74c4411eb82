"""Coroutines side by side, a few at a time."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self


class Bounded:
    """`start()` waits while `limit` are in progress. Leaving the block waits for all, or cancels all if it raises.

    The first error of any of them is raised, as it is, by the next start() or at the end of the block.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending: set[asyncio.Task[None]] = set()

    async def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begins one as soon as there is room."""
        try:
            while len(self._pending) >= self._limit:
                await self._take(asyncio.FIRST_COMPLETED)
        except BaseException:
            work.close()
            raise
        self._pending.add(asyncio.create_task(work))

    async def _take(self, when: str) -> None:
        done, self._pending = await asyncio.wait(self._pending, return_when=when)
        for task in done:
            task.result()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while error is None and self._pending:
                await self._take(asyncio.FIRST_COMPLETED)
        finally:
            for task in self._pending:
                task.cancel()
            await asyncio.gather(*self._pending, return_exceptions=True)
