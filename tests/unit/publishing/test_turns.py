"""Loads on one Triton: so many at once, the urgent ones first."""

import asyncio
from dataclasses import replace
from unittest.mock import AsyncMock, Mock

from saucer.lib.ids import new_id
from saucer.publishing import lifecycle
from saucer.publishing.placement import model_name
from saucer.publishing.reconcile import LOADS_AT_ONCE, Reconciler
from saucer.publishing.turns import Turns
from tests.support.events import until
from tests.unit.publishing.examples import NOW, PARITY, active, beside


async def test_so_many_run_at_once_and_then_the_lowest_rank_in_the_order_in_which_they_came() -> None:
    turns, begun, end = Turns(2), list[str](), asyncio.Event()

    async def run(name: str, *rank: int) -> None:
        async with turns.turn(*rank):
            begun.append(name)
            await end.wait()

    async with asyncio.TaskGroup() as group:
        for name, rank in (("a", 2), ("b", 2), ("c", 2), ("d", 1), ("e", 1), ("f", 0)):
            group.create_task(run(name, rank))
        await asyncio.sleep(0.01)
        assert begun == ["a", "b"]
        end.set()
    assert begun == ["a", "b", "f", "d", "e", "c"]


async def test_who_is_cancelled_while_waiting_or_when_its_turn_comes_takes_nobodys_turn() -> None:
    turns, begun = Turns(1), list[str]()

    async def run(name: str) -> None:
        async with turns.turn(0):
            begun.append(name)

    async with turns.turn(0):
        waiting = [asyncio.create_task(run(name)) for name in "abc"]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0.01)
    # The turn is b's by now, which has not run yet.
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert begun == ["c"]
    async with asyncio.timeout(1), turns.turn(0):
        pass


async def test_after_a_restart_a_triton_brings_back_so_many_at_once_and_what_served_before_candidates() -> None:
    begun: list[str] = []
    end = asyncio.Event()

    async def put_back(name: str, *_: object, anew: bool) -> None:
        begun.append(name)
        await end.wait()

    deployments = []
    for _ in range(LOADS_AT_ONCE):
        found = replace(active(), deployment_id=new_id())
        found = lifecycle.propose(found, replace(found.version, number=2), 50, NOW)
        found = lifecycle.pass_gate(lifecycle.activate(found, beside(found), PARITY, "p", NOW), NOW)
        for instance in found.instances:
            found = lifecycle.lose(found, instance, "dead", NOW)
        deployments.append(found)
    serving = AsyncMock()
    serving.wanted.return_value = deployments, NOW
    serving.placed.return_value = deployments
    # Nothing serves: it is brought back.
    placement = AsyncMock(judge=AsyncMock(return_value="dead"), put_back=put_back, held=AsyncMock(return_value={}))
    fleet = AsyncMock(refresh=AsyncMock(return_value=[]), placement=AsyncMock(return_value=placement))
    reconciler = Reconciler(Mock(serving=serving, versions=AsyncMock(), tritons=AsyncMock()), fleet, holder="me")
    running = asyncio.create_task(reconciler.run())
    try:
        await until(lambda: asyncio.sleep(0, len(begun) >= LOADS_AT_ONCE))
        await asyncio.sleep(0.1)
        assert len(begun) == LOADS_AT_ONCE
        end.set()
        await until(lambda: asyncio.sleep(0, len(begun) >= 2 * LOADS_AT_ONCE))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    # The first to come begin, whatever they are.
    candidates = {model_name(item.deployment_id, 2) for item in deployments}
    late = [name in candidates for name in begun[LOADS_AT_ONCE : 2 * LOADS_AT_ONCE]]
    assert late == sorted(late)
    assert False in late
