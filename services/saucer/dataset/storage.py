"""Where an account's images are stored, and how much it may still store: what one import takes of it.

A process that is killed in an import forgets what that has stored: the count may be lower than the truth, never higher,
until it is made anew when an account's leftovers are removed.
"""

import asyncio
import threading

from saucer.lib.objects import system_prefix

# Reserved for an import at a time, if the account has as much left: a small part of a large import, so that imports
# side by side can share what is left, and enough that PostgreSQL is seldom asked.
ROOM_BYTES = 16 * 1024**2


def images_prefix(account_id: str) -> str:
    """Where an account's images lie, each under its hash."""
    return f"{system_prefix(account_id)}/images"


class NoRoomError(Exception):
    """More has to be reserved before an image of this size is stored."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class Room:
    """What is reserved for the images of one import, stored by several threads; nothing at first."""

    def __init__(self) -> None:
        self._left_bytes: int | None = 0
        self._taken_bytes = 0
        self._lock = threading.Lock()
        # Held by whoever has more reserved: the others see whether that is enough.
        self.growing = asyncio.Lock()

    def fits(self, size_bytes: int) -> bool:
        """Whether take() would."""
        return self._left_bytes is None or size_bytes <= self._left_bytes

    def take(self, size_bytes: int) -> None:
        """For one image. Raises NoRoomError."""
        with self._lock:
            if not self.fits(size_bytes):
                raise NoRoomError(size_bytes)
            if self._left_bytes is not None:
                self._left_bytes -= size_bytes
            self._taken_bytes += size_bytes

    def grow(self, size_bytes: int | None) -> None:
        """By what was reserved. None: there is no limit."""
        with self._lock:
            self._left_bytes = None if size_bytes is None or self._left_bytes is None else self._left_bytes + size_bytes

    def close(self) -> int:
        """The bytes that were taken: threads that still run take no more."""
        with self._lock:
            self._left_bytes = 0
            return self._taken_bytes
