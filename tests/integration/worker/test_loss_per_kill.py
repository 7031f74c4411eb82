"""What a kill costs a run of the real engine, by its own journal of iterations."""

import random
from dataclasses import replace
from functools import partial

import pytest

from saucer.lib.ids import new_id
from tests.support.crew import Crew, kill
from tests.support.engine import check_losses, read_journal
from tests.support.events import until

ITERATIONS = 200
# After the first checkpoint, and long before the end.
KILLED = (45, 130)
WORKERS = ("a-1", "a-2")
PATIENCE_S = 300

# Of `make test`, test_upload_moment.py kills MMDetection, at the worst moment.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
KILLS = 20


async def test_a_kill_of_mmdetection_loses_at_most_fifty_iterations_or_thirty_seconds(crew: Crew) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    account_id = new_id()
    crew.start = replace(crew.start, input_size=64)
    starts = [await crew.queue(account_id, iterations=ITERATIONS, region_id="a") for _ in range(KILLS)]
    workers = {name: await crew.worker(name, "a", number, "", "real") for number, name in enumerate(WORKERS)}
    got_so_far = "SELECT worker_id, run_id FROM run WHERE stage = 'TRAINING' AND lost_attempts = 0 AND iteration >= $1"
    lost = "SELECT lost_attempts = 1 FROM run WHERE run_id = $1"
    try:
        for _ in range(KILLS):
            iteration = draw.randint(*KILLED)
            row = await until(partial(crew.database.fetchrow, got_so_far, iteration), timeout_s=PATIENCE_S)
            name, run_id = row["worker_id"], row["run_id"]
            await kill(workers[name])
            workers[name] = await crew.worker(name, "a", WORKERS.index(name), "", "real")
            await until(partial(crew.database.fetchval, lost, run_id), timeout_s=30)
        await until(lambda: crew.ended(KILLS), timeout_s=PATIENCE_S * KILLS)
    finally:
        for worker in workers.values():
            await kill(worker)
    for start in starts:
        row = await crew.run(start)
        assert (row["end_reason"], row["lost_attempts"]) == ("COMPLETED", 1)
        assert check_losses(read_journal(crew.journal, start.run_id)) == 1
