"""Finished evaluations in memory, bounded by bytes: the one that was read least recently leaves first."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from prometheus_client import Counter, Gauge

from saucer.evaluation.domain import Evaluation
from saucer.evaluation.stored import Loaded

# Above it evaluations leave until the rest fits; one that is larger alone is answered from, and not kept.
MAX_BYTES = 512 * 1024**2

loads_total = Counter("saucer_evaluation_loads_total", "Evaluations asked for, by where they were", ["found"])
cached_bytes = Gauge("saucer_evaluation_cached_bytes", "Of evaluations in memory, about")


class Cache:
    """Loads an evaluation when it is first asked for, one at a time, which bounds the memory of loading too."""

    def __init__(self, load: Callable[[Evaluation], Awaitable[Loaded]], max_bytes: int = MAX_BYTES) -> None:
        self._load = load
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Loaded] = OrderedDict()
        self._size_bytes = 0
        self._loading = asyncio.Lock()

    async def get(self, evaluation: Evaluation) -> Loaded:
        """Raises what `load` raises; nothing is kept then."""
        found = self._find(evaluation.evaluation_id)
        if found is not None:
            loads_total.labels("memory").inc()
            return found
        async with self._loading:
            # Another caller may have loaded it while this one waited.
            found = self._find(evaluation.evaluation_id)
            if found is None:
                found = await self._load(evaluation)
                loads_total.labels("store").inc()
                self._keep(evaluation.evaluation_id, found)
            return found

    def _find(self, evaluation_id: str) -> Loaded | None:
        found = self._kept.get(evaluation_id)
        if found is not None:
            self._kept.move_to_end(evaluation_id)
        return found

    def _keep(self, evaluation_id: str, loaded: Loaded) -> None:
        if loaded.size_bytes > self._max_bytes:
            return
        self._kept[evaluation_id] = loaded
        self._size_bytes += loaded.size_bytes
        while self._size_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._size_bytes -= dropped.size_bytes
        cached_bytes.set(self._size_bytes)
