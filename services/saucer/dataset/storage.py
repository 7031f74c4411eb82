"""Where an account's images are stored, and how much it may still store: what one import takes of it.

A process that is killed in an import forgets what that has stored: the count may be lower than the truth, never higher.
"""

import threading

from saucer.dataset.domain import ImportFailedError
from saucer.lib.objects import system_prefix


def images_prefix(account_id: str) -> str:
    """Where an account's images lie, each under its hash."""
    return f"{system_prefix(account_id)}/images"


class Room:
    """For the images of one import, stored by several threads."""

    def __init__(self, left_bytes: int | None) -> None:
        """None: no limit."""
        self._left_bytes = left_bytes
        self._lock = threading.Lock()
        self.taken_bytes = 0

    def take(self, size_bytes: int) -> None:
        """For one image. Raises ImportFailedError QUOTA_STORAGE."""
        with self._lock:
            if self._left_bytes is not None and self.taken_bytes + size_bytes > self._left_bytes:
                raise ImportFailedError(
                    "QUOTA_STORAGE",
                    f"The account has room for {max(0, self._left_bytes):,} bytes of new images; these are more.",
                )
            self.taken_bytes += size_bytes
