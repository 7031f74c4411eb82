"""The evaluation: a scoring against COCO's libraries, its memory and growth, and any threshold in the service.

Ours is the whole stage from stored bytes: reading them, COCO's numbers, the one pass, figures at the default threshold
with bad cases and confusion matrix, and the bytes that are stored. The libraries only evaluate and accumulate, from
labels and detections that lie ready in their own form.
"""

import tempfile
from pathlib import Path

from tests.bench import _scoring, _thresholds
from tests.bench.harness import Row, Say


async def measure(say: Say) -> list[Row]:
    """The issue's rows, and every call at the largest size."""
    with tempfile.TemporaryDirectory(prefix="saucer-bench-", ignore_cleanup_errors=True) as name:
        return [*await _scoring.measure(say), *await _thresholds.measure(Path(name), say)]
