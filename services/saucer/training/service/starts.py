"""A run for each start, and orders to stop it, in either sequence."""

from saucer.lib.errors import InvalidArgumentError
from saucer.lib.objects import check_key, user_prefix
from saucer.lib.postgres import Database, Transaction
from saucer.training import domain
from saucer.training.bell import Bell
from saucer.training.domain import EndReason, Run, RunRequest
from saucer.training.messages import run_message
from saucer.training.service.changes import publish, queue_of, save
from saucer.training.store import leftovers, runs
from saucer.training.v1 import events_pb2


class Starts:
    """What other services order."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell

    async def queue_run(self, request: RunRequest, *, resume: bool) -> None:
        """A run for a start; ended at once if its stop came first. The second time changes nothing.

        Raises InvalidArgumentError for an output prefix that is not the account's own.
        """
        if not check_key(request.output_prefix).startswith(f"{user_prefix(request.account_id)}/"):
            raise InvalidArgumentError(
                "OUTPUT_PREFIX", f"output_prefix: {request.output_prefix} is not below the account's own prefix."
            )
        async with self._database.transaction() as tx:
            reason, at_charged_ms = await runs.stop_order(tx.connection, request.hold_id, None, 0)
            former = await runs.former_run(tx.connection, request.task_id, request.start_number) if resume else None
            run = domain.queue(request, former, tx.now)
            if not await runs.insert_run(tx.connection, run):
                return
            await publish(tx, run, events_pb2.RunQueued(run=run_message(run)))
            if reason is not None:
                await _stop(tx, run, reason, at_charged_ms)
        self._bell.ring(queue_of(run))

    async def order_stop(self, hold_id: str, reason: EndReason, at_charged_ms: int) -> None:
        """Of the run of a start, also of one that is not here yet. The first order stays."""
        async with self._database.transaction() as tx:
            reason_that_stays, at_charged_ms = await runs.stop_order(tx.connection, hold_id, reason, at_charged_ms)
            run = await runs.run_of_hold(tx.connection, hold_id)
            if run is None or reason_that_stays is None:
                return
            await _stop(tx, run, reason_that_stays, at_charged_ms)
        self._bell.ring(("run", run.run_id))

    async def forget_task(self, task_id: str) -> None:
        """No start of it follows: leftovers.py removes what one would have gone on from. Again changes nothing."""
        async with self._database.transaction() as tx:
            await leftovers.mark_task_deleted(tx.connection, task_id, tx.now)


async def _stop(tx: Transaction, run: Run, reason: EndReason, at_charged_ms: int) -> None:
    stopped = domain.order_stop(run, reason, at_charged_ms, tx.now)
    if stopped != run:
        await save(tx, stopped)
