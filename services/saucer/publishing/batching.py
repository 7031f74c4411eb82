"""How Triton batches requests: what it counts since it loaded a model, and what that makes of a piece of time. No I/O.

Counters only grow, so which replica of publishing read them does not matter; one that is smaller than before has begun
anew. Triton counts every request to a model: publishing's probes and the replay of the gate, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Counters:
    """Requests that were answered, their images, the batches that these were computed in, and the time that all
    requests together waited in Triton's queue."""

    images: int = 0
    batches: int = 0
    requests: int = 0
    waited_us: int = 0

    def plus(self, other: "Counters") -> "Counters":
        return Counters(
            self.images + other.images,
            self.batches + other.batches,
            self.requests + other.requests,
            self.waited_us + other.waited_us,
        )

    def since(self, former: "Counters") -> "Counters":
        """What came to it; all of it, if it has begun anew."""
        if self.batches < former.batches or self.requests < former.requests:
            return self
        return Counters(
            self.images - former.images,
            self.batches - former.batches,
            self.requests - former.requests,
            max(0, self.waited_us - former.waited_us),
        )

    @property
    def batch_size(self) -> float:
        """Images computed together, on average; 0 without any."""
        return self.images / self.batches if self.batches else 0.0

    @property
    def queue_ms(self) -> float:
        """That a request waited, on average; 0 without any."""
        return self.waited_us / self.requests / 1000 if self.requests else 0.0


@dataclass(frozen=True)
class CountersAt:
    """The counters of a version on one Triton at the end of the piece of time that began then."""

    version_number: int
    began_at: datetime
    triton_id: str
    counters: Counters


def by_piece(readings: Sequence[CountersAt]) -> dict[tuple[int, datetime], Counters]:
    """What was counted in each piece, all Tritons together, by version and beginning. `readings` in order of time.

    The first reading of a version on a Triton has nothing to be compared with, and counts from the load on.
    """
    former: dict[tuple[int, str], Counters] = {}
    found: dict[tuple[int, datetime], Counters] = {}
    for reading in readings:
        where, piece = (reading.version_number, reading.triton_id), (reading.version_number, reading.began_at)
        counted = reading.counters.since(former.get(where, Counters()))
        found[piece] = found.get(piece, Counters()).plus(counted)
        former[where] = reading.counters
    return found
