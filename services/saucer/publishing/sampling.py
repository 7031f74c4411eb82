"""What Tritons count and models say, fetched at the end of each piece of time: batch sizes, queue times, log lines.

1. Every replica of publishing does it. Counters only grow and lines have numbers, so what two fetch is stored once.
2. A line comes from the process that serves the model (serving/journal.py) by the same gRPC as an inference, so from a
   Triton on any machine. What a process said after the last look is lost if it is killed; Triton's own log, on its own
   machine, has that too.
3. What a model says while it loads is fetched as soon as it has (placement.py); of one that does not load, publishing
   writes the line.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import structlog

from saucer.publishing.batching import CountersAt
from saucer.publishing.fleet import Fleet
from saucer.publishing.placement import known_name, read_name
from saucer.publishing.service.monitoring import Monitoring
from saucer.publishing.traffic import PIECE, begin_of
from saucer.publishing.triton import AWAY, TritonClient, TritonError

# A model that does not say anything within this is asked again at the next piece's end.
REPORT_S = 2.0

log = structlog.get_logger()


async def sample(fleet: Fleet, monitoring: Monitoring) -> None:
    """Until cancelled."""
    async for began_at in _ends_of_pieces():
        await sample_piece(fleet, monitoring, began_at)


async def sample_piece(fleet: Fleet, monitoring: Monitoring, began_at: datetime) -> None:
    """Once, of all that answer. One that fails keeps nothing of the others back."""
    try:
        live = [triton.triton_id for triton in await fleet.refresh() if triton.live]
    except AWAY as error:
        log.warning("not_sampled", error=repr(error))
        return
    for triton_id in live:
        try:
            await _fetch(await fleet.client(triton_id), triton_id, began_at, monitoring)
        except AWAY as error:
            log.warning("not_sampled", triton_id=triton_id, error=repr(error))


async def _ends_of_pieces() -> AsyncIterator[datetime]:
    """The beginning of each piece that has just ended."""
    while True:
        now = datetime.now(UTC)
        await asyncio.sleep((begin_of(now) + PIECE - now).total_seconds())
        yield begin_of(datetime.now(UTC)) - PIECE


async def _fetch(triton: TritonClient, triton_id: str, began_at: datetime, monitoring: Monitoring) -> None:
    counters_of = await triton.counters()
    # In one order, since another replica writes the same rows at the same time.
    ours = sorted(name for name in counters_of if read_name(name) is not None)
    readings = []
    for name in ours:
        deployment_id, version_number = known_name(name)
        readings.append((deployment_id, CountersAt(version_number, began_at, triton_id, counters_of[name])))
    await monitoring.store_readings(readings)
    await asyncio.gather(*(_fetch_lines(triton, triton_id, name, monitoring) for name in ours))


async def _fetch_lines(triton: TritonClient, triton_id: str, name: str, monitoring: Monitoring) -> None:
    try:
        report = await triton.report(name, timeout_s=REPORT_S)
    except TritonError as error:
        log.info("model_says_nothing", name=name, error=error.reason)
    else:
        await monitoring.store_lines(*known_name(name), triton_id, report.process, report.lines)
