"""Data and training: how fast a set of images comes in, in how much memory, and how fast its pages are."""

import tempfile
from pathlib import Path

from tests.bench import _importing, _listing
from tests.bench.harness import Row, Say


async def measure(say: Say) -> list[Row]:
    """The issue's rows."""
    with tempfile.TemporaryDirectory(prefix="saucer-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        rows = await _importing.measure(folder, say)
        async with _importing.importer(folder / "listing") as ours:
            return [*rows, *await _listing.measure(ours, folder, say)]
