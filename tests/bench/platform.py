"""The platform's own cost: a call's, an event's, a start's."""

import tempfile
from pathlib import Path

from tests.bench import _events, _first_iteration, _handler_stack
from tests.bench.harness import Row, Say


async def measure(say: Say) -> list[Row]:
    """The three rows."""
    with tempfile.TemporaryDirectory(prefix="saucer-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        return [
            await _handler_stack.measure(folder, say),
            await _events.measure(folder / "events", say),
            await _first_iteration.measure(folder / "start", say),
        ]
