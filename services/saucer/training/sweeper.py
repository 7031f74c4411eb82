"""The loop that takes up what lost its worker. Every replica runs it; SKIP LOCKED keeps them apart."""

import asyncio

import asyncpg
import structlog

from saucer.lib.errors import DomainError
from saucer.training.charging import LEASE_MS
from saucer.training.lease import Reachable
from saucer.training.service import Training

SWEEP_S = 1.0
# Rounds further apart are a pause in which workers may not have been heard.
LONGEST_PAUSE_S = 5.0

log = structlog.get_logger()


async def run_sweeper(training: Training) -> None:
    """Until cancelled. To be started when the server serves: from then on workers can be heard."""
    loop = asyncio.get_running_loop()
    reachable = Reachable(LONGEST_PAUSE_S)
    heard_for_s = 0.0
    while True:
        try:
            await training.sweep(expire=heard_for_s * 1000 >= LEASE_MS)
            heard_for_s = reachable.seen(loop.time())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, DomainError) as error:
            reachable.broken()
            heard_for_s = 0.0
            log.warning("sweep_failed", error=repr(error))
        await asyncio.sleep(SWEEP_S)
