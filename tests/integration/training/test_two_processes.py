"""Two processes of training on one database: one is killed, and nothing is lost or done twice."""

import asyncio

import pytest
from nats.js import JetStreamContext

from saucer.lib.ids import new_id
from saucer.lib.stream import STREAM
from tests.support.crew import Crew, TrainingProcesses
from tests.support.engine import check_losses, read_journal
from tests.support.events import until

# 2 s and 6 s of the engine's work.
SHORT, LONG = 40, 120
# The killed one is away for so long, and until it has started and its worker has connected again.
AWAY_S = 3.0
# What it had asked NATS for when it was killed comes again only after consumer.ACK_WAIT_S.
HEARD_S = 90.0
JOBS = 12

pytestmark = pytest.mark.timeout(300)


async def ends_told(jetstream: JetStreamContext, account_id: str) -> dict[str, int]:
    """RunEnded events by subject."""
    subject = f"saucer.training.v1.RunEnded.{account_id}.>"
    return (await jetstream.stream_info(STREAM, subjects_filter=subject)).state.subjects or {}


@pytest.mark.parametrize("crew_of_processes", ["tests.support.patient_training"], indirect=True)
async def test_of_two_processes_one_is_killed_and_each_run_is_done_once(
    crew_of_processes: tuple[Crew, TrainingProcesses], jetstream: JetStreamContext
) -> None:
    crew, processes = crew_of_processes
    account_id = new_id()
    starts = [await crew.queue(account_id, iterations=LONG, region_id="a") for _ in range(JOBS // 2)]
    at_both = "SELECT count(DISTINCT worker_id) = 2 FROM run WHERE state = 'RUNNING' AND iteration > 0"
    async with crew.workers(("a-1", "a", 0), ("a-2", "a", 1)):
        await until(lambda: crew.database.fetchval(at_both), timeout_s=60)
        await processes.kill("first")
        # What comes now, the other one takes, and its worker begins it.
        starts += [await crew.queue(account_id, iterations=SHORT, region_id="a") for _ in range(JOBS // 2)]
        await asyncio.sleep(AWAY_S)

        async def all_exist() -> bool:
            return all([await crew.exists(start) for start in starts])

        await until(all_exist, timeout_s=HEARD_S)
        restarted = await processes.start("first")
        await until(lambda: crew.ended(JOBS), timeout_s=120)
        await restarted.channel.close()
    workers = set()
    for start in starts:
        row = await crew.run(start)
        assert (row["end_reason"], row["attempt"], row["lost_attempts"]) == ("COMPLETED", 1, 0)
        workers.add(row["worker_id"])
        lines = read_journal(crew.journal, start.run_id)
        assert check_losses(lines) == 0
        assert [line.iteration for line in lines] == list(range(1, len(lines) + 1)), "it was done once"
        wall_ms = (row["ended_at"] - row["started_at"]).total_seconds() * 1000
        assert row["charged_ms"] <= wall_ms
    assert workers == {"a-1", "a-2"}

    async def told_once() -> bool:
        return sorted((await ends_told(jetstream, account_id)).values()) == [1] * JOBS

    await until(told_once)


async def test_the_runs_of_a_process_that_does_not_come_back_go_to_the_other_ones_workers(
    crew_of_processes: tuple[Crew, TrainingProcesses], jetstream: JetStreamContext
) -> None:
    crew, processes = crew_of_processes
    account_id = new_id()
    starts = [await crew.queue(account_id, iterations=LONG, region_id="a") for _ in range(2)]
    kept = "SELECT count(checkpoint_key) = 2 FROM run WHERE state = 'RUNNING'"
    async with crew.workers(("a-1", "a", 0), ("a-2", "a", 1)):
        await until(lambda: crew.database.fetchval(kept), timeout_s=60)
        await processes.kill("first")
        await until(lambda: crew.ended(len(starts)), timeout_s=120)
    rows = [await crew.run(start) for start in starts]
    assert {row["worker_id"] for row in rows} == {"a-2"}
    assert sorted(row["lost_attempts"] for row in rows) == [0, 1]
    attempts = [{line.attempt for line in read_journal(crew.journal, start.run_id)} for start in starts]
    assert sorted(attempts, key=len) == [{1}, {1, 2}]

    async def told_once() -> bool:
        return sorted((await ends_told(jetstream, account_id)).values()) == [1] * len(starts)

    await until(told_once)
