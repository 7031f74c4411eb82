"""One run trained by two processes, as on a machine with two GPUs: here they share a CPU, and talk by gloo."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saucer.worker.job import EndReason, Failure, FailureKind, Halted, Metrics, Progress, Stop, TrainJob
from tests.integration.worker.test_resuming import check_same
from tests.support.child import Child
from tests.support.shapes import CLASSES, write_shapes

PROCESSES = 2
IMAGES, BATCH, EPOCHS = 24, 4, 3
ITERATIONS = EPOCHS * IMAGES // BATCH

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def group(folder: Path) -> Iterator[Child]:
    started = Child(folder / "stderr.txt", PROCESSES)
    yield started
    started.kill()


@pytest.fixture(scope="module")
def job(folder: Path) -> TrainJob:
    data = write_shapes(folder / "data", train=IMAGES, validation=7, test=3)
    return TrainJob(
        workdir=str(folder / "whole"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        test=str(data.test),
        classes=CLASSES,
        input_size=64,
        epochs=EPOCHS,
        batch_size=BATCH,
        warmup_iterations=2,
        seed=3,
        processes=PROCESSES,
        deterministic=True,
    )


def ranks_of(launcher: Child) -> list[int]:
    """Process ids by rank."""
    children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split()

    def rank(pid: str) -> int:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return int(next(line for line in environment if line.startswith(b"RANK=")).partition(b"=")[2])

    return [int(pid) for pid in sorted(children, key=rank)]


def test_two_processes_stop_together_in_mid_epoch_and_resumed_end_with_the_same_bits(
    group: Child, job: TrainJob, folder: Path
) -> None:
    whole = group.run(job)
    assert (whole.reason, whole.iteration) == (EndReason.COMPLETED, ITERATIONS), "each took its share of each batch"
    assert any("map_50" in report.values for report in group.all(Metrics))
    assert group.process.wait(timeout=60) == 0, "a group ends with its job"

    halted_group = Child(folder / "stderr.txt", PROCESSES)
    halted_group.send(dataclasses.replace(job, workdir=str(folder / "halted")))
    halted_group.wait_for(Progress, lambda report: report.iteration > 1)
    halted_group.send(Stop("drain", finish=False))
    halted = halted_group.wait_for(Halted)
    assert 0 < halted.iteration < ITERATIONS
    assert halted_group.process.wait(timeout=60) == 0

    resumed_group = Child(folder / "stderr.txt", PROCESSES)
    resumed = resumed_group.run(dataclasses.replace(job, workdir=str(folder / "resumed"), resume=halted.checkpoint))
    assert resumed.iteration == ITERATIONS
    check_same(resumed, whole)
    assert resumed_group.process.wait(timeout=60) == 0


def test_a_process_that_is_killed_takes_the_others_with_it(group: Child, job: TrainJob, folder: Path) -> None:
    group.send(dataclasses.replace(job, workdir=str(folder / "killed"), epochs=500))
    group.wait_for(Progress)
    first, second = ranks_of(group)
    os.kill(second, signal.SIGKILL)
    assert group.process.wait(timeout=60) != 0
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.soak
def test_a_launcher_that_is_killed_leaves_no_process_behind(group: Child, job: TrainJob, folder: Path) -> None:
    group.send(dataclasses.replace(job, workdir=str(folder / "orphans"), epochs=500))
    group.wait_for(Progress)
    processes = ranks_of(group)
    group.kill()
    until_s = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < until_s
        time.sleep(0.1)


def test_what_one_process_cannot_read_is_told_by_the_first(group: Child, job: TrainJob, folder: Path) -> None:
    # Whichever process takes it: the first fails by itself, or tells what the other left.
    images = folder / "damaged"
    images.mkdir()
    for file in Path(job.images).iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    damaged = sorted(images.iterdir())[0]
    damaged.write_bytes(b"no image")
    group.send(dataclasses.replace(job, workdir=str(folder / "unreadable"), images=str(images), validation=None))
    failure = group.wait_for(Failure)
    assert failure.kind is FailureKind.USER
    assert "not a JPEG" in failure.message
