"""How much of what a worker writes is kept: a bucket of lines that fills with time, so that a flood stays bounded."""

from dataclasses import dataclass
from datetime import timedelta

# Lines of a run's log kept a second, over time; more are dropped, and a line says how many.
LINES_PER_S = 100
# Lines that may come at once after a quiet while.
BURST = 1_000
# Lines kept of a run; later ones are dropped, and its last line says so.
LINES_PER_RUN = 1_000_000


@dataclass(frozen=True)
class LogLimit:
    """Of a run: the lines for which there is room, and those that were dropped and not told of yet."""

    room: float = float(BURST)
    dropped: int = 0


@dataclass(frozen=True)
class Admitted:
    """Of the lines that came: so many are kept, and then a line says that `told` were dropped (0: none says it)."""

    limit: LogLimit
    kept: int
    told: int


def admit(limit: LogLimit, since: timedelta, number: int, stored: int) -> Admitted:
    """What happens to `number` lines that come after a time, when the run has `stored` lines already."""
    room = min(float(BURST), limit.room + max(0.0, since.total_seconds()) * LINES_PER_S)
    places = min(int(room), LINES_PER_RUN - stored)
    kept = number if number + (limit.dropped > 0) <= places else max(0, places - 1)
    dropped = limit.dropped + number - kept
    told = dropped if places > kept else 0
    return Admitted(LogLimit(room - kept - (told > 0), dropped - told), kept, told)
