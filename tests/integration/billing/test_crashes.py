"""The ledger while its database is restarted in mid-flight: what was answered holds, and nothing was done twice."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest

from saucer.billing.domain import Hold, HoldRequest, HoldState
from saucer.lib.errors import FailedPreconditionError, UnavailableError
from saucer.lib.ids import new_id
from saucer.local.servers import PostgresServer
from tests.support.ledger import HOLD_MICROS, Ledger, open_ledger, request_of

CLIENTS = 32
RETRY_S = 0.05
T = TypeVar("T")


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """As a client does that never learns what became of a lost call."""
    while True:
        try:
            return await call()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, UnavailableError):
            await asyncio.sleep(RETRY_S)


async def client(ledger: Ledger, account_id: str, end_s: float) -> tuple[int, list[tuple[HoldRequest, Hold | None]]]:
    """Tops up and starts until the end: how much, and what was answered to each start."""
    added, answers = 0, []
    while time.monotonic() < end_s:
        reference, request = new_id(), request_of(account_id)
        await until_answered(lambda reference=reference: ledger.billing.top_up(account_id, reference, HOLD_MICROS))  # type: ignore[misc]
        added += HOLD_MICROS
        try:
            hold = await until_answered(lambda request=request: ledger.second.create_hold(request))  # type: ignore[misc]
        except FailedPreconditionError:
            hold = None
        answers.append((request, hold))
    return added, answers


async def crash_and_return(server: PostgresServer) -> None:
    """PostgreSQL's own `immediate`: no goodbye, recovery at the next start."""
    os.kill(server.pid, signal.SIGQUIT)
    await server.wait()
    await server.start()


async def play(folder: Path, *, seconds: float, crashes: int) -> None:
    server = PostgresServer(folder / "postgres")
    await server.start()
    try:
        async with AsyncExitStack() as stack:
            ledger = await open_ledger(stack, await server.database("crashing"))
            accounts = [await ledger.account(0) for _ in range(2)]
            end_s = time.monotonic() + seconds
            clients = [asyncio.create_task(client(ledger, accounts[number % 2], end_s)) for number in range(CLIENTS)]
            for _ in range(crashes):
                await asyncio.sleep(seconds / (crashes + 1))
                await crash_and_return(server)
            ended = await asyncio.gather(*clients)
            for number, account_id in enumerate(accounts):
                mine = ended[number::2]
                answers = [answer for _, answers in mine for answer in answers]
                granted = [request for request, hold in answers if hold is not None]
                assert granted
                assert all(hold.state is HoldState.GRANTED for _, hold in answers if hold is not None)
                assert await ledger.balance(account_id) == (
                    sum(added for added, _ in mine) - len(granted) * HOLD_MICROS,
                    len(granted) * HOLD_MICROS,
                )
                for request, hold in answers:
                    assert (await ledger.hold(request)).state is (HoldState.GRANTED if hold else HoldState.REFUSED)
            assert not (await ledger.audit()).findings
    finally:
        with contextlib.suppress(ProcessLookupError):
            await server.stop()


async def test_what_was_answered_survives_crashes_of_the_database_and_nothing_is_done_twice(servers_dir: Path) -> None:
    await play(servers_dir / "crashing", seconds=6, crashes=2)


@pytest.mark.soak
async def test_the_same_for_a_minute(servers_dir: Path) -> None:
    await play(servers_dir / "crashing-long", seconds=60, crashes=12)
