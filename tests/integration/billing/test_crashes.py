"""The ledger while its database is restarted in mid-flight: what was answered holds, and nothing was done twice."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import asyncpg
import pytest

from saucer.billing.domain import Hold, HoldState, TopUp
from saucer.lib.errors import FailedPreconditionError, UnavailableError
from saucer.lib.ids import new_id
from saucer.local.servers import PostgresServer
from tests.support.ledger import HOLD_MICROS, Ledger, open_ledger, request_of

CLIENTS = 32
RETRY_S = 0.05
T = TypeVar("T")
# To a top-up, to a start, to a start for which there was too little.
Answer = TopUp | Hold | FailedPreconditionError


async def until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """As a client does that never learns what became of a lost call."""
    while True:
        try:
            return await call()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, UnavailableError):
            await asyncio.sleep(RETRY_S)


async def client(ledger: Ledger, account_id: str, end_s: float) -> list[Answer]:
    """Starts until the end, and tops up before every second start, so that some are refused: what was answered."""
    answers: list[Answer] = []
    for attempt in itertools.count():
        if time.monotonic() >= end_s:
            break
        reference, request = new_id(), request_of(account_id)
        if attempt % 2 == 0:
            added = await until_answered(partial(ledger.billing.accounts.top_up, account_id, reference, HOLD_MICROS))
            answers.append(added)
        try:
            answers.append(await until_answered(partial(ledger.second.holds.create, request)))
        except FailedPreconditionError as refusal:
            answers.append(refusal)
    return answers


def version_of(answer: Answer) -> int:
    if isinstance(answer, FailedPreconditionError):
        return int(answer.metadata["account_version"])
    return answer.account_version


def replay(answers: Sequence[Answer]) -> tuple[int, int]:
    """The balance that the answers leave, taken in the order of their account's versions; each must follow from those
    before it."""
    available = frozen = version = 0
    # A refusal changes nothing, so it comes after what made the version at which it was decided.
    for answer in sorted(answers, key=lambda one: (version_of(one), isinstance(one, FailedPreconditionError))):
        if isinstance(answer, FailedPreconditionError):
            assert (version_of(answer), answer.metadata["missing_micros"]) == (version, str(HOLD_MICROS - available))
            continue
        version += 1
        assert answer.account_version == version
        if isinstance(answer, Hold):
            assert answer.state is HoldState.GRANTED
            available, frozen = available - HOLD_MICROS, frozen + HOLD_MICROS
        else:
            available += HOLD_MICROS
            assert answer.available_micros == available
    return available, frozen


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
                answers = [answer for one in ended[number::2] for answer in one]
                assert {type(answer) for answer in answers} == {TopUp, Hold, FailedPreconditionError}
                assert replay(answers) == await ledger.balance(account_id)
            assert not (await ledger.audit()).findings
    finally:
        with contextlib.suppress(ProcessLookupError):
            await server.stop()


async def test_what_was_answered_survives_crashes_of_the_database_and_nothing_is_done_twice(servers_dir: Path) -> None:
    await play(servers_dir / "crashing", seconds=10, crashes=3)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_the_same_for_a_minute(servers_dir: Path) -> None:
    await play(servers_dir / "crashing-long", seconds=60, crashes=12)
