"""The training service as it runs: gRPC and events, real PostgreSQL and NATS, a scripted worker."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib.auth import Role
from saucer.lib.clock import from_timestamp
from saucer.lib.cloudevent import from_json
from saucer.lib.grpc_client import from_rpc
from saucer.lib.objects import Objects, sha256_of
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2, training_pb2_grpc, worker_pb2
from tests.support.events import event, publish, read_events, until, with_later_reason
from tests.support.services import Running, ServiceRunner, Tokens
from tests.support.training import REGION, SPEC, ScriptedWorker, Start, object_store, refusal

EXPORTING = training_pb2.RUN_STAGE_EXPORTING


class Client:
    """Calls the service as a user of one account, and as workers."""

    def __init__(self, running: Running, tokens: Tokens, objects: Objects) -> None:
        self.running = running
        self.tokens = tokens
        self.objects = objects
        self.stub = training_pb2_grpc.TrainingServiceStub(running.channel)

    def viewer(self, account_id: str) -> tuple[tuple[str, str], ...]:
        return self.tokens.metadata(Role.VIEWER, account_id)

    def worker(self, name: str = "scripted") -> ScriptedWorker:
        return ScriptedWorker.of(self.running.channel, self.tokens, name)

    async def run(self, start: Start) -> training_pb2.Run:
        request = training_pb2.GetRunRequest(run_id=start.run_id)
        return await self.stub.GetRun(request, metadata=self.viewer(start.account_id))

    async def find_run(self, start: Start) -> training_pb2.Run | None:
        try:
            return await self.run(start)
        except grpc.aio.AioRpcError:
            return None

    async def lines(self, start: Start, **search: object) -> list[str]:
        """Texts of every page, two lines a page."""
        found: list[str] = []
        token = ""
        while True:
            request = training_pb2.ListLogLinesRequest(run_id=start.run_id, page_size=2, page_token=token, **search)  # type: ignore[arg-type]
            response = await self.stub.ListLogLines(request, metadata=self.viewer(start.account_id))
            found += [line.text for line in response.lines]
            token = response.next_page_token
            if not token:
                return found


@pytest.fixture
async def client(run_service: ServiceRunner, tokens: Tokens, tmp_path: Path) -> AsyncIterator[Client]:
    url, objects = object_store(tmp_path)
    async with run_service("training", TrainingSettings, wire, object_store_url=url) as running:
        yield Client(running, tokens, objects)


def log_report(text: str, level: training_pb2.LogLevel.ValueType, at_s: int) -> worker_pb2.LogReport:
    report = worker_pb2.LogReport(text=text, level=level)
    report.time.FromSeconds(at_s)
    return report


def metric_report(iteration: int, **values: float) -> worker_pb2.MetricReport:
    report = worker_pb2.MetricReport(iteration=iteration, epoch=iteration / 10, values=values)
    report.time.GetCurrentTime()
    return report


async def test_a_waiting_worker_gets_a_new_run_at_once(client: Client, jetstream: JetStreamContext) -> None:
    worker, start = client.worker(), Start()
    waiting = asyncio.ensure_future(worker.take(wait_s=30))
    assert not await client.worker().take(wait_s=0)
    published_s = time.monotonic()
    await publish(jetstream, start.queued())
    assert await waiting
    assert time.monotonic() - published_s < 5
    assert worker.lease.run.run_id == start.run_id
    assert worker.lease.run.config.manifest_key == start.manifest_key
    assert worker.lease.lease_length.ToMilliseconds() == 10_000
    assert worker.lease.artifact_prefix == f"system/{start.account_id}/runs/{start.run_id}/attempt-1"


async def test_billings_word_of_an_account_limits_its_runs_at_work(client: Client, jetstream: JetStreamContext) -> None:
    first, second = Start(), Start()
    quotas = billing_pb2.AccountQuotas(account_id=first.account_id, weight=1, running=0, revision=1)
    told = event(
        billing_events.AccountQuotasChanged(quotas=quotas), "billing", first.account_id, None, first.account_id
    )
    await publish(jetstream, told)
    await publish(jetstream, first.queued())
    await publish(jetstream, second.queued())
    worker = client.worker()
    assert await worker.take()
    assert worker.lease.run.run_id == second.run_id, "the first waits longer, and may not run"
    assert not await client.worker().take(wait_s=0)


async def test_a_worker_of_another_spec_gets_nothing(client: Client, jetstream: JetStreamContext) -> None:
    start = Start()
    await publish(jetstream, start.queued())
    await until(lambda: client.find_run(start))
    assert not await client.worker().take(wait_s=0, spec_id="gpu-8")


async def test_a_run_from_event_to_model(client: Client, jetstream: JetStreamContext) -> None:
    start, worker = Start(), client.worker()
    await publish(jetstream, start.queued())
    assert await worker.take()
    viewer = client.viewer(start.account_id)
    points = collect(client.stub.StreamMetrics(training_pb2.StreamMetricsRequest(run_id=start.run_id), metadata=viewer))
    lines = collect(
        client.stub.StreamLogLines(
            training_pb2.StreamLogLinesRequest(run_id=start.run_id, after_sequence=1), metadata=viewer
        )
    )
    await worker.beat(
        iteration=5, log=[log_report(f"line {number}", training_pb2.LOG_LEVEL_INFO, number) for number in range(3)]
    )
    await worker.beat(iteration=10, metrics=[metric_report(5, loss=2.5), metric_report(10, loss=1.25, map_50=0.5)])
    await worker.beat(EXPORTING, iteration=10, checkpoint=worker.checkpoint(10))
    run = await worker.finish(files=await worker.put_files(client.objects), best_map_50=0.5)
    assert run.state == training_pb2.RUN_STATE_ENDED
    assert run.best_map_50 == 0.5

    assert [(point.sequence, point.iteration, dict(point.values)) for point in await points] == [
        (1, 5, {"loss": 2.5}),
        (2, 10, {"loss": 1.25, "map_50": 0.5}),
    ]
    assert [line.text for line in await lines] == ["line 1", "line 2"]

    model = await client.stub.GetModel(training_pb2.GetModelRequest(model_id=run.model_id), metadata=viewer)
    assert (model.run_id, model.validation_map_50, list(model.classes)) == (start.run_id, 0.5, ["disc", "bar"])
    listed = await client.stub.ListModels(training_pb2.ListModelsRequest(task_id=start.task_id), metadata=viewer)
    assert list(listed.models) == [model]
    runs = await client.stub.ListRuns(training_pb2.ListRunsRequest(), metadata=viewer)
    assert list(runs.runs) == [run]
    for file in model.files:
        chunks = await collect(
            client.stub.DownloadModelFile(
                training_pb2.DownloadModelFileRequest(model_id=model.model_id, name=file.name), metadata=viewer
            )
        )
        content = b"".join(chunk.data for chunk in chunks)
        assert sha256_of(content) == file.sha256
        copied = f"{start.output_prefix}/{start.task_id}/{model.model_id}/{file.name}"
        assert await client.objects.get(copied) == content

    told = await read_events(jetstream, f"saucer.training.v1.*.{start.account_id}.{start.task_id}.>", count=4)
    names = [found.type.rpartition(".")[2] for found in told]
    assert names == ["RunQueued", "RunStarted", "RunProgressed", "RunEnded"]
    ended = from_json(told[-1].data, training_events.RunEnded())
    assert (ended.run, ended.model) == (run, model)


async def collect(stream: object) -> list:  # type: ignore[type-arg]
    async def read() -> list:  # type: ignore[type-arg]
        return [message async for message in stream]  # type: ignore[attr-defined]

    return await asyncio.wait_for(read(), 30)


async def test_a_damaged_file_is_not_passed_off_as_whole(client: Client, jetstream: JetStreamContext) -> None:
    start, worker = Start(), client.worker()
    await publish(jetstream, start.queued())
    assert await worker.take()
    await worker.beat()
    files = await worker.put_files(client.objects)
    run = await worker.finish(files=files)
    await client.objects.put(files[0].key, b"something else")
    request = training_pb2.DownloadModelFileRequest(model_id=run.model_id, name=files[0].name)
    with pytest.raises(grpc.aio.AioRpcError) as damage:
        await collect(client.stub.DownloadModelFile(request, metadata=client.viewer(start.account_id)))
    assert damage.value.code() is grpc.StatusCode.DATA_LOSS


async def test_the_log_is_searched_by_words_level_and_time_in_both_orders_and_paged(
    client: Client, jetstream: JetStreamContext
) -> None:
    start, worker = Start(), client.worker()
    await publish(jetstream, start.queued())
    assert await worker.take()
    texts = ["Epoch 1 loss 3.2", "WARN: loss is 100% off", "epoch 2 Loss 1.1", "snake_case", "epoch 3"]
    info, warning = training_pb2.LOG_LEVEL_INFO, training_pb2.LOG_LEVEL_WARNING
    levels: list[training_pb2.LogLevel.ValueType] = [
        info,
        warning,
        info,
        training_pb2.LOG_LEVEL_DEBUG,
        training_pb2.LOG_LEVEL_ERROR,
    ]
    await worker.beat(log=[log_report(text, levels[number], 1000 + number) for number, text in enumerate(texts)])
    assert await client.lines(start) == texts
    assert await client.lines(start, newest_first=True) == texts[::-1]
    assert await client.lines(start, keywords=["LOSS", "epoch"]) == [texts[0], texts[2]]
    assert await client.lines(start, keywords=["loss", "epoch"], newest_first=True) == [texts[2], texts[0]]
    assert await client.lines(start, keywords=["100%"]) == [texts[1]]
    assert await client.lines(start, keywords=["e_c"]) == [texts[3]]
    assert await client.lines(start, min_level=training_pb2.LOG_LEVEL_WARNING) == [texts[1], texts[4]]
    begin, end = log_report("", info, 1001).time, log_report("", info, 1003).time
    assert await client.lines(start, start_time=begin, end_time=end) == texts[1:3]

    async def exported(log_format: training_pb2.LogFormat.ValueType) -> str:
        request = training_pb2.ExportLogRequest(run_id=start.run_id, keywords=["epoch"], format=log_format)
        call = client.stub.ExportLog(request, metadata=client.viewer(start.account_id))
        return b"".join([piece.data async for piece in call]).decode()

    assert await exported(training_pb2.LOG_FORMAT_TEXT) == (
        "1970-01-01T00:16:40.000+00:00 INFO [1] Epoch 1 loss 3.2\n"
        "1970-01-01T00:16:42.000+00:00 INFO [1] epoch 2 Loss 1.1\n"
        "1970-01-01T00:16:44.000+00:00 ERROR [1] epoch 3\n"
    )
    objects = [json.loads(line) for line in (await exported(training_pb2.LOG_FORMAT_JSON)).splitlines()]
    assert [(line["text"], line["sequence"]) for line in objects] == [(texts[0], "1"), (texts[2], "3"), (texts[4], "5")]


async def test_an_account_has_only_so_many_streams_open_and_another_is_not_hindered(
    client: Client, jetstream: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saucer.lib.grpc_server.MAX_STREAMS_OF_ACCOUNT", 2)
    starts = [Start(), Start()]
    workers = [client.worker(), client.worker()]
    for start, worker in zip(starts, workers, strict=True):
        await publish(jetstream, start.queued())
        assert await worker.take()
        await worker.beat(log=[log_report("line", training_pb2.LOG_LEVEL_INFO, 1000)])

    async def follow(
        start: Start,
    ) -> grpc.aio.UnaryStreamCall[training_pb2.StreamLogLinesRequest, training_pb2.LogLine]:
        request = training_pb2.StreamLogLinesRequest(run_id=start.run_id)
        call = client.stub.StreamLogLines(request, metadata=client.viewer(start.account_id))
        async for line in call:
            assert line.text == "line"
            break
        return call

    first = [await follow(starts[0]) for _ in range(2)]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await follow(starts[0])
    assert from_rpc(refused.value).reason == "TOO_MANY_STREAMS"
    await follow(starts[1])
    first[0].cancel()

    async def again() -> bool:
        try:
            await follow(starts[0])
        except grpc.aio.AioRpcError:
            return False
        return True

    await until(again)


async def test_workers_are_listed_and_drained_by_an_administrator(client: Client, jetstream: JetStreamContext) -> None:
    metadata = client.tokens.metadata(Role.ADMINISTRATOR)
    start = Start()
    await publish(jetstream, start.queued())
    worker = client.worker("one")
    assert await worker.take()
    await worker.beat()
    await client.stub.DrainWorker(training_pb2.DrainWorkerRequest(worker_id="one"), metadata=metadata)
    (listed,) = (await client.stub.ListWorkers(training_pb2.ListWorkersRequest(), metadata=metadata)).workers
    assert (listed.worker_id, listed.run_id) == ("one", start.run_id)
    assert listed.state == training_pb2.WORKER_STATE_DRAINING
    (queue,) = (await client.stub.ListQueues(training_pb2.ListQueuesRequest(), metadata=metadata)).queues
    assert (queue.region_id, queue.spec_id, queue.at_work, queue.workers) == (REGION, SPEC, 1, 0)
    resumed = await client.stub.ResumeWorker(training_pb2.ResumeWorkerRequest(worker_id="one"), metadata=metadata)
    assert resumed.state == training_pb2.WORKER_STATE_WORKING


async def test_a_users_stop_and_billings_order_reach_the_worker(client: Client, jetstream: JetStreamContext) -> None:
    for make, reason in (
        (Start.stop_requested, training_pb2.END_REASON_STOPPED_BY_USER),
        (Start.stop_ordered, training_pb2.END_REASON_ARREARS),
    ):
        start, worker = Start(), client.worker()
        await publish(jetstream, start.queued())
        assert await worker.take()
        assert not (await worker.beat()).HasField("finish_within")
        await publish(jetstream, make(start))

        async def told(worker: ScriptedWorker = worker) -> worker_pb2.HeartbeatResponse | None:
            answer = await worker.beat()
            return answer if answer.stop_reason else None

        answer = await until(told)
        assert answer.stop_reason == reason
        assert 0 < answer.finish_within.ToSeconds() <= 1200
        run = await worker.finish(reason, await worker.put_files(client.objects))
        assert (run.end_reason, bool(run.model_id)) == (reason, True)


async def test_a_stop_that_comes_before_the_run_is_not_lost(client: Client, jetstream: JetStreamContext) -> None:
    start = Start()
    await publish(jetstream, start.stop_requested())
    await publish(jetstream, start.queued())
    run = await until(lambda: client.find_run(start))
    assert (run.state, run.end_reason, run.charged_ms) == (
        training_pb2.RUN_STATE_ENDED,
        training_pb2.END_REASON_STOPPED_BY_USER,
        0,
    )
    assert from_timestamp(run.end_time) >= from_timestamp(run.create_time)


async def test_an_order_for_a_reason_of_a_later_billing_stops_the_run_as_well(
    client: Client, jetstream: JetStreamContext
) -> None:
    start = Start()
    await publish(jetstream, with_later_reason(start.stop_ordered()))
    await publish(jetstream, start.queued())
    (ended,) = await read_events(jetstream, f"saucer.training.v1.RunEnded.{start.account_id}.>", count=1)
    run = from_json(ended.data, training_events.RunEnded()).run
    assert run.end_reason == training_pb2.END_REASON_ARREARS


async def test_an_output_prefix_of_another_account_is_refused(client: Client, jetstream: JetStreamContext) -> None:
    class Evil(Start):
        output_prefix = f"accounts/{Start().account_id}/outputs"

    good, evil = Start(), Evil()
    await publish(jetstream, evil.queued())
    await publish(jetstream, good.queued())
    await until(lambda: client.find_run(good))
    assert await client.find_run(evil) is None


async def test_a_heartbeat_is_refused_without_its_token_and_outside_its_prefix(
    client: Client, jetstream: JetStreamContext
) -> None:
    start, worker = Start(), client.worker()
    await publish(jetstream, start.queued())
    assert await worker.take()
    checkpoint = worker.checkpoint(1)
    checkpoint.key = f"accounts/{start.account_id}/mine.pth"
    assert (await refusal(worker.beat(checkpoint=checkpoint))).reason == "KEY_OUTSIDE_ATTEMPT"
    assert (await refusal(worker.beat(training_pb2.RUN_STAGE_QUEUED))).reason == "FIELD_INVALID"
    worker.lease.token = "x"
    error = await refusal(worker.beat())
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "LEASE_LOST")


async def test_a_part_of_a_validation_is_progress_and_is_passed_again_before_it_is_charged(
    client: Client, jetstream: JetStreamContext
) -> None:
    start, worker = Start(), client.worker()
    await publish(jetstream, start.queued())
    assert await worker.take()
    await worker.beat(iteration=5, validated=0.5, checkpoint=worker.checkpoint(5))
    await worker.finish(training_pb2.END_REASON_FAILED, released=True)
    assert await worker.take()
    for validated in (0.0, 0.5, 0.6):
        await worker.beat(iteration=5, validated=validated)
        await asyncio.sleep(0.1)
    assert (await client.run(start)).charged_ms == 0
    await worker.beat(iteration=5, validated=0.7)
    assert (await client.run(start)).charged_ms >= 100
    assert (await refusal(worker.beat(iteration=5, validated=1.0))).reason == "FIELD_INVALID"


async def test_others_see_nothing(client: Client, jetstream: JetStreamContext) -> None:
    start, worker = Start(), client.worker()
    await publish(jetstream, start.queued())
    assert await worker.take()
    run = await worker.finish(files=await worker.put_files(client.objects))
    stranger = client.viewer(Start().account_id)
    run_id, model_id, stub = start.run_id, run.model_id, client.stub
    calls = [
        stub.GetRun(training_pb2.GetRunRequest(run_id=run_id), metadata=stranger),
        stub.ListMetrics(training_pb2.ListMetricsRequest(run_id=run_id), metadata=stranger),
        stub.ListLogLines(training_pb2.ListLogLinesRequest(run_id=run_id), metadata=stranger),
        stub.GetModel(training_pb2.GetModelRequest(model_id=model_id), metadata=stranger),
        stub.ListRuns(training_pb2.ListRunsRequest(account_id=start.account_id), metadata=stranger),
        stub.ListModels(training_pb2.ListModelsRequest(account_id=start.account_id), metadata=stranger),
    ]
    assert {(await refusal(call)).code for call in calls} == {"NOT_FOUND"}
    for stream in (
        stub.StreamMetrics(training_pb2.StreamMetricsRequest(run_id=run_id), metadata=stranger),
        stub.StreamLogLines(training_pb2.StreamLogLinesRequest(run_id=run_id), metadata=stranger),
        stub.DownloadModelFile(
            training_pb2.DownloadModelFileRequest(model_id=model_id, name="model.json"), metadata=stranger
        ),
    ):
        assert (await refusal(collect(stream))).code == "NOT_FOUND"
    assert not (await stub.ListRuns(training_pb2.ListRunsRequest(), metadata=stranger)).runs
    worker.metadata = stranger
    assert (await refusal(worker.beat())).code == "PERMISSION_DENIED"


async def test_a_restart_of_the_service_loses_no_lease_and_a_silent_worker_does(
    run_service: ServiceRunner, tokens: Tokens, tmp_path: Path, jetstream: JetStreamContext
) -> None:
    url, objects = object_store(tmp_path)
    settings = {"object_store_url": url, "database_url": await run_service.new_database()}
    start = Start()
    async with run_service("training", TrainingSettings, wire, **settings) as running:
        client = Client(running, tokens, objects)
        worker = client.worker()
        await publish(jetstream, start.queued())
        assert await worker.take()
        await worker.beat(iteration=1)
    async with (
        run_service("training", TrainingSettings, wire, **settings) as running,
        run_service("training", TrainingSettings, wire, **settings) as replica,
    ):
        started_s = time.monotonic()
        client, other = Client(running, tokens, objects), Client(replica, tokens, objects)
        worker.stub, sequence = client.worker().stub, worker.sequence
        await worker.beat(iteration=2, sequence=sequence + 1)
        worker.stub = other.worker().stub
        await worker.beat(iteration=3, sequence=sequence + 2)
        second = other.worker("second")
        assert await second.take(wait_s=30)
        assert time.monotonic() - started_s >= 9.9
        assert second.lease.run.attempt == 2
        assert (await refusal(worker.beat(iteration=4))).reason == "LEASE_LOST"
        told = await read_events(jetstream, f"saucer.training.v1.*.{start.account_id}.>", count=3)
        assert [found.type.rpartition(".")[2] for found in told] == ["RunQueued", "RunStarted", "RunInterrupted"]
