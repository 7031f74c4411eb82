"""Data and training: how fast a set of images comes in, and in how much memory."""

import tempfile
from pathlib import Path

from tests.bench import _importing
from tests.bench.harness import Row, Say


async def measure(say: Say) -> list[Row]:
    """The issue's rows."""
    with tempfile.TemporaryDirectory(prefix="saucer-bench-", ignore_cleanup_errors=True) as name:
        return await _importing.measure(Path(name), say)
