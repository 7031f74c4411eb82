"""Bytes of requests that a process has in memory at once: of each caller at most half of what the others leave.

So some is left for one more, however many take all that they can get; the more they are, the less it is.
"""

from collections import Counter
from typing import Self

from prometheus_client import Counter as Metric

from saucer.lib.auth import Principal
from saucer.lib.errors import ResourceExhaustedError

refused_total = Metric("saucer_requests_without_room_total", "Requests refused for want of memory to receive them")


class ByteBudget:
    """Nobody waits for room: what does not fit now is refused at once."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        # By caller.
        self.held_bytes: Counter[str] = Counter()

    def hold(self, holder: str, size_bytes: int) -> "Held":
        """A context; its end gives back what is left of it. Raises ResourceExhaustedError: NO_ROOM_FOR_REQUEST."""
        of_holder = self.held_bytes[holder]
        left_by_others = self.total_bytes - (self.held_bytes.total() - of_holder)
        if of_holder + size_bytes > left_by_others // 2:
            refused_total.inc()
            raise ResourceExhaustedError(
                "NO_ROOM_FOR_REQUEST",
                f"{self.total_bytes} bytes of requests can be received at once, of one account half of what the others "
                "leave; try again later.",
            )
        return Held(self, holder, size_bytes)


class Held:
    """What one request has of a budget."""

    def __init__(self, budget: ByteBudget, holder: str, size_bytes: int) -> None:
        self._budget = budget
        self._holder = holder
        self._size_bytes = size_bytes
        budget.held_bytes[holder] += size_bytes

    def shrink(self, size_bytes: int) -> None:
        """The request turned out to be no larger, or is gone."""
        held_bytes = self._budget.held_bytes
        held_bytes[self._holder] -= self._size_bytes - size_bytes
        self._size_bytes = size_bytes
        if not held_bytes[self._holder]:
            del held_bytes[self._holder]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.shrink(0)


def holder_of(principal: Principal) -> str:
    """Who shares: the tokens of an account; of those that belong to none, each for itself."""
    return principal.account_id or principal.token_id
