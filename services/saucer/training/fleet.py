"""Workers and queues as an administrator sees them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

# A worker without a run asks for one at least this often; one that does not is gone.
WORKER_GONE = timedelta(seconds=120)


class WorkerState(StrEnum):
    """Of a worker, as training sees it."""

    IDLE = "IDLE"
    WORKING = "WORKING"
    # It has a run, and gets no other.
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    # Not heard of for WORKER_GONE.
    GONE = "GONE"


@dataclass(frozen=True)
class Worker:
    """A process that asks for runs. `worker_id` is its own choice: two of one name are one here."""

    worker_id: str
    region_id: str
    spec_id: str
    first_seen_at: datetime
    # By asking for a run, or by a heartbeat.
    seen_at: datetime
    draining: bool
    run_id: str | None

    def state(self, now: datetime) -> WorkerState:
        """At a time."""
        if self.run_id is not None:
            return WorkerState.DRAINING if self.draining else WorkerState.WORKING
        if now - self.seen_at > WORKER_GONE:
            return WorkerState.GONE
        return WorkerState.DRAINED if self.draining else WorkerState.IDLE


@dataclass(frozen=True)
class Queue:
    """Runs and workers of one region and spec."""

    region_id: str
    spec_id: str
    queued: int
    at_work: int
    # Of the run that waits longest.
    oldest_queued_at: datetime | None
    workers: int
