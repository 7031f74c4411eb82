"""submit_to_first_iteration_s: from CreateTask to the first heartbeat with an iteration in it, as GetRun shows it.

Ours: a whole stack with a warm worker — its child process has MMDetection imported, as it always has when it waits for
a run, and it has trained on this data set once. Reference: a new process that imports MMDetection and trains by
mmengine's Runner with the same configuration on the same images, until the end of its first iteration. It finds images
and labels on its disk, and needs not choose a precision: it is told what the worker chose.

Run as a program, this is the reference: `python -m tests.bench._first_iteration PRECISION`, a job on standard input.
"""

import asyncio
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from saucer.dataset.v1 import dataset_pb2
from saucer.lib.clock import from_duration
from saucer.local.stack import Stack
from saucer.training.v1 import training_pb2
from saucer.worker import job as protocol
from saucer.worker.job import StartingPoint, TrainJob
from tests.bench.harness import Row, Say, compare
from tests.support.saucer_client import HOLD_MICROS, Account, Saucer
from tests.support.shapes import write_shapes

PROJECT = Path(__file__).parents[2]
IMAGES = {"train": 40, "validation": 4, "test": 4}
# More than are trained: a run is stopped soon after its first iteration, when it has said its first metrics.
EPOCHS = 500
STOP_AFTER_ITERATIONS = 10
POLL_S = 0.02
PATIENCE_S = 120.0
FIRST = b"first iteration\n"


def cold(job: TrainJob, precision: str) -> None:
    """Plain mmengine: says FIRST after its first iteration, and ends."""
    from mmengine.hooks import Hook  # noqa: PLC0415 - these imports are what is measured
    from mmengine.runner import Runner  # noqa: PLC0415

    from saucer.worker import engine_config, splits, trainer  # noqa: PLC0415

    class _First(Hook):  # type: ignore[misc] # mmengine ships no types
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            sys.stdout.buffer.write(FIRST)
            sys.stdout.flush()
            os._exit(0)

    trainer.load_engine()
    Path(job.workdir).mkdir(parents=True, exist_ok=True)
    config = engine_config.build(job, splits.prepare(job), precision)
    config["custom_hooks"].append(_First())
    Runner(**config).train()


class _Start:
    """Starts tasks on one data set, ours and cold."""

    def __init__(self, saucer: Saucer, account: Account, dataset_version_id: str, folder: Path) -> None:
        self._saucer = saucer
        self._account = account
        self._dataset_version_id = dataset_version_id
        self._folder = folder
        self._config = training_pb2.TrainingConfig()

    async def ours_s(self) -> float:
        form = self._saucer.form(self._dataset_version_id, epochs=EPOCHS)
        started = time.monotonic()
        task = await self._saucer.create_task(self._account, form)
        run = await self._run_with_iterations(task.task_id, 1)
        took_s = time.monotonic() - started
        self._config = run.config
        await self._run_with_iterations(task.task_id, STOP_AFTER_ITERATIONS)
        await self._saucer.stop_task(self._account, task.task_id)
        await self._saucer.task_ends(self._account, task.task_id)
        return took_s

    async def cold_s(self) -> float:
        config = self._config
        job = TrainJob(
            workdir=str(self._folder / "cold"),
            images=str(self._folder / "shapes" / "images"),
            train=str(self._folder / "shapes" / "annotations" / "train.json"),
            validation=str(self._folder / "shapes" / "annotations" / "validation.json"),
            classes=tuple(config.classes),
            starting_point=StartingPoint(config.starting_point),
            input_size=config.input_size,
            epochs=config.epochs,
            lr=config.lr,
            batch_size=config.batch_size,
            warmup_iterations=config.warmup,
            seed=config.seed,
            max_duration_ms=from_duration(config.max_duration),
        )
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench._first_iteration", self._precision()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            # As the worker's child: see saucer.worker.child.
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(protocol.encode(job)), PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
        if not output.endswith(FIRST):
            raise RuntimeError(f"Plain mmengine ended with {process.returncode} and without an iteration.")
        return time.monotonic() - started

    async def _run_with_iterations(self, task_id: str, iterations: int) -> training_pb2.Run:
        run_id = ""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if run_id:
                    request = training_pb2.GetRunRequest(run_id=run_id)
                    run = await self._saucer.training.GetRun(request, metadata=self._account.metadata)
                    if run.iteration >= iterations:
                        return run
                elif found := await self._saucer.run_of(self._account, task_id):
                    run_id = found.run_id
                    continue
                await asyncio.sleep(POLL_S)

    def _precision(self) -> str:
        log = (self._saucer.stack.layout.logs / "worker-1.log").read_text()
        found: list[str] = re.findall(r"precision=(bf16|fp32)", log)
        return found[-1]


async def measure(folder: Path, say: Say) -> Row:
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
        start = _Start(saucer, account, imported.dataset_version_id, folder)
        await start.ours_s()  # until then the worker's child may still be importing
        await start.cold_s()  # files come into the page cache
        return await compare(
            "submit_to_first_iteration_s", "s", "<= 1.0", ours=start.ours_s, reference=start.cold_s, say=say
        )
    finally:
        await saucer.close()
        await stack.stop()


if __name__ == "__main__":
    order = protocol.decode(sys.stdin.buffer.readline())
    assert isinstance(order, TrainJob)
    cold(order, sys.argv[1])
