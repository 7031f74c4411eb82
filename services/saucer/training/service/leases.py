"""Which worker gets which run: by region and spec, fair between accounts.

1. A run goes only to a worker of its region and spec, one run after the other over all replicas, so that what follows
   holds exactly.
2. Of accounts that wait, the one goes first with the fewest runs at work in relation to its weight; each AGEING that
   it has waited counts as one run fewer. It has waited since its longest waiting run was queued, or since it got a run
   of this region and spec last, if that is later: a backlog grows no older while it is worked off, and what an account
   gets elsewhere keeps nothing of it waiting for ever. Among equals, who waits longer.
3. An account at its limit of running work waits until one of its runs is at rest.
4. Of one account's runs the higher priority goes first, then those that were begun before, then who waits longest.
5. A worker that drains gets none.
"""

import asyncio
import contextlib
from datetime import datetime

import asyncpg
import structlog

from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.postgres import Database, Transaction
from saucer.training import artifacts, domain, lease
from saucer.training.bell import Bell
from saucer.training.domain import ModelFile, Run
from saucer.training.fleet import Worker
from saucer.training.store import models, queue, runs, workers

# The net under the wake-ups of waiting workers.
POLL_S = 1.0

log = structlog.get_logger()


class Leases:
    """Of workers that ask for work."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell
        self._closing = False

    def close(self) -> None:
        """Ends the waiting of workers, so that the server can stop at once."""
        self._closing = True
        self._bell.ring_all()

    async def lease_run(
        self, request_id: str, worker_id: str, region_id: str, spec_id: str, *, wait_s: float
    ) -> tuple[Run, str] | None:
        """The next run for a worker with the token of its attempt; None if none came within `wait_s`."""
        async with self._database.transaction() as tx:
            await workers.see_worker(tx.connection, worker_id, region_id, spec_id, tx.now)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        with self._bell.listen(("queue", region_id, spec_id)) as rung:
            while not self._closing:
                leased = None
                # The same request is being answered beside this one, and found when it is looked for again.
                with contextlib.suppress(asyncpg.UniqueViolationError):
                    leased = await self._lease_now(request_id, worker_id, region_id, spec_id)
                remaining_s = deadline_s - loop.time()
                if leased is not None or remaining_s <= 0:
                    return leased
                await rung.wait(min(POLL_S, remaining_s))
        return None

    async def _lease_now(self, request_id: str, worker_id: str, region_id: str, spec_id: str) -> tuple[Run, str] | None:
        async with self._database.transaction() as tx:
            request_sha256 = lease.hash_of(request_id)
            run = await runs.run_of_lease_request(tx.connection, request_sha256)
            if run is not None and lease.is_over(run.lease, tx.now):
                return None  # not this run, which is another's soon, and no second one beside it
            if run is None:
                run = await self._next(tx, worker_id, region_id, spec_id)
                if run is None:
                    return None
                salt = lease.new_salt()
                token_sha256 = lease.hash_of(lease.token_of(request_id, salt))
                granted = lease.Lease(worker_id, token_sha256, request_sha256, salt, None)
                run = await runs.update_run(tx.connection, domain.lease(run, granted, tx.now))
                await queue.note_grant(tx.connection, run, tx.now)
                log.info("run_leased", run_id=run.run_id, attempt=run.attempt, worker_id=worker_id)
            assert run.lease is not None
            return run, lease.token_of(request_id, run.lease.salt)

    async def _next(self, tx: Transaction, worker_id: str, region_id: str, spec_id: str) -> Run | None:
        if not await queue.any_ready(tx.connection, region_id, spec_id, tx.now):
            return None
        await queue.wait_turn(tx.connection)
        if await workers.drains(tx.connection, worker_id):
            return None
        return await queue.next_queued(tx.connection, region_id, spec_id, tx.now)

    async def set_share(self, account_id: str, weight: int, running_limit: int | None, revision: int) -> None:
        """Of an account in the workers, as billing tells it; an older word than what is known changes nothing."""
        async with self._database.transaction() as tx:
            await queue.set_share(tx.connection, account_id, weight, running_limit, revision)

    async def drain(self, worker_id: str, *, draining: bool) -> tuple[Worker, datetime]:
        """Whether a worker is to get no further run; what it has it ends. Raises NotFoundError."""
        async with self._database.transaction() as tx:
            # A lease that has read that the worker does not drain is visible to the answer, or has not begun.
            await queue.wait_turn(tx.connection)
            if not await workers.set_draining(tx.connection, worker_id, draining=draining):
                raise NotFoundError("worker", worker_id)
            worker = await workers.get_worker(tx.connection, worker_id)
            assert worker is not None
            log.info("worker_drain", worker_id=worker_id, draining=draining, author=current().subject)
        self._bell.ring(("queue", worker.region_id, worker.spec_id))
        return worker, tx.now

    async def served_files(self, run: Run) -> tuple[ModelFile, ...]:
        """Of the model that the run predicts with; none if it trains, or if the account has no such model."""
        if run.request.predicts_model_id is None:
            return ()
        async with self._database.reading() as connection:
            model = await models.get_model(connection, run.request.predicts_model_id)
        if model is None or model.account_id != run.request.account_id:
            return ()
        return tuple(file for file in model.files if file.name in artifacts.SERVED_NAMES)
