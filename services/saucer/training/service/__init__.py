"""The use cases of training, by what they are about, and the only place that opens its transactions.

1. A lease is a row lock away: leases.py says which run is next, the token's hash on the row who owns it from then on.
2. Each heartbeat is one transaction: lease, counter, metrics, log, checkpoint and, when due, an event.
3. FinishRun reads files outside any transaction, then asks once more whether the run is still the caller's, and only
   once its end is committed copies them for the user; see copies.py.
"""

from saucer.lib.objects import Objects
from saucer.lib.postgres import Database
from saucer.training import domain
from saucer.training.bell import Bell
from saucer.training.charging import LEASE_MS
from saucer.training.service.attempts import Attempts, Measured
from saucer.training.service.changes import Logged, lose, queue_of, save
from saucer.training.service.leases import Leases
from saucer.training.service.models import Models
from saucer.training.service.starts import Starts
from saucer.training.store import queue

__all__ = ["Logged", "Measured", "Training"]

# Runs that one round of the sweeper takes of each kind.
SWEEP_BATCH = 50
WORKER_LOST = f"The worker was lost: nothing was heard of it for {LEASE_MS // 1000} s."


class Training:
    """Runs, leases and what workers do with them; reading.py answers the users."""

    def __init__(self, database: Database, objects: Objects, bell: Bell) -> None:
        self._database = database
        self._bell = bell
        self.starts = Starts(database, bell)
        self.leases = Leases(database, bell)
        self.attempts = Attempts(database, objects, bell)
        self.models = Models(database)

    async def sweep(self, *, expire: bool) -> None:
        """Takes up what lost its worker (if `expire`) or waited too long."""
        async with self._database.transaction() as tx:
            lost = await queue.expired(tx.connection, tx.now, SWEEP_BATCH) if expire else []
            lost = [await lose(tx, run, WORKER_LOST) for run in lost]
            waiting = await queue.queued_since(
                tx.connection, tx.now - domain.QUEUE_LIMIT, tx.now - domain.FINISH_QUEUE_LIMIT, SWEEP_BATCH
            )
            for run in waiting:
                if domain.waited_too_long(run, tx.now):
                    await save(tx, domain.give_up_waiting(run, tx.now))
        for run in lost:
            self._bell.ring(queue_of(run))
        for run in (*lost, *waiting):
            self._bell.ring(("run", run.run_id))
