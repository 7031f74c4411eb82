"""Many short runs of an engine of the tests' own, over several workers and replicas; and workers that are killed.

`make test` plays a few, `make soak` the numbers that are promised.
"""

import asyncio
import random
from collections import Counter

import pytest

from saucer.lib.ids import new_id
from saucer.lib.stream import STREAM
from saucer.training.charging import LEASE_MS
from saucer.training.domain import MAX_ATTEMPTS
from tests.support.crew import Crew, kill
from tests.support.engine import check_losses, read_journal
from tests.support.events import until
from tests.support.policy import check_each_choice

# Iterations of a run, at 20 a second.
JOB_ITERATIONS = 20
KILLED_JOB_ITERATIONS = 60
SOAK = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("jobs", [16, pytest.param(1000, marks=SOAK)])
async def test_runs_go_once_each_to_workers_of_their_region_in_the_order_of_the_policy(
    crew: Crew, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = [new_id(), new_id()]
    choices = check_each_choice(monkeypatch)
    starts = [
        await crew.queue(accounts[number % 2], iterations=JOB_ITERATIONS, region_id="b" if number % 4 == 3 else "a")
        for number in range(jobs)
    ]
    async with crew.workers(("a-1", "a", 0), ("a-2", "a", 1), ("b-1", "b", 1)):
        await until(lambda: crew.ended(jobs), timeout_s=jobs + 60)
    rows = await crew.database.fetch("SELECT run_id, region_id, worker_id, attempt, end_reason FROM run")
    assert len(rows) == jobs
    for row in rows:
        assert row["worker_id"].startswith(row["region_id"]), "a run of another region"
        assert (row["attempt"], row["end_reason"]) == (1, "COMPLETED")
    for start in starts:
        iterations = [line.iteration for line in read_journal(crew.journal, start.run_id)]
        assert iterations == list(range(1, JOB_ITERATIONS + 1)), "it was done once, and by one at a time"
    assert choices.number >= jobs, "each lease was held against the policy"
    assert choices.wrong == []


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=SOAK)])
async def test_of_workers_that_are_killed_no_run_is_lost_or_done_twice_and_no_gap_is_charged(
    crew: Crew, kills: int
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    account_id, jobs = new_id(), max(4, kills)
    starts = [await crew.queue(account_id, iterations=KILLED_JOB_ITERATIONS, region_id="a") for _ in range(jobs)]
    places = [("a-1", "a", 0), ("a-2", "a", 1)]
    names = [name for name, _, _ in places]
    at_work = """
        SELECT worker_id FROM run WHERE state = 'RUNNING' AND beat_at > clock_timestamp() - interval '1500 ms'
        ORDER BY random() LIMIT 1
    """
    async with crew.workers(*places) as workers:
        for _ in range(kills):
            worker_id = await until(lambda: crew.database.fetchval(at_work), timeout_s=120)
            await asyncio.sleep(draw.uniform(0.0, 3.0))
            number = names.index(worker_id)
            await kill(workers[number])
            workers[number] = await crew.worker(*places[number])
        await until(lambda: crew.ended(jobs), timeout_s=120 + 5 * jobs)

    rows = {str(row["run_id"]): row for row in await crew.database.fetch("SELECT * FROM run")}
    assert len(rows) == jobs
    lost = Counter(row["lost_attempts"] for row in rows.values())
    print("runs by lost attempts:", dict(lost))
    assert sum(number * runs for number, runs in lost.items()) >= kills // 2, "most kills met a run in its midst"
    for start in starts:
        row = rows[start.run_id]
        exhausted = row["lost_attempts"] >= MAX_ATTEMPTS
        assert row["end_reason"] == ("FAILED" if exhausted else "COMPLETED")
        assert row["model_id"] is not None or row["lost_attempts"] > MAX_ATTEMPTS or row["checkpoint_key"] is None
        wall_ms = (row["ended_at"] - row["started_at"]).total_seconds() * 1000
        assert row["charged_ms"] <= wall_ms - row["lost_attempts"] * (LEASE_MS - 1000), "a gap was charged"
        check_losses(read_journal(crew.journal, start.run_id))
    subject = f"saucer.training.v1.RunEnded.{account_id}.>"

    async def told() -> bool:
        counts = (await crew.jetstream.stream_info(STREAM, subjects_filter=subject)).state.subjects or {}
        return sorted(counts.values()) == [1] * jobs

    await until(told)
