"""Whether something was met before, in a tenth of the memory of a set of it."""

import hashlib

import numpy as np

# Met since the last time that they were sorted in.
MOST_NEW = 4096
_BYTES = 8


class Seen:
    """Numbers of 64 bits. What they stand for may be told apart by its hash: of a million, no two share one."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._new: set[int] = set()

    def add(self, number: int) -> bool:
        """Whether it is met for the first time."""
        if number in self._new or self._is_sorted_in(number):
            return False
        self._new.add(number)
        if len(self._new) == MOST_NEW:
            new = np.fromiter(self._new, dtype=np.uint64, count=MOST_NEW)
            self._sorted = np.sort(np.concatenate([self._sorted, new]))
            self._new.clear()
        return True

    def _is_sorted_in(self, number: int) -> bool:
        at = int(np.searchsorted(self._sorted, np.uint64(number)))
        return at < len(self._sorted) and int(self._sorted[at]) == number


def number_of_text(text: str) -> int:
    """For Seen."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_BYTES).digest())


def number_of_hash(sha256: str) -> int:
    """Of one in hex."""
    return int(sha256[: 2 * _BYTES], 16)
