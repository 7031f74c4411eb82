"""The real worker with its real child, against the real training service, on a tiny data set."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from saucer.lib.auth import Role
from saucer.lib.objects import Objects
from saucer.lib.stream import STREAM
from saucer.serving.detections import Detections
from saucer.serving.detector import Detector
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2, training_pb2_grpc
from saucer.worker.transfer import FILE_NAMES
from tests.support.events import publish, read_events, until
from tests.support.services import Running, ServiceRunner, Tokens
from tests.support.shapes import ShapesData, write_shapes
from tests.support.training import REGION, SPEC, Start, object_store, store_shapes

TEST_IMAGES = 6


@dataclass
class Stack:
    running: Running
    stub: training_pb2_grpc.TrainingServiceAsyncStub
    objects: Objects
    object_store_url: str
    tokens: Tokens
    folder: Path
    # A start on the data set.
    start: Start

    @property
    def account_id(self) -> str:
        return self.start.account_id

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return self.tokens.metadata(Role.VIEWER, self.account_id)

    async def run(self, run_id: str) -> training_pb2.Run:
        return await self.stub.GetRun(training_pb2.GetRunRequest(run_id=run_id), metadata=self.metadata)

    @contextlib.asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
        settings = {
            "SAUCER_TRAINING_ADDRESS": self.running.address,
            "SAUCER_OBJECT_STORE_URL": self.object_store_url,
            "SAUCER_TOKEN_FILE": str(self.tokens.file(Role.WORKER)),
            "SAUCER_REGION_ID": REGION,
            "SAUCER_SPEC_ID": SPEC,
            "SAUCER_WORKER_ID": name,
            "SAUCER_WORK_FOLDER": str(self.folder / name),
            "SAUCER_LOG_FORMAT": "text",
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SAUCER_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "saucer.worker.main", env=environment | settings
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> ShapesData:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=24, validation=6, test=TEST_IMAGES)


@pytest.fixture
async def stack(run_service: ServiceRunner, tokens: Tokens, tmp_path: Path, shapes: ShapesData) -> AsyncIterator[Stack]:
    url, objects = object_store(tmp_path)
    async with run_service("training", TrainingSettings, wire, object_store_url=url) as running:
        start = await store_shapes(objects, shapes)
        stub = training_pb2_grpc.TrainingServiceStub(running.channel)
        yield Stack(running, stub, objects, url, tokens, tmp_path, start)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> bool:
    return not lives(pid)


async def test_a_run_survives_a_killed_and_a_stopped_worker_and_ends_by_its_users_stop(
    stack: Stack, jetstream: JetStreamContext
) -> None:
    start = replace(stack.start, epochs=20, batch_size=2, input_size=96)

    async def reached(attempt: int, iteration: int) -> training_pb2.Run:
        async def there() -> training_pb2.Run | None:
            run = await stack.run(start.run_id)
            assert run.state != training_pb2.RUN_STATE_ENDED, run
            return run if (run.attempt, run.iteration) >= (attempt, iteration) else None

        return await until(there, timeout_s=150)

    async def ended() -> training_pb2.Run | None:
        run = await stack.run(start.run_id)
        return run if run.state == training_pb2.RUN_STATE_ENDED else None

    async with contextlib.AsyncExitStack() as workers:
        first = await workers.enter_async_context(stack.worker("first"))
        await publish(jetstream, start.queued())
        (queued,) = await read_events(jetstream, "saucer.training.v1.RunQueued.>", count=1)
        assert queued.subject.endswith(start.run_id)
        await reached(1, 1)
        second = await workers.enter_async_context(stack.worker("second"))
        charged_first_ms = (await reached(1, 53)).charged_ms

        (child,) = children_of(first.pid)
        killed_s = time.monotonic()
        first.kill()
        await first.wait()
        await until(lambda: gone(child), timeout_s=10)
        resumed = await reached(2, 51)
        gap_s = time.monotonic() - killed_s
        assert gap_s > 9
        assert resumed.charged_ms - charged_first_ms < (gap_s - 8) * 1000, "the gap was charged"

        # Only now: of two workers that wait, either may lease the run.
        third = await workers.enter_async_context(stack.worker("third"))
        await reached(2, 56)
        second.terminate()
        assert await asyncio.wait_for(second.wait(), 60) == 0
        await reached(3, 57)
        await publish(jetstream, start.stop_requested())
        run = await until(ended, timeout_s=60)
        third.terminate()
        assert await asyncio.wait_for(third.wait(), 60) == 0

    assert (run.attempt, run.end_reason) == (3, training_pb2.END_REASON_STOPPED_BY_USER)
    assert 0 < run.charged_ms < (run.end_time.ToMilliseconds() - run.start_time.ToMilliseconds()) - 9_000
    assert not list((stack.folder / "third" / "runs").iterdir())
    await check_model(stack, run)
    await check_progress_told(stack, run)
    subject = f"saucer.training.v1.*.{stack.account_id}.>"
    await read_events(jetstream, "saucer.training.v1.RunEnded.>", count=1)
    counts = (await jetstream.stream_info(STREAM, subjects_filter=subject)).state.subjects
    told = await read_events(jetstream, subject, count=sum((counts or {}).values()))
    names = [event.type.rpartition(".")[2] for event in told]
    assert names[:2] == ["RunQueued", "RunStarted"]
    assert (names.count("RunInterrupted"), names[-1]) == (2, "RunEnded")
    revisions = [json.loads(event.data)["run"]["revision"] for event in told]
    assert [int(revision) for revision in revisions] == sorted({int(revision) for revision in revisions})


async def check_model(stack: Stack, run: training_pb2.Run) -> None:
    """Whole, and able to detect."""
    request = training_pb2.GetModelRequest(model_id=run.model_id)
    model = await stack.stub.GetModel(request, metadata=stack.metadata)
    assert {file.name for file in model.files} == set(FILE_NAMES.values())
    folder = stack.folder / "model"
    folder.mkdir()
    for file in model.files:
        await stack.objects.download(file.key, folder / file.name, sha256=file.sha256)
    detector = Detector.load(folder, 1)
    assert list(detector.spec.classes) == ["disc", "bar"]
    assert len(Detections.from_bytes((folder / "detections_test.npz").read_bytes()).images) == TEST_IMAGES


async def check_progress_told(stack: Stack, run: training_pb2.Run) -> None:
    """Metrics rise without repetition through all attempts; the log tells of each; superseded checkpoints are gone."""
    metrics = await stack.stub.ListMetrics(
        training_pb2.ListMetricsRequest(run_id=run.run_id, page_size=5000), metadata=stack.metadata
    )
    iterations = [point.iteration for point in metrics.points if "loss" in point.values]
    assert iterations == sorted(set(iterations))
    assert iterations[-1] >= 55
    log = await stack.stub.ListLogLines(
        training_pb2.ListLogLinesRequest(run_id=run.run_id, keywords=["attempt"], page_size=5000),
        metadata=stack.metadata,
    )
    texts = [line.text for line in log.lines]
    for attempt in (1, 2, 3):
        assert any(text.startswith(f"Attempt {attempt} begins") for text in texts), texts
    prefix = f"system/{stack.account_id}/runs/{run.run_id}"
    keys = [key for key in await stack.objects.keys(prefix) if key.endswith(".pth") and "/checkpoints/" in key]
    assert 1 <= len(keys) <= 3, "one of each attempt at most"
