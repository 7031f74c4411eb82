"""Who gets a run, and what a lease and its heartbeats begin."""

import asyncio

import asyncpg
import pytest

from saucer.lib.ids import new_id
from saucer.training.domain import RunState
from saucer.training.service import Logged
from tests.support.training_lab import LEASE, SECOND, Lab


async def test_of_many_workers_one_gets_the_run(lab: Lab) -> None:
    await lab.queue()
    taken = await asyncio.gather(*(lab.take() for _ in range(10)))
    assert sum(worker is not None for worker in taken) == 1


async def test_the_same_request_gets_the_same_lease_also_when_asked_at_once(lab: Lab) -> None:
    await lab.queue()
    await lab.queue()
    request_id = new_id()
    taken = await asyncio.gather(*(lab.take(request_id, wait_s=5) for _ in range(5)))
    assert len({(worker.leased.run_id, worker.token) for worker in taken if worker is not None}) == 1
    assert all(worker is not None for worker in taken)


async def test_a_late_retry_gets_nothing_while_its_lease_is_over_and_not_taken_up_yet(lab: Lab) -> None:
    await lab.queue()
    request_id = new_id()
    lost = await lab.take(request_id)
    assert lost is not None
    other = await lab.queue()
    lab.clock.advance(LEASE + SECOND)
    assert await asyncio.wait_for(lab.take(request_id), 3) is None
    assert (await lab.run(other)).state is RunState.QUEUED
    await lab.training.sweep(expire=True)
    again = await lab.take(request_id)
    assert again is not None
    assert again.token != lost.token


async def test_a_request_that_is_answered_beside_itself_keeps_to_its_wait(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def violate(*_: object) -> None:
        raise asyncpg.UniqueViolationError

    monkeypatch.setattr(lab.training.leases, "_lease_now", violate)
    assert await asyncio.wait_for(lab.take(), 3) is None


async def test_the_account_with_the_fewest_at_work_comes_first_then_who_waits_longest(lab: Lab) -> None:
    busy, other = new_id(), new_id()
    runs = []
    for account_id in (busy, busy, busy, other):
        runs.append(await lab.queue(account_id))
        lab.clock.advance(SECOND)
    assert [(await lab.worker()).leased.run_id for _ in range(4)] == [runs[0], runs[3], runs[1], runs[2]]


async def test_a_lease_without_a_heartbeat_lapses_silently_and_starts_no_charge(lab: Lab) -> None:
    run_id = await lab.queue()
    await lab.worker()
    lab.clock.advance(LEASE + SECOND)
    await lab.training.sweep(expire=True)
    run = await lab.run(run_id)
    assert (run.state, run.lost_attempts, run.started_at) == (RunState.QUEUED, 0, None)
    assert await lab.told(run_id) == ["RunQueued"]


async def test_a_repeated_heartbeat_changes_nothing(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    line = Logged(2, lab.clock.time, "once")
    await worker.beat(1, lines=[line])
    first = await lab.run(run_id)
    lab.clock.advance(SECOND)
    await worker.beat(1, lines=[line], repeat=True)
    assert await lab.run(run_id) == first
