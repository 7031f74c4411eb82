"""What one process of a served model has to say: its last lines, kept in memory until somebody asks for them."""

import time
from collections import deque
from typing import Any
from uuid import uuid4

MAX_LINES = 200
"""Older ones are lost, and so are all when the process ends; Triton's own log has them too."""
MAX_CHARACTERS = 1000
"""Of a line; the rest is cut."""


class Journal:
    """Lines numbered from 1, each with its time in seconds since 1970 and INFO, WARNING or ERROR."""

    def __init__(self) -> None:
        self.process = uuid4().hex
        self._count = 0
        self._lines: deque[dict[str, Any]] = deque(maxlen=MAX_LINES)

    def write(self, level: str, message: str) -> None:
        self._count += 1
        line = {"number": self._count, "time_s": time.time(), "level": level, "message": message[:MAX_CHARACTERS]}
        self._lines.append(line)

    def lines(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(self._lines)
