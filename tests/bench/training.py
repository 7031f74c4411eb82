"""Data and training: how fast images come in, in how much memory; pages and searches; a lease; how fast runs train.

It takes long, so each row is said as soon as it is known.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import _importing, _lease, _listing, _log, _progress, _time_to_map, _training_speed
from tests.bench.harness import Row, Say, told


async def measure(say: Say) -> list[Row]:
    """The issue's rows."""
    with tempfile.TemporaryDirectory(prefix="saucer-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        rows: list[Row] = []

        def take(measured: Sequence[Row]) -> None:
            for line in measured:
                say(told(line))
                rows.append(line)

        take(await _lease.measure(folder / "lease", say))
        take(await _log.measure(folder / "log", say))
        take(await _training_speed.measure(folder / "speed", say))
        take(await _time_to_map.measure(folder / "map", say))
        take(await _progress.measure(folder / "progress", say))
        take(await _importing.measure(folder, say))
        async with _importing.importer(folder / "listing") as ours:
            take(await _listing.measure(ours, folder, say))
        return rows
