"""Work that is claimed in the database for a time, and kept by prolonging the claim: imports and scorings.

A claim expires unless it is prolonged, so the work of a process that was killed is taken up by the next one.

What makes it is stopped at once where the claim is lost, by another's claim or because the database was away for longer
than the claim lasts: only one process at a time may go on. Who writes, writes under the claim's token all the same.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from saucer.lib.clock import wait_at_most
from saucer.lib.ids import new_id

# The net under the wake-up, and how soon an expired claim is seen.
POLL_S = 1.0
# After a failure to reach PostgreSQL.
RETRY_S = 1.0

T = TypeVar("T")

log = structlog.get_logger()


class ClaimLostError(Exception):
    """Another process has the work, or nobody has."""


async def work_off(
    claim: Callable[[str], Awaitable[T | None]],
    do: Callable[[T], Awaitable[None]],
    wanted: asyncio.Event,
    transient: tuple[type[Exception], ...],
) -> None:
    """Until cancelled: does what can be claimed, one after the other.

    Args:
        claim: takes a new token; None: nothing waits.
        do: raises ClaimLostError where the claim is not ours any more.
        wanted: set where something may wait.
        transient: what both may raise without an end of this.
    """
    while True:
        try:
            wanted.clear()
            work = await claim(new_id())
            if work is not None:
                await do(work)
                continue
        except ClaimLostError:
            # Also where an end was committed and PostgreSQL's answer got lost.
            log.warning("claim_lost")
            continue
        except transient as error:
            log.warning("claims_interrupted", error=repr(error))
            await asyncio.sleep(RETRY_S)
            continue
        await wait_at_most(wanted, POLL_S)


async def while_held(
    making: Coroutine[Any, Any, T],
    prolong: Callable[[], Awaitable[None]],
    *,
    claim_s: float,
    every_s: float,
    transient: tuple[type[Exception], ...],
) -> T:
    """What `making` returns, while the claim is prolonged; neither runs on when this is over.

    Args:
        prolong: raises ClaimLostError where the claim is not ours.
        claim_s: how long the claim lasts.
        every_s: between two prolongations; shorter than that.
        transient: what `prolong` may raise without an end of the claim.

    Raises:
        ClaimLostError; what `making` raises.
    """
    made = asyncio.ensure_future(making)
    holding = asyncio.create_task(_hold(prolong, claim_s, every_s, transient))
    try:
        await asyncio.wait({made, holding}, return_when=asyncio.FIRST_COMPLETED)
        if not made.done():
            holding.result()
        return await made
    finally:
        made.cancel()
        holding.cancel()
        await asyncio.gather(made, holding, return_exceptions=True)


async def _hold(
    prolong: Callable[[], Awaitable[None]], claim_s: float, every_s: float, transient: tuple[type[Exception], ...]
) -> None:
    held_at_s = time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        asked_at_s = time.monotonic()
        try:
            await prolong()
        except transient as error:
            log.warning("claim_not_prolonged", error=repr(error))
            if time.monotonic() - held_at_s > claim_s:
                raise ClaimLostError from error
        else:
            held_at_s = asked_at_s
