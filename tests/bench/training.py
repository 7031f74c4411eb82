"""Data and training: how fast images come in, in how much memory; pages and searches; a lease; how fast runs train."""

import tempfile
from pathlib import Path

from tests.bench import _importing, _lease, _listing, _log, _time_to_map, _training_speed
from tests.bench.harness import Row, Say


async def measure(say: Say) -> list[Row]:
    """The issue's rows."""
    with tempfile.TemporaryDirectory(prefix="saucer-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        rows = await _lease.measure(folder / "lease", say)
        rows += await _log.measure(folder / "log", say)
        rows += await _training_speed.measure(folder / "speed", say)
        rows += await _time_to_map.measure(folder / "map", say)
        rows += await _importing.measure(folder, say)
        async with _importing.importer(folder / "listing") as ours:
            return [*rows, *await _listing.measure(ours, folder, say)]
