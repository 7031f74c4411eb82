"""The counter that billing charges: which part of the time between two accepted heartbeats counts.

1. At most one lease length, so a worker that was out of reach longer is not believed about that time.
2. Nothing before an attempt's first heartbeat: queue, lost workers and the gap between attempts are the platform's.
3. After a resume, nothing until the work that was counted last is passed again: it was paid once.
4. Nothing beyond STALL_MS without progress.
5. Finishing (export, prediction, and all that follows an order to stop) at most MAX_FINISHING_MS in the whole run.
6. Nothing in the extra attempt that finishes what failed attempts learnt.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from saucer.lib.money import MAX_FINISHING_MS

# A worker that is silent this long has lost its run.
LEASE_MS = 10_000
# Time without progress counts up to this; an export takes minutes, and tells nothing meanwhile.
STALL_MS = 300_000


class Place(NamedTuple):
    """How far work is; compared in order. `stage` counts from 1; `done` are iterations, with the part that is done of a
    validation, or a share of the stage."""

    stage: int
    done: float


NOWHERE = Place(0, 0.0)


@dataclass(frozen=True)
class Meter:
    """What was counted of a run, and what the next heartbeat is compared with."""

    charged_ms: int = 0
    # The part of it that was finishing.
    finishing_ms: int = 0
    # The last accepted heartbeat of the present attempt; None before its first.
    beat_at: datetime | None = None
    # When the present attempt last got further, and how far it is.
    progressed_at: datetime | None = None
    reached: Place = NOWHERE
    # How far the work is that was ever counted, over all attempts.
    counted: Place = NOWHERE
    # False: the present attempt repeats work that was counted before.
    caught_up: bool = True


def begin_attempt(meter: Meter) -> Meter:
    """Before an attempt's first heartbeat."""
    return replace(meter, beat_at=None, progressed_at=None, reached=NOWHERE, caught_up=meter.counted == NOWHERE)


def count(meter: Meter, now: datetime, place: Place, *, finishing: bool, free: bool) -> Meter:
    """The meter after an accepted heartbeat at `now` from `place`. Never smaller; `free` work counts nothing."""
    progressed = place > meter.reached
    counted_ms = 0
    if meter.beat_at is not None and meter.caught_up and not free:
        assert meter.progressed_at is not None
        until = now if progressed else min(now, meter.progressed_at + timedelta(milliseconds=STALL_MS))
        counted_ms = min(LEASE_MS, max(0, (until - meter.beat_at) // timedelta(milliseconds=1)))
    if finishing:
        counted_ms = min(counted_ms, MAX_FINISHING_MS - meter.finishing_ms)
    caught_up = meter.caught_up or place > meter.counted
    return Meter(
        charged_ms=meter.charged_ms + counted_ms,
        finishing_ms=meter.finishing_ms + (counted_ms if finishing else 0),
        beat_at=now if meter.beat_at is None else max(now, meter.beat_at),
        progressed_at=now if progressed or meter.progressed_at is None else meter.progressed_at,
        reached=max(place, meter.reached),
        counted=max(place, meter.counted) if caught_up else meter.counted,
        caught_up=caught_up,
    )
