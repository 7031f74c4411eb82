"""train_cpu_s_per_image and train_images_per_s: slices of 50 iterations in turns, by a run of ours and plain mmengine.

Ours is the worker's child on its protocol, with checkpoints and reports; its parent's part, reading the reports and
putting each checkpoint into an object store, is done here, and its time counts. Plain mmengine has the same
configuration, seed and precision, and neither hooks of ours nor checkpoints. Whoever has no turn is stopped by SIGSTOP.

Run as a program, this is the reference: `python -m tests.bench._training_speed PRECISION`, a job on standard input; it
says each iteration on standard output.
"""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saucer.lib.objects import Objects
from saucer.local.scenes import generate
from saucer.worker import job as protocol
from saucer.worker.job import Checkpoint, Progress, Ready, TrainJob
from tests.bench.harness import Row, Say, row
from tests.support.child import Child

SLICES = 7
SLICE_ITERATIONS = 50
IMAGES, SEED = 200, 11
INPUT_SIZE, BATCH_SIZE = 192, 8
# Of each, before the first slice that counts.
WARM_UP_ITERATIONS = 20


def plain(job: TrainJob, precision: str) -> None:
    """Plain mmengine, until it is killed."""
    from mmengine.hooks import Hook  # noqa: PLC0415 - these imports are the program's own
    from mmengine.runner import Runner  # noqa: PLC0415

    from saucer.worker import engine_config, splits, trainer  # noqa: PLC0415

    class _Say(Hook):  # type: ignore[misc] # mmengine ships no types
        def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
            sys.stdout.buffer.write(b"iteration %d\n" % (runner.iter + 1))
            sys.stdout.buffer.flush()

    trainer.load_engine()
    Path(job.workdir).mkdir(parents=True, exist_ok=True)
    config = engine_config.build(job, splits.prepare(job), precision)
    config["custom_hooks"].append(_Say())
    Runner(**config).train()


class Runner:
    """A process that trains, a slice at a time."""

    def __init__(self, pid: int, wait: Callable[[int], int]) -> None:
        self._pid = pid
        self._wait = wait
        self.iteration = 0

    def slice(self, iterations: int) -> tuple[float, float]:
        """CPU seconds and seconds of one image, over at least so many iterations."""
        began, cpu_s, started_s = self.iteration, self._cpu_s(), time.monotonic()
        os.kill(self._pid, signal.SIGCONT)
        self.iteration = self._wait(began + iterations)
        os.kill(self._pid, signal.SIGSTOP)
        taken_s, cpu_s = time.monotonic() - started_s, self._cpu_s() - cpu_s
        images = (self.iteration - began) * BATCH_SIZE
        return cpu_s / images, taken_s / images

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ours(child: Child, store: Objects) -> Callable[[int], int]:
    """Reads reports as the worker's parent does, until an iteration is told."""

    def wait(iteration: int) -> int:
        while True:
            report = child.wait_for(object)
            if isinstance(report, Checkpoint):
                asyncio.run(store.put("system/bench/checkpoint.pth", Path(report.path)))
            elif isinstance(report, Progress) and report.iteration >= iteration:
                return report.iteration

    return wait


def _plain(process: "subprocess.Popen[bytes]") -> Callable[[int], int]:
    def wait(iteration: int) -> int:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"iteration ") and (told := int(line.split()[1])) >= iteration:
                return told
        raise RuntimeError(f"Plain mmengine ended with {process.wait()}.")

    return wait


async def measure(folder: Path, say: Say) -> list[Row]:
    """`folder` takes data, checkpoints and logs."""
    return await asyncio.to_thread(_measure, folder, say)


def _measure(folder: Path, say: Say) -> list[Row]:
    generate(folder / "scenes", images=IMAGES, seed=SEED, processes=os.cpu_count() or 1)
    job = TrainJob(
        workdir=str(folder / "ours"),
        images=str(folder / "scenes" / "images"),
        train=str(folder / "scenes" / "annotations" / "train.json"),
        classes=("cup", "plate"),
        input_size=INPUT_SIZE,
        batch_size=BATCH_SIZE,
        epochs=protocol.EPOCHS_RANGE[1],
        max_duration_ms=24 * 3_600_000,
    )
    child = Child(folder / "ours.log", threads=0)
    (ready,) = child.all(Ready)
    say(f"training: both in {ready.precision}")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench._training_speed", ready.precision],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # As the worker's child: see saucer.worker.child.
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )
    try:
        child.send(job)
        ours = Runner(child.process.pid, _ours(child, Objects(f"file://{folder / 'objects'}")))
        ours.slice(WARM_UP_ITERATIONS)
        assert process.stdin is not None
        process.stdin.write(protocol.encode(dataclasses.replace(job, workdir=str(folder / "plain"))))
        process.stdin.flush()
        reference = Runner(process.pid, _plain(process))
        reference.slice(WARM_UP_ITERATIONS)
        return _slices(ours, reference, say)
    finally:
        child.kill()
        process.kill()
        process.wait()


def _slices(ours: Runner, reference: Runner, say: Say) -> list[Row]:
    cpu: tuple[list[float], list[float]] = ([], [])
    speed: tuple[list[float], list[float]] = ([], [])
    for number in range(1, SLICES + 1):
        for index, runner in enumerate((ours, reference)):
            own_s = time.process_time()
            cpu_s, wall_s = runner.slice(SLICE_ITERATIONS)
            if runner is ours:
                cpu_s += (time.process_time() - own_s) / (SLICE_ITERATIONS * BATCH_SIZE)
            cpu[index].append(cpu_s)
            speed[index].append(1 / wall_s)
        say(
            f"training {number}/{SLICES}: {cpu[0][-1]:.4f} against {cpu[1][-1]:.4f} CPU s an image, "
            f"{speed[0][-1]:.1f} against {speed[1][-1]:.1f} images/s"
        )
    return [
        row("train_cpu_s_per_image", "s", "<= 1.02", *cpu),
        row("train_images_per_s", "images/s", ">= 0.95", *speed),
    ]


if __name__ == "__main__":
    order = protocol.decode(sys.stdin.buffer.readline())
    assert isinstance(order, TrainJob)
    plain(order, sys.argv[1])
