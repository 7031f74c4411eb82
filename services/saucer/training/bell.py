"""Wakes waiters in this process; what happens in another replica they find by polling."""

import asyncio
from collections import defaultdict
from collections.abc import Hashable

from saucer.lib.clock import wait_at_most


class Bell:
    """Waiters by key."""

    def __init__(self) -> None:
        self._waiters: dict[Hashable, set[asyncio.Event]] = defaultdict(set)

    def ring(self, key: Hashable) -> None:
        """Wakes all who listen for this key."""
        for waiter in self._waiters.get(key, ()):
            waiter.set()

    def ring_all(self) -> None:
        """Wakes everybody."""
        for key in list(self._waiters):
            self.ring(key)

    def listen(self, key: Hashable) -> "Listener":
        """To be used in a `with`; what rings from there on is not missed."""
        return Listener(self._waiters, key)


class Listener:
    """One waiter."""

    def __init__(self, waiters: dict[Hashable, set[asyncio.Event]], key: Hashable) -> None:
        self._waiters = waiters
        self._key = key
        self._event = asyncio.Event()

    def __enter__(self) -> "Listener":
        self._waiters[self._key].add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiters[self._key].discard(self._event)
        if not self._waiters[self._key]:
            del self._waiters[self._key]

    async def wait(self, timeout_s: float) -> None:
        """Until it rings, or the time is over."""
        try:
            await wait_at_most(self._event, timeout_s)
        finally:
            self._event.clear()
