"""Work that is done again and again in the background: sweeps, readings, what is told from time to time."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import structlog

from saucer.lib.errors import DomainError

# What keeps a round from being made and is over some time: PostgreSQL, the network, another service, the object store.
INTERRUPTIONS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, DomainError)

log = structlog.get_logger()


async def repeat(name: str, once: Callable[[], Awaitable[object]], every_s: float, *, at_once: bool = True) -> None:
    """Makes a round, waits, and makes the next, until cancelled.

    A round that is interrupted is logged, and the next one comes as usual; any other failure ends it all.

    Args:
        once: makes a round; true: there is more to do, and the next one follows without a pause.
        at_once: whether the first comes before the first pause.
    """
    if not at_once:
        await asyncio.sleep(every_s)
    while True:
        try:
            more = await once()
        except INTERRUPTIONS as error:
            log.warning("round_interrupted", work=name, error=repr(error))
            more = None
        if more is not True:
            await asyncio.sleep(every_s)
