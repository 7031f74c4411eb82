"""How soon training stops: at its expected accuracy, at its max duration, and by its user's order."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from saucer.lib.auth import Role
from saucer.lib.grpc_client import TokenFile, channel
from saucer.lib.ids import new_id
from saucer.serving.detector import Detector
from saucer.task.v1 import task_pb2
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2, worker_pb2_grpc
from saucer.worker.heart import Heart
from saucer.worker.job import EndReason, Metrics, Progress, Result, TrainJob
from tests.bench.harness import percentile
from tests.integration.task.world import HOLD_MICROS, playing
from tests.support.child import Child
from tests.support.services import ServiceRunner, Tokens
from tests.support.shapes import CLASSES, write_shapes
from tests.support.training import ScriptedWorker, object_store

# Beside the batch that is being trained or validated on.
DURATION_GRACE_MS = 1_000
# A validation of so many takes most of a minute; it is cut short after seconds.
VALIDATION_BATCHES = 5_000
STOP_REACHES_S = 2.0
# Of this many workers at once, each with a heartbeat a second.
WORKERS = 40

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def job(folder: Path) -> TrainJob:
    data = write_shapes(folder / "data", train=40, validation=40, test=2)
    return TrainJob(
        workdir=str(folder / "work"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        classes=CLASSES,
        input_size=64,
        epochs=500,
        batch_size=4,
        warmup_iterations=2,
    )


def slowest_ms(told: Sequence[tuple[float, int]]) -> float:
    """The most that one batch took, by the batches done and when: of several that were told together, all but one are
    taken to have been as quick as the quickest."""
    passed = [(round(b[0] - a[0]), b[1] - a[1]) for a, b in itertools.pairwise(told) if b[0] > a[0]]
    quickest_ms = min(took_ms / batches for batches, took_ms in passed)
    return max(took_ms - (batches - 1) * quickest_ms for batches, took_ms in passed)


def repeat_images(file: Path, count: int) -> None:
    """Makes so many images of a COCO file's few, without labels."""
    content = json.loads(file.read_text())
    images = itertools.islice(itertools.cycle(content["images"]), count)
    content["images"] = [image | {"id": number} for number, image in enumerate(images, start=1)]
    content["annotations"] = []
    file.write_text(json.dumps(content))


def check_usable(result: Result) -> None:
    assert Detector.load(Path(result.files["onnx"]).parent).spec.classes == CLASSES


def test_at_the_first_validation_that_reaches_the_expected_accuracy_training_ends(
    child: Child, job: TrainJob, folder: Path
) -> None:
    expected = 0.02
    result = child.run(
        dataclasses.replace(job, workdir=str(folder / "accuracy"), expected_accuracy=expected, validation=job.train)
    )
    validations = [report for report in child.all(Metrics) if "map_50" in report.values]
    *short, last = (report.values["map_50"] for report in validations)
    assert result.reason is EndReason.ACCURACY_REACHED
    assert all(value < expected for value in short)
    assert last >= expected
    assert result.iteration == validations[-1].iteration
    check_usable(result)


def test_the_max_duration_ends_training_within_a_batch_and_a_second(child: Child, job: TrainJob, folder: Path) -> None:
    max_duration_ms = 3_000
    result = child.run(
        dataclasses.replace(job, workdir=str(folder / "in-training"), max_duration_ms=max_duration_ms, validation=None)
    )
    # The last report is of after the end.
    batch_ms = slowest_ms([(0, 0), *((report.iteration, report.elapsed_ms) for report in child.all(Progress)[:-1])])
    print(f"{result.elapsed_ms} ms of {max_duration_ms} ms, slowest batch {batch_ms:.0f} ms")
    assert result.reason is EndReason.DURATION_REACHED
    assert max_duration_ms <= result.elapsed_ms <= max_duration_ms + batch_ms + DURATION_GRACE_MS
    check_usable(result)


def test_the_max_duration_ends_a_validation_within_a_batch_and_a_second(
    child: Child, job: TrainJob, folder: Path
) -> None:
    max_duration_ms = 5_000
    data = write_shapes(folder / "one-iteration", train=job.batch_size, validation=10, test=2)
    repeat_images(data.validation, VALIDATION_BATCHES * job.batch_size)
    one = dataclasses.replace(
        job,
        workdir=str(folder / "cut"),
        images=str(data.images),
        train=str(data.train),
        validation=str(data.validation),
        epochs=1,
        max_duration_ms=max_duration_ms,
        finish_limit_ms=1_000,
    )
    result = child.run(one)
    # The first report is of the only iteration, the last of after the end.
    trained, *validating = child.all(Progress)[:-1]
    steps = VALIDATION_BATCHES + 1  # with the metrics
    batch_ms = slowest_ms([(report.validated * steps, report.elapsed_ms) for report in validating])
    print(f"{result.elapsed_ms} ms of {max_duration_ms} ms, slowest batch {batch_ms:.0f} ms")
    assert result.reason is EndReason.DURATION_REACHED
    assert trained.elapsed_ms < max_duration_ms, "the time was up after the last iteration"
    assert not [report for report in child.all(Metrics) if "map_50" in report.values], "the validation was cut short"
    assert max_duration_ms <= result.elapsed_ms <= max_duration_ms + batch_ms + DURATION_GRACE_MS
    check_usable(result)


@pytest.mark.parametrize("rounds", [3, pytest.param(10, marks=pytest.mark.soak)])
async def test_a_users_stop_reaches_the_worker_in_two_seconds(
    run_service: ServiceRunner, tokens: Tokens, tmp_path: Path, rounds: int
) -> None:
    url, _ = object_store(tmp_path)
    loop = asyncio.get_running_loop()
    async with (
        run_service("training", TrainingSettings, wire, object_store_url=url) as running,
        playing(run_service) as world,
        channel(running.address) as own,
    ):
        stub = worker_pb2_grpc.WorkerServiceStub(own)
        account_id, editor = await world.account(rounds * WORKERS * HOLD_MICROS)
        chance = random.Random(1)

        async def leased(name: str) -> ScriptedWorker:
            await world.create(world.form(account_id, name), editor)
            worker = ScriptedWorker.of(running.channel, tokens)
            assert await worker.take()
            return worker

        async def reached_s(task_id: str, heart: Heart) -> float:
            await asyncio.sleep(chance.uniform(0, 3))
            request = task_pb2.StopTaskRequest(request_id=new_id(), task_id=task_id)
            asked_s = loop.time()
            await world.tasks.StopTask(request, metadata=editor)
            await heart.stopped.wait()
            assert heart.stop_reason == training_pb2.END_REASON_STOPPED_BY_USER
            return loop.time() - asked_s

        taken_s: list[float] = []
        for number in range(rounds):
            workers = [await leased(f"t{number}-{place}") for place in range(WORKERS)]
            hearts = {
                worker.lease.run.task_id: Heart(stub, TokenFile(tokens.file(Role.WORKER)), worker.lease)
                for worker in workers
            }
            beating = [asyncio.ensure_future(heart.beat()) for heart in hearts.values()]
            await asyncio.gather(*(heart.accepted.wait() for heart in hearts.values()))
            taken_s += await asyncio.gather(*(reached_s(*of_task) for of_task in hearts.items()))
            for task in beating:
                task.cancel()
            await asyncio.gather(*beating, return_exceptions=True)
            # Else they would be lost, and leased again in a later round.
            for worker in workers:
                await worker.finish(training_pb2.END_REASON_STOPPED_BY_USER)
        print(f"p99 {percentile(taken_s, 0.99):.3f} s, median {percentile(taken_s, 0.5):.3f} s of {len(taken_s)}")
        assert percentile(taken_s, 0.99) <= STOP_REACHES_S
