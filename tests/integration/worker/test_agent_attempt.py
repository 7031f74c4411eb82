"""How attempts end that never get as far as their child, against the real training service."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.lib.auth import Role
from saucer.lib.grpc_client import TokenFile
from saucer.lib.objects import Objects, sha256_of
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2, training_pb2_grpc, worker_pb2_grpc
from saucer.worker import catalogue
from saucer.worker.attempt import RETRY_S, Attempt
from saucer.worker.catalogue import Pretrained
from saucer.worker.child_process import ChildGoneError, ChildProcess
from saucer.worker.heart import BATCH_LINES, BEAT_S, LeaseLostError
from saucer.worker.job import (
    Checkpoint,
    EndReason,
    Failure,
    FailureKind,
    Log,
    Message,
    Metrics,
    Order,
    Progress,
    Result,
    StartingPoint,
    TrainJob,
)
from saucer.worker.transfer import ImageCache
from tests.support.events import publish
from tests.support.services import Metadata, Running, ServiceRunner, Tokens
from tests.support.shapes import write_shapes
from tests.support.training import ScriptedWorker, Start, object_store, store_shapes


async def no_child(processes: int) -> ChildProcess:
    raise ChildGoneError("The training process was ended by SIGKILL.")


@dataclass
class Bench:
    running: Running
    tokens: Tokens
    objects: Objects
    folder: Path
    jetstream: JetStreamContext
    child: Callable[[int], Awaitable[ChildProcess]] = no_child
    catalogue_url: str = catalogue.ZOO_URL

    async def attempt(self, start: Start) -> Attempt:
        """The next of this start, queued here if it is the first."""
        await publish(self.jetstream, start.queued())
        worker = ScriptedWorker.of(self.running.channel, self.tokens)
        assert await worker.take()
        assert worker.lease.run.run_id == start.run_id
        return Attempt(
            worker.lease,
            stub=worker_pb2_grpc.WorkerServiceStub(self.running.channel),
            token=TokenFile(self.tokens.file(Role.WORKER)),
            objects=self.objects,
            cache=ImageCache(self.folder / "images", self.objects, 1_000_000),
            workdir=self.folder,
            child=self.child,
            threads=1,
            catalogue_url=self.catalogue_url,
        )

    @property
    def stub(self) -> training_pb2_grpc.TrainingServiceAsyncStub:
        return training_pb2_grpc.TrainingServiceStub(self.running.channel)

    def viewer(self, start: Start) -> Metadata:
        return self.tokens.metadata(Role.VIEWER, start.account_id)

    async def run(self, start: Start) -> training_pb2.Run:
        request = training_pb2.GetRunRequest(run_id=start.run_id)
        return await self.stub.GetRun(request, metadata=self.viewer(start))

    async def log(self, start: Start) -> list[str]:
        request = training_pb2.ListLogLinesRequest(run_id=start.run_id, page_size=5000)
        return [line.text for line in (await self.stub.ListLogLines(request, metadata=self.viewer(start))).lines]

    async def measured(self, start: Start) -> list[int]:
        request = training_pb2.ListMetricsRequest(run_id=start.run_id, page_size=5000)
        return [point.iteration for point in (await self.stub.ListMetrics(request, metadata=self.viewer(start))).points]


@pytest.fixture
async def bench(
    run_service: ServiceRunner, tokens: Tokens, tmp_path: Path, jetstream: JetStreamContext
) -> AsyncIterator[Bench]:
    url, objects = object_store(tmp_path)
    async with run_service("training", TrainingSettings, wire, object_store_url=url) as running:
        yield Bench(running, tokens, objects, tmp_path, jetstream)


async def shapes(bench: Bench, *, train: int) -> Start:
    return await store_shapes(bench.objects, write_shapes(bench.folder / "data", train=train, validation=1, test=1))


async def test_data_without_a_training_image_is_the_users_to_mend(bench: Bench) -> None:
    start = await shapes(bench, train=0)
    assert await (await bench.attempt(start)).go() == "failed"
    run = await bench.run(start)
    assert (run.state, run.end_reason) == (training_pb2.RUN_STATE_ENDED, training_pb2.END_REASON_FAILED)
    assert "training split has no images" in run.error_message


@pytest.mark.parametrize(("changed", "named"), [({"input_size": 100}, "input_size"), ({"epochs": 0}, "epochs")])
async def test_settings_that_cannot_be_trained_with_are_named(
    bench: Bench, changed: dict[str, int], named: str
) -> None:
    start = replace(await shapes(bench, train=1), **changed)  # type: ignore[arg-type]  # fields of Start
    await (await bench.attempt(start)).go()
    run = await bench.run(start)
    assert run.state == training_pb2.RUN_STATE_ENDED
    assert named in run.error_message


@pytest.mark.parametrize("data_is_there", [True, False])
async def test_a_lost_child_or_missing_data_costs_an_attempt_and_the_run_is_queued_again(
    bench: Bench, data_is_there: bool
) -> None:
    start = await shapes(bench, train=1) if data_is_there else Start()
    assert await (await bench.attempt(start)).go() == "failed"
    run = await bench.run(start)
    assert (run.state, run.attempt) == (training_pb2.RUN_STATE_QUEUED, 1)
    assert run.error_message


class FailingChild:
    """That saves a checkpoint, and then finds that the user's settings cannot be trained with."""

    def __init__(self, checkpoint: Path) -> None:
        checkpoint.write_bytes(b"learnt")
        message = "The loss became nan at iteration 11."
        self.job: object = None
        self._reports: list[Message] = [Checkpoint(str(checkpoint), 10, 1_000), Failure(FailureKind.USER, message)]

    async def send(self, order: Order) -> None:
        self.job = self.job or order

    async def next(self) -> Message:
        return self._reports.pop(0)


async def test_after_a_users_error_the_next_attempt_only_finishes_the_checkpoint_that_was_on_its_way(
    bench: Bench,
) -> None:
    start = await shapes(bench, train=1)
    children = [FailingChild(bench.folder / "checkpoint.pth") for _ in range(2)]
    given = iter(children)

    async def child(processes: int) -> ChildProcess:
        return next(given)  # type: ignore[return-value]  # stands in for one

    bench.child = child
    assert await (await bench.attempt(start)).go() == "failed"
    run = await bench.run(start)
    assert (run.state, run.error_message) == (training_pb2.RUN_STATE_QUEUED, "The loss became nan at iteration 11.")
    assert await (await bench.attempt(start)).go() == "failed"
    jobs = [child.job for child in children]
    assert [isinstance(job, TrainJob) and job.finish_only for job in jobs] == [False, True]
    run = await bench.run(start)
    assert (run.state, run.end_reason, run.model_id) == (
        training_pb2.RUN_STATE_ENDED,
        training_pb2.END_REASON_FAILED,
        "",
    )


class ReportingChild:
    """That gives reports, whatever it is told."""

    def __init__(self, *reports: Message) -> None:
        self._reports = list(reports)

    async def send(self, order: Order) -> None:
        pass

    async def next(self) -> Message:
        return self._reports.pop(0)

    async def given(self, processes: int) -> ChildProcess:
        return self  # type: ignore[return-value]  # stands in for one


def result(folder: Path) -> Result:
    """Of a training that left the least that is a model."""
    files = {"onnx": folder / "result.onnx", "model": folder / "result.json"}
    for file in files.values():
        file.write_bytes(b"model")
    return Result(EndReason.COMPLETED, {kind: str(file) for kind, file in files.items()}, 10, 1_000)


async def test_a_run_whose_copies_take_longer_than_a_heartbeat_has_succeeded_for_its_worker_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Objects.copy

    async def slow(objects: Objects, source: str, target: str) -> None:
        await asyncio.sleep(2 * BEAT_S)  # by then the run has ended and a heartbeat was refused
        await copy(objects, source, target)

    monkeypatch.setattr(Objects, "copy", slow)
    start = await shapes(bench, train=1)
    bench.child = ReportingChild(result(bench.folder)).given
    assert await (await bench.attempt(start)).go() == "completed"
    copies = await bench.objects.keys(f"{start.output_prefix}/{start.task_id}")
    assert sorted(key.rpartition("/")[2] for key in copies) == ["model.json", "model.onnx"]


async def test_the_last_lines_and_metrics_of_a_failed_attempt_are_in_its_log(bench: Bench) -> None:
    start = await shapes(bench, train=1)
    warnings = [Log("WARNING", time.time(), f"warning {number}") for number in range(BATCH_LINES)]
    failure = Failure(FailureKind.USER, "The loss became nan at iteration 11.")
    bench.child = ReportingChild(*warnings, Metrics(11, 1.0, {"loss": 1e9}), failure).given
    assert await (await bench.attempt(start)).go() == "failed"
    assert await bench.measured(start) == [11]
    logged = await bench.log(start)
    assert [text for text in logged if text.startswith("warning")] == [line.text for line in warnings]
    assert failure.message in logged


@pytest.mark.parametrize("count", [1, 2])
async def test_a_run_of_several_gpus_asks_for_as_many_processes(bench: Bench, count: int) -> None:
    asked: list[int] = []

    async def child(processes: int) -> ChildProcess:
        asked.append(processes)
        return await no_child(processes)

    bench.child = child
    assert await (await bench.attempt(replace(await shapes(bench, train=1), count=count))).go() == "failed"
    assert asked == [count]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A model zoo that has one small file, and does not answer until it is told to."""
    key = f"weights-{sha256_of(b'weights')[:8]}.pth"
    monkeypatch.setattr(catalogue, "PRETRAINED", {StartingPoint.RTMDET_TINY_COCO: Pretrained(key)})
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / key).write_bytes(b"weights")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False) as server:
        server.server_bind()
        yield server
        if server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            server.shutdown()


def answer(mirror: ThreadingHTTPServer) -> None:
    mirror.server_activate()
    Thread(target=mirror.serve_forever, daemon=True).start()


async def pretrained(bench: Bench, mirror: ThreadingHTTPServer) -> Start:
    bench.catalogue_url = f"http://127.0.0.1:{mirror.server_port}"
    return replace(await shapes(bench, train=1), starting_point=StartingPoint.RTMDET_TINY_COCO)


async def test_weights_whose_mirror_does_not_answer_are_fetched_when_it_does(
    bench: Bench, mirror: ThreadingHTTPServer
) -> None:
    asked: list[int] = []

    async def child(processes: int) -> ChildProcess:
        asked.append(processes)
        return await no_child(processes)

    bench.child = child
    going = asyncio.ensure_future((await bench.attempt(await pretrained(bench, mirror))).go())
    await asyncio.sleep(2 * RETRY_S)
    assert not going.done()
    answer(mirror)
    assert await going == "failed"
    assert asked, "the weights were there"


async def test_a_mirror_that_stays_silent_costs_an_attempt_and_is_not_the_users_fault(
    bench: Bench, mirror: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saucer.worker.attempt.MIRROR_PATIENCE_S", 1.0)
    start = await pretrained(bench, mirror)
    assert await (await bench.attempt(start)).go() == "failed"
    run = await bench.run(start)
    assert (run.state, run.attempt) == (training_pb2.RUN_STATE_QUEUED, 1)
    assert "Choose the starting point" in run.error_message


async def test_weights_that_the_mirror_does_not_have_end_the_run_and_say_what_to_choose(
    bench: Bench, mirror: ThreadingHTTPServer, tmp_path: Path
) -> None:
    start = await pretrained(bench, mirror)
    for file in (tmp_path / "mirror").iterdir():
        file.unlink()
    answer(mirror)
    assert await (await bench.attempt(start)).go() == "failed"
    run = await bench.run(start)
    assert run.state == training_pb2.RUN_STATE_ENDED
    assert "Choose the starting point" in run.error_message


async def test_weights_of_a_model_that_is_gone_end_the_run_and_say_what_to_do(bench: Bench) -> None:
    start = await shapes(bench, train=1)
    start = replace(start, weights_key=f"system/{start.account_id}/runs/gone/attempt-1/weights.pth")
    assert await (await bench.attempt(start)).go() == "failed"
    run = await bench.run(start)
    assert (run.state, run.end_reason) == (training_pb2.RUN_STATE_ENDED, training_pb2.END_REASON_FAILED)
    assert "Create a task with another model" in run.error_message
    assert start.weights_key not in run.error_message


async def test_a_stop_before_the_child_has_the_job_ends_the_run_without_a_model(bench: Bench) -> None:
    start = await shapes(bench, train=1)
    attempt = await bench.attempt(start)
    await publish(bench.jetstream, start.stop_requested())
    await wait_for_stop(bench, start)
    assert await attempt.go() == "stopped_by_user"
    run = await bench.run(start)
    assert (run.end_reason, run.model_id) == (training_pb2.END_REASON_STOPPED_BY_USER, "")


async def test_a_worker_that_stops_gives_the_run_back_at_once(bench: Bench) -> None:
    start = await shapes(bench, train=1)
    attempt = await bench.attempt(start)
    attempt.release()
    assert await attempt.go() == "released"
    assert (await bench.run(start)).state == training_pb2.RUN_STATE_QUEUED


async def test_the_childs_progress_in_a_validation_is_in_the_next_heartbeat(bench: Bench) -> None:
    attempt = await bench.attempt(await shapes(bench, train=1))
    attempt._take(Progress(30, 100, 3, 10, 1_000, validated=0.25))
    request = attempt._heart._request()
    assert (request.iteration, request.validated) == (30, 0.25)


async def test_a_lease_that_is_gone_ends_the_attempt_and_tells_nothing(bench: Bench) -> None:
    start = await shapes(bench, train=1)
    attempt = await bench.attempt(start)
    thief = ScriptedWorker.of(bench.running.channel, bench.tokens)
    thief.lease = attempt._lease
    await thief.finish(training_pb2.END_REASON_FAILED, released=True)
    with pytest.raises(LeaseLostError):
        await attempt.go()


async def wait_for_stop(bench: Bench, start: Start) -> None:
    """Until the service has consumed the stop: what was published after it is there."""
    marker = Start()
    await publish(bench.jetstream, marker.queued())
    while True:
        try:
            await bench.run(marker)
        except grpc.aio.AioRpcError:
            continue
        return
