"""lease_p99_ms: from CreateTask to the lease in the hands of a worker that waits.

Task, billing and training as they are wired, each with its database, in one process; the data set is played. The
reference is the promise: a quarter of a second.
"""

import asyncio
import time
from pathlib import Path

from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2
from tests.bench._servers import service_runner
from tests.bench.harness import Row, Say, percentile
from tests.integration.task.world import HOLD_MICROS, playing
from tests.support.training import ScriptedWorker

TASKS, WARM_UP = 300, 20
PROMISED_MS = 250.0


async def measure(folder: Path, say: Say) -> list[Row]:
    """The row."""
    async with (
        service_runner(folder) as run,
        run("training", TrainingSettings, wire, object_store_url=f"file://{folder / 'objects'}") as training,
        playing(run) as world,
    ):
        account_id, editor = await world.account((TASKS + WARM_UP) * HOLD_MICROS)
        worker = ScriptedWorker.of(training.channel, run.tokens)
        taken_ms = []
        for number in range(TASKS + WARM_UP):
            waiting = asyncio.ensure_future(worker.take(wait_s=30))
            await asyncio.sleep(0.02)  # until it waits
            started = time.perf_counter()
            task = await world.create(world.form(account_id, f"t{number}"), editor)
            leased = await waiting
            taken_ms.append(1000 * (time.perf_counter() - started))
            if not leased or worker.lease.run.task_id != task.task_id:
                raise RuntimeError(f"{task.task_id} was not leased.")
            await worker.beat()
            await worker.finish(training_pb2.END_REASON_FAILED, user_error=True)
        measured = taken_ms[WARM_UP:]
    p99_ms = percentile(measured, 0.99)
    say(f"lease_p99_ms: median {percentile(measured, 0.5):.1f} ms of {TASKS}")
    return [Row("lease_p99_ms", p99_ms, PROMISED_MS, "ms", p99_ms / PROMISED_MS, "<= 1.0")]
