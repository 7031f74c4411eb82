"""estimate_error and time_left_error: what a user is told of the second run of a kind, against what came true.

Both runs end by their schedule. The estimate is that of QuoteTask before the second start, of the run from its first
heartbeat to its end. The time left is that of training, from a third of it on, as GetRun tells it; the worst counts,
while LEAST_LEFT_S or more were truly left: progress is told once a second.
"""

import asyncio
import time
from pathlib import Path

from saucer.dataset.v1 import dataset_pb2
from saucer.local.stack import Stack
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2
from tests.bench.harness import Row, Say
from tests.support.saucer_client import HOLD_MICROS, Account, Saucer
from tests.support.shapes import write_shapes

PROJECT = Path(__file__).parents[2]
IMAGES = {"train": 60, "validation": 20, "test": 20}
EPOCHS = 30
POLL_S = 0.2
PATIENCE_S = 900.0
LEAST_LEFT_S = 5.0


async def measure(folder: Path, say: Say) -> list[Row]:
    """`folder` takes the stack's data."""
    data = folder / "shapes"
    write_shapes(data, **IMAGES)
    (data / "annotations").mkdir()
    for split in IMAGES:
        (data / f"{split}.json").rename(data / "annotations" / f"{split}.json")
    stack = Stack(folder / "stack", PROJECT, say=say)
    await stack.start()
    saucer = Saucer(stack)
    try:
        account = await saucer.account(100 * HOLD_MICROS)
        imported = await saucer.import_folder(account, data)
        if imported.state != dataset_pb2.IMPORT_STATE_SUCCEEDED:
            raise RuntimeError(f"The import failed: {imported}")
        await _watched(saucer, account, saucer.form(imported.dataset_version_id, epochs=EPOCHS))
        form = saucer.form(imported.dataset_version_id, epochs=EPOCHS)
        quote = await saucer.task.QuoteTask(task_pb2.QuoteTaskRequest(form=form), metadata=account.metadata)
        told = await _watched(saucer, account, form)
    finally:
        await saucer.close()
        await stack.stop()
    estimated_s, took_s = quote.estimated_duration.ToMilliseconds() / 1000, told.took_s
    left_s, truly_left_s = told.worst_left()
    say(f"estimated {estimated_s:.1f} s, took {took_s:.1f} s; worst time left {left_s:.1f} s of {truly_left_s:.1f} s")
    return [
        Row("estimate_error", estimated_s, took_s, "s", abs(estimated_s / took_s - 1), "<= 0.50"),
        Row("time_left_error", left_s, truly_left_s, "s", abs(left_s / truly_left_s - 1), "<= 0.25"),
    ]


class _Told:
    """What GetRun said of a run, and when."""

    def __init__(self) -> None:
        self.left_s: list[tuple[float, float]] = []
        self.began_s = self.ended_s = 0.0
        self.took_s = 0.0

    def worst_left(self) -> tuple[float, float]:
        """The time left, told and true, that is most wrong."""
        third_s = self.began_s + (self.ended_s - self.began_s) / 3
        pairs = [
            (left_s, self.ended_s - at_s)
            for at_s, left_s in self.left_s
            if at_s >= third_s and self.ended_s - at_s >= LEAST_LEFT_S
        ]
        return max(pairs, key=lambda pair: abs(pair[0] / pair[1] - 1))


async def _watched(saucer: Saucer, account: Account, form: task_pb2.TaskForm) -> _Told:
    task = await saucer.create_task(account, form)
    told = _Told()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            run = await saucer.run_of(account, task.task_id)
            now_s = time.monotonic()
            if run is not None and run.stage == training_pb2.RUN_STAGE_TRAINING:
                told.began_s, told.ended_s = told.began_s or now_s, now_s
                if run.HasField("time_left"):
                    told.left_s.append((now_s, run.time_left.ToMilliseconds() / 1000))
            if run is not None and run.state == training_pb2.RUN_STATE_ENDED:
                break
            await asyncio.sleep(POLL_S)
    if run.end_reason != training_pb2.END_REASON_COMPLETED:
        raise RuntimeError(f"The run did not end by its schedule: {run}")
    told.took_s = (run.end_time.ToMilliseconds() - run.start_time.ToMilliseconds()) / 1000
    await saucer.task_ends(account, task.task_id)
    return told
