"""Which run is next: the policy that service/leases.py states, held against a model of it, and its single rules."""

import asyncio
import itertools
import random
from collections import Counter
from datetime import datetime, timedelta

import asyncpg
import pytest

from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.errors import NotFoundError
from saucer.lib.gauges import read_once
from saucer.lib.ids import new_id
from saucer.training import watching
from saucer.training.domain import MAX_ATTEMPTS, EndReason
from saucer.training.fleet import WORKER_GONE, WorkerState
from saucer.training.store import queue, workers
from saucer.training.store.queue import AGEING
from saucer.training.store.runs import read_run
from tests.support.policy import choose
from tests.support.training_lab import SECOND, Lab, Worker

LEASES = 60


@pytest.fixture(autouse=True)
def administrator() -> None:
    set_current(Principal("tester", Role.ADMINISTRATOR, None, "t", float("inf")))


async def states(lab: Lab) -> dict[str, WorkerState]:
    async with lab.database.reading() as connection:
        found = await workers.list_workers(connection, after=None, limit=100)
    return {worker.worker_id: worker.state(lab.clock.time) for worker in found}


async def test_leases_follow_the_stated_policy(lab: Lab) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    accounts = [new_id() for _ in range(4)]
    weights = dict(zip(accounts, (1, 1, 2, 5), strict=True))
    limits = {accounts[1]: 3, accounts[2]: 4}
    for account_id in accounts:
        await lab.training.leases.set_share(account_id, weights[account_id], limits.get(account_id), 1)
    busy: Counter[str] = Counter()
    granted: dict[str, datetime] = {}
    at_work: list[tuple[str, Worker]] = []
    leased = 0
    for number in itertools.count(2):
        if leased == LEASES:
            break
        lab.clock.advance(timedelta(seconds=draw.randrange(1, 240)))
        if number % 3 == 0:  # often enough that none of them stalls
            for _, worker in at_work:
                await worker.beat(number)
        for _ in range(draw.randrange(3)):
            await lab.queue(draw.choice(accounts), priority=draw.randrange(3))
        if at_work and draw.random() < 0.5:
            account_id, worker = at_work.pop(draw.randrange(len(at_work)))
            await worker.finish(EndReason.FAILED, user_error=True)
            busy[account_id] -= 1
        async with lab.database.reading() as connection:
            rows = await connection.fetch("SELECT * FROM run WHERE state = 'QUEUED'")
        expected = choose([read_run(row) for row in rows], busy, lab.clock.time, weights, limits, granted)
        taken = await lab.take()
        assert (taken.leased.run_id if taken else None) == expected
        if taken is None:
            continue
        await taken.beat()
        busy[taken.leased.request.account_id] += 1
        granted[taken.leased.request.account_id] = lab.clock.time
        at_work.append((taken.leased.request.account_id, taken))
        leased += 1


async def test_workers_that_ask_at_once_keep_to_the_order_and_to_the_limit(lab: Lab) -> None:
    many, few, limited = new_id(), new_id(), new_id()
    await lab.training.leases.set_share(limited, 1, 1, 1)
    for account_id in (*[many] * 9, *[limited] * 9, *[few] * 3):
        await lab.queue(account_id)
    taken = await asyncio.gather(*(lab.take() for _ in range(7)))
    assert Counter(worker.leased.request.account_id for worker in taken if worker) == {many: 3, few: 3, limited: 1}


async def test_a_wait_long_enough_outweighs_runs_at_work(lab: Lab) -> None:
    busy, idle = new_id(), new_id()
    old = [await lab.queue(busy), await lab.queue(busy)]
    assert (await lab.worker()).leased.run_id in old
    lab.clock.advance(AGEING + SECOND)
    await lab.queue(idle)
    assert (await lab.worker()).leased.run_id in old


async def test_a_newcomer_behind_a_backlog_of_three_hours_gets_the_next_worker(lab: Lab) -> None:
    backlog, newcomer = new_id(), new_id()
    for _ in range(60):
        await lab.queue(backlog)
    at_work = [await lab.worker() for _ in range(3)]
    for _ in range(18):
        lab.clock.advance(timedelta(minutes=10))
        for number, worker in enumerate(at_work):
            await worker.beat()
            await worker.finish(EndReason.FAILED, user_error=True)
            at_work[number] = await lab.worker()
    run_id = await lab.queue(newcomer)
    lab.clock.advance(timedelta(minutes=10))
    await at_work[0].beat()
    await at_work[0].finish(EndReason.FAILED, user_error=True)
    assert (await lab.worker()).leased.run_id == run_id


async def test_an_old_run_of_low_priority_does_not_carry_its_accounts_newer_ones_for_ever(lab: Lab) -> None:
    old, other = new_id(), new_id()
    await lab.queue(old)
    lab.clock.advance(timedelta(hours=3))
    for account_id in [old] * 5 + [other] * 5:
        await lab.queue(account_id, priority=1)
    leased = []
    for _ in range(6):
        leased.append((await lab.worker()).leased.request.account_id)
        lab.clock.advance(SECOND)
    assert leased == [old, other] * 3


async def test_what_an_account_gets_in_one_region_does_not_make_it_wait_for_ever_in_another(lab: Lab) -> None:
    wide, local = new_id(), new_id()
    for _ in range(10):
        await lab.queue(wide, region_id="a")
        await lab.queue(local, region_id="b")
    waiting = await lab.queue(wide, region_id="b")
    leased = []
    for _ in range(10):
        taken = [await lab.take(region_id=region_id) for region_id in "ab"]
        lab.clock.advance(AGEING / 2)
        for worker in taken:
            assert worker is not None
            leased.append(worker.leased.run_id)
            await worker.beat()
            await worker.finish(EndReason.FAILED, user_error=True)
    assert waiting in leased


async def test_a_run_never_goes_to_a_worker_of_another_region(lab: Lab) -> None:
    here, there = await lab.queue(region_id="a"), await lab.queue(region_id="b")
    for region_id, run_id in (("b", there), ("a", here)):
        worker = await lab.take(region_id=region_id)
        assert worker is not None
        assert worker.leased.run_id == run_id
        assert await lab.take(region_id=region_id) is None


async def test_an_older_word_of_an_accounts_share_changes_nothing(lab: Lab) -> None:
    account_id = new_id()
    await lab.training.leases.set_share(account_id, 1, 0, 5)
    await lab.training.leases.set_share(account_id, 1, None, 4)
    await lab.queue(account_id)
    assert await lab.take() is None
    await lab.training.leases.set_share(account_id, 1, None, 6)
    assert await lab.take() is not None


async def test_a_run_that_loses_attempts_waits_longer_each_time_and_a_stop_waits_for_nothing(lab: Lab) -> None:
    run_id = await lab.queue()
    waited = []
    for _ in range(MAX_ATTEMPTS):
        worker = await lab.worker()
        await worker.beat(5, checkpoint=5)
        await worker.finish(EndReason.FAILED)
        lost_at = lab.clock.time
        while (await lab.take(worker_id="idle")) is None:
            lab.clock.advance(SECOND)
        waited.append((lab.clock.time - lost_at).total_seconds())
        lab.clock.advance(timedelta(seconds=11))
        await lab.training.sweep(expire=True)  # the lease without a heartbeat lapses
    assert waited == [0, 10, 30]
    assert (await lab.worker()).leased.run_id == run_id


async def test_a_drained_worker_ends_what_it_has_and_gets_nothing_until_it_is_resumed(lab: Lab) -> None:
    await lab.queue()
    first = await lab.take(worker_id="first")
    assert first is not None
    await first.beat()
    assert await lab.take(worker_id="second") is None
    await lab.training.leases.drain("first", draining=True)
    await lab.training.leases.drain("second", draining=True)
    assert await states(lab) == {"first": WorkerState.DRAINING, "second": WorkerState.DRAINED}
    await first.finish(EndReason.FAILED, user_error=True)
    await lab.queue()
    assert await lab.take(worker_id="first") is None
    assert await lab.take(worker_id="second") is None
    assert set((await states(lab)).values()) == {WorkerState.DRAINED}
    await lab.training.leases.drain("second", draining=False)
    assert await lab.take(worker_id="second") is not None
    lab.clock.advance(WORKER_GONE + SECOND)
    assert await states(lab) == {"first": WorkerState.GONE, "second": WorkerState.WORKING}
    with pytest.raises(NotFoundError):
        await lab.training.leases.drain("nobody", draining=True)


async def test_a_worker_is_told_drained_only_after_a_lease_that_did_not_see_it_drain(lab: Lab) -> None:
    assert await lab.take(worker_id="first") is None
    async with lab.database.transaction() as lease:
        await queue.wait_turn(lease.connection)
        assert not await workers.drains(lease.connection, "first")
        drain = asyncio.create_task(lab.training.leases.drain("first", draining=True))
        answered, _ = await asyncio.wait({drain}, timeout=0.5)
        assert not answered, "this lease may still be granted"
    worker, now = await drain
    assert worker.state(now) is WorkerState.DRAINED


async def test_the_depth_of_each_queue_is_told(lab: Lab) -> None:
    await lab.queue(region_id="a")
    await lab.queue(region_id="a")
    await lab.take(worker_id="of-a", region_id="a")
    await lab.take(worker_id="of-b", region_id="b")
    async with lab.database.reading() as connection:
        found = await queue.list_queues(connection, lab.clock.time - WORKER_GONE)
    assert [(each.region_id, each.queued, each.at_work, each.workers) for each in found] == [
        ("a", 1, 1, 1),
        ("b", 0, 0, 1),
    ]
    await read_once(lab.database, watching.READINGS)
    told = [watching.queued_runs.labels(each.region_id, each.spec_id)._value.get() for each in found]
    assert told == [1, 0]


async def test_a_replica_that_is_frozen_in_its_turn_stops_no_other(lab: Lab) -> None:
    run_id = await lab.queue()
    frozen = await lab.database.pool.acquire()
    await frozen.execute("BEGIN")
    await queue.wait_turn(frozen)
    worker = await lab.worker()
    assert worker.leased.run_id == run_id
    with pytest.raises(asyncpg.InterfaceError):
        await frozen.execute("COMMIT")
