"""Which worker gets which run."""

import asyncio

import asyncpg
import structlog

from saucer.lib.postgres import Database
from saucer.training import artifacts, domain, lease
from saucer.training.bell import Bell
from saucer.training.domain import ModelFile, Run
from saucer.training.store import models, queue, runs

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
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        with self._bell.listen(("queue", region_id, spec_id)) as rung:
            while not self._closing:
                try:
                    leased = await self._lease_now(request_id, worker_id, region_id, spec_id)
                except asyncpg.UniqueViolationError:
                    continue  # the same request is being answered beside this one
                remaining_s = deadline_s - loop.time()
                if leased is not None or remaining_s <= 0:
                    return leased
                await rung.wait(min(POLL_S, remaining_s))
        return None

    async def _lease_now(self, request_id: str, worker_id: str, region_id: str, spec_id: str) -> tuple[Run, str] | None:
        async with self._database.transaction() as tx:
            request_sha256 = lease.hash_of(request_id)
            run = await runs.run_of_lease_request(tx.connection, request_sha256, tx.now)
            if run is None:
                run = await queue.next_queued(tx.connection, region_id, spec_id)
                if run is None:
                    return None
                salt = lease.new_salt()
                token_sha256 = lease.hash_of(lease.token_of(request_id, salt))
                granted = lease.Lease(worker_id, token_sha256, request_sha256, salt, None)
                run = await runs.update_run(tx.connection, domain.lease(run, granted, tx.now))
                log.info("run_leased", run_id=run.run_id, attempt=run.attempt, worker_id=worker_id)
            assert run.lease is not None
            return run, lease.token_of(request_id, run.lease.salt)

    async def served_files(self, run: Run) -> tuple[ModelFile, ...]:
        """Of the model that the run predicts with; none if it trains, or if the account has no such model."""
        if run.request.predicts_model_id is None:
            return ()
        async with self._database.reading() as connection:
            model = await models.get_model(connection, run.request.predicts_model_id)
        if model is None or model.account_id != run.request.account_id:
            return ()
        return tuple(file for file in model.files if file.name in artifacts.SERVED_NAMES)
