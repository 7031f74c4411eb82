"""What was made once and does not change, in memory, bounded by bytes: what was read least recently leaves first."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from prometheus_client import Counter, Gauge

# Values, so that one that is slow to read keeps no other caller waiting.
MADE_AT_ONCE = 2

asked_total = Counter("saucer_evaluation_cache_asked_total", "Asked for, by where it was", ["cache", "found"])
cached_bytes = Gauge("saucer_evaluation_cached_bytes", "In memory, about", ["cache"])

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Makes a value when it is first asked for, and once however many ask; a few at a time, which bounds the memory of
    making too.

    Above `max_bytes` values leave until the rest fits; one that is larger alone is answered, and not kept.
    """

    def __init__(self, name: str, size_bytes: Callable[[Value], int], max_bytes: int) -> None:
        self._name = name
        self._size_bytes = size_bytes
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._kept_bytes = 0
        # Of values that are waited for.
        self._making: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._room = asyncio.Semaphore(MADE_AT_ONCE)

    async def get(self, key: Key, make: Callable[[], Awaitable[Value]]) -> Value:
        """Raises what `make` raises; nothing is kept then."""
        if key not in self._kept:
            async with self._making.setdefault(key, asyncio.Lock()):
                # Another caller may have made it while this one waited.
                if key not in self._kept:
                    async with self._room:
                        value = await make()
                    asked_total.labels(self._name, "nowhere").inc()
                    self._keep(key, value)
                    return value
        asked_total.labels(self._name, "memory").inc()
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: Key, value: Value) -> None:
        if self._size_bytes(value) > self._max_bytes:
            return
        self._kept[key] = value
        self._kept_bytes += self._size_bytes(value)
        while self._kept_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= self._size_bytes(dropped)
        cached_bytes.labels(self._name).set(self._kept_bytes)
