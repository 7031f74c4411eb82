"""Messages to use cases and back; nothing else."""

from collections.abc import AsyncIterator

from saucer.lib.auth import current
from saucer.lib.clock import from_duration, from_timestamp, to_duration
from saucer.lib.errors import InvalidArgumentError
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.objects import CHUNK_BYTES
from saucer.lib.paging import read_page
from saucer.training.domain import Beat, Checkpoint, EndReason, LogSearch, ModelFile, Progress, Run, RunStage
from saucer.training.messages import (
    LOG_WRITERS,
    lease_message,
    log_message,
    metric_message,
    model_message,
    queue_message,
    run_message,
    worker_message,
)
from saucer.training.service import Logged, Measured, Training
from saucer.training.service.reading import Reading
from saucer.training.v1 import training_pb2, training_pb2_grpc, worker_pb2, worker_pb2_grpc

# Points or lines of a page unless the caller asks for another number.
DEFAULT_LINES = 1000


def training_servicer(reading: Reading, training: Training) -> Servicer:
    """For users."""
    return Servicer(
        _TrainingRpc(reading, training),
        training_pb2_grpc.add_TrainingServiceServicer_to_server,
        training_pb2.DESCRIPTOR.services_by_name["TrainingService"],
    )


def worker_servicer(training: Training) -> Servicer:
    """For workers."""
    return Servicer(
        _WorkerRpc(training),
        worker_pb2_grpc.add_WorkerServiceServicer_to_server,
        worker_pb2.DESCRIPTOR.services_by_name["WorkerService"],
    )


class _TrainingRpc(training_pb2_grpc.TrainingServiceServicer):
    def __init__(self, reading: Reading, training: Training) -> None:
        self._reading = reading
        self._training = training

    async def GetRun(self, request: training_pb2.GetRunRequest, context: Context) -> training_pb2.Run:
        return run_message(await self._reading.get_run(request.run_id))

    async def ListRuns(self, request: training_pb2.ListRunsRequest, context: Context) -> training_pb2.ListRunsResponse:
        page = read_page(request)
        account_id = current().account(request.account_id)
        runs = await self._reading.list_runs(
            account_id, task_id=request.task_id or None, after=page.after_moment, limit=page.limit
        )
        shown, following = page.cut(runs, lambda row: (row.created_at, row.run_id))
        return training_pb2.ListRunsResponse(
            runs=[run_message(run) for run in shown],
            next_page_token=following,
        )

    async def ListMetrics(
        self, request: training_pb2.ListMetricsRequest, context: Context
    ) -> training_pb2.ListMetricsResponse:
        page = read_page(request, default_size=DEFAULT_LINES)
        points = await self._reading.list_metrics(request.run_id, after=page.after_number or 0, limit=page.limit)
        shown, following = page.cut(points, lambda row: (row.sequence,))
        return training_pb2.ListMetricsResponse(
            points=[metric_message(point) for point in shown],
            next_page_token=following,
        )

    async def StreamMetrics(
        self, request: training_pb2.StreamMetricsRequest, context: Context
    ) -> AsyncIterator[training_pb2.MetricPoint]:
        async for point in self._reading.stream_metrics(request.run_id, request.after_sequence):
            yield metric_message(point)

    async def ListLogLines(
        self, request: training_pb2.ListLogLinesRequest, context: Context
    ) -> training_pb2.ListLogLinesResponse:
        page = read_page(request, default_size=DEFAULT_LINES)
        lines = await self._reading.list_log(
            request.run_id,
            _search(request),
            newest_first=request.newest_first,
            after=page.after_number,
            limit=page.limit,
        )
        shown, following = page.cut(lines, lambda row: (row.sequence,))
        return training_pb2.ListLogLinesResponse(
            lines=[log_message(line) for line in shown],
            next_page_token=following,
        )

    async def StreamLogLines(
        self, request: training_pb2.StreamLogLinesRequest, context: Context
    ) -> AsyncIterator[training_pb2.LogLine]:
        async for line in self._reading.stream_log(request.run_id, request.after_sequence):
            yield log_message(line)

    async def GetModel(self, request: training_pb2.GetModelRequest, context: Context) -> training_pb2.Model:
        return model_message(await self._reading.get_model(request.model_id))

    async def ListModels(
        self, request: training_pb2.ListModelsRequest, context: Context
    ) -> training_pb2.ListModelsResponse:
        page = read_page(request)
        account_id = current().account(request.account_id)
        models = await self._reading.list_models(
            account_id, task_id=request.task_id or None, after=page.after_moment, limit=page.limit
        )
        shown, following = page.cut(models, lambda row: (row.created_at, row.model_id))
        return training_pb2.ListModelsResponse(
            models=[model_message(model) for model in shown],
            next_page_token=following,
        )

    async def DeleteModel(self, request: training_pb2.DeleteModelRequest, context: Context) -> training_pb2.Model:
        return model_message(await self._training.models.delete(request.model_id))

    async def DownloadModelFile(
        self, request: training_pb2.DownloadModelFileRequest, context: Context
    ) -> AsyncIterator[training_pb2.FileChunk]:
        async for chunk in self._reading.read_file(request.model_id, request.name):
            yield training_pb2.FileChunk(data=chunk)

    async def ExportLog(
        self, request: training_pb2.ExportLogRequest, context: Context
    ) -> AsyncIterator[training_pb2.FileChunk]:
        write = LOG_WRITERS[request.format or training_pb2.LOG_FORMAT_TEXT]
        async for data in self._reading.export_log(request.run_id, _search(request), write):
            for start in range(0, len(data), CHUNK_BYTES):
                yield training_pb2.FileChunk(data=data[start : start + CHUNK_BYTES])

    async def ListWorkers(
        self, request: training_pb2.ListWorkersRequest, context: Context
    ) -> training_pb2.ListWorkersResponse:
        page = read_page(request)
        workers, now = await self._reading.list_workers(after=page.after_id, limit=page.limit)
        shown, following = page.cut(workers, lambda row: (row.worker_id,))
        return training_pb2.ListWorkersResponse(
            workers=[worker_message(worker, now) for worker in shown],
            next_page_token=following,
        )

    async def DrainWorker(self, request: training_pb2.DrainWorkerRequest, context: Context) -> training_pb2.Worker:
        return worker_message(*await self._training.leases.drain(request.worker_id, draining=True))

    async def ResumeWorker(self, request: training_pb2.ResumeWorkerRequest, context: Context) -> training_pb2.Worker:
        return worker_message(*await self._training.leases.drain(request.worker_id, draining=False))

    async def ListQueues(
        self, request: training_pb2.ListQueuesRequest, context: Context
    ) -> training_pb2.ListQueuesResponse:
        queues = await self._reading.list_queues()
        return training_pb2.ListQueuesResponse(queues=[queue_message(queue) for queue in queues])


class _WorkerRpc(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, training: Training) -> None:
        self._training = training

    async def LeaseRun(self, request: worker_pb2.LeaseRunRequest, context: Context) -> worker_pb2.LeaseRunResponse:
        leased = await self._training.leases.lease_run(
            request.request_id,
            request.worker_id,
            request.region_id,
            request.spec_id,
            wait_s=from_duration(request.wait) / 1000,
        )
        if leased is None:
            return worker_pb2.LeaseRunResponse()
        return worker_pb2.LeaseRunResponse(
            lease=lease_message(*leased, await self._training.leases.served_files(leased[0]))
        )

    async def Heartbeat(self, request: worker_pb2.HeartbeatRequest, context: Context) -> worker_pb2.HeartbeatResponse:
        run = await self._training.attempts.heartbeat(
            request.run_id,
            request.token,
            Beat(request.sequence, _progress(request), _checkpoint(request)),
            [
                Measured(point.iteration, point.epoch, dict(point.values), from_timestamp(point.time))
                for point in request.metrics
            ],
            [
                Logged(line.level or training_pb2.LOG_LEVEL_INFO, from_timestamp(line.time), line.text)
                for line in request.log
            ],
        )
        return _answer(run)

    async def FinishRun(self, request: worker_pb2.FinishRunRequest, context: Context) -> worker_pb2.FinishRunResponse:
        run = await self._training.attempts.finish_run(
            request.request_id,
            request.run_id,
            request.token,
            _reason(request.reason),
            error_message=request.error_message,
            user_error=request.user_error,
            released=request.released,
            elapsed_ms=from_duration(request.elapsed),
            best_accuracy=request.best_map_50 if request.HasField("best_map_50") else None,
            files=[ModelFile(file.name, file.key, file.size_bytes, file.sha256) for file in request.files],
        )
        return worker_pb2.FinishRunResponse(run=run_message(run))


def _search(request: training_pb2.ListLogLinesRequest | training_pb2.ExportLogRequest) -> LogSearch:
    return LogSearch(
        tuple(request.keywords),
        request.min_level,
        from_timestamp(request.start_time) if request.HasField("start_time") else None,
        from_timestamp(request.end_time) if request.HasField("end_time") else None,
    )


def _reason(value: training_pb2.EndReason.ValueType) -> EndReason:
    return EndReason(training_pb2.EndReason.Name(value).removeprefix("END_REASON_"))


def _progress(request: worker_pb2.HeartbeatRequest) -> Progress:
    stage = RunStage(training_pb2.RunStage.Name(request.stage).removeprefix("RUN_STAGE_"))
    if stage in (RunStage.QUEUED, RunStage.ENDED):
        raise InvalidArgumentError("FIELD_INVALID", f"stage: {stage} is not a worker's.", stage="not a worker's")
    return Progress(
        stage,
        request.iteration,
        request.iterations,
        request.epoch,
        from_duration(request.elapsed),
        from_duration(request.time_left) if request.HasField("time_left") else None,
        request.best_map_50 if request.HasField("best_map_50") else None,
        request.stage_progress,
        request.validated,
    )


def _checkpoint(request: worker_pb2.HeartbeatRequest) -> Checkpoint | None:
    if not request.HasField("checkpoint"):
        return None
    report = request.checkpoint
    return Checkpoint(report.key, report.sha256, report.iteration, from_duration(report.elapsed))


def _answer(run: Run) -> worker_pb2.HeartbeatResponse:
    response = worker_pb2.HeartbeatResponse()
    if run.must_stop:
        assert run.stop_reason is not None
        response.stop_reason = training_pb2.EndReason.Value(f"END_REASON_{run.stop_reason}")
    if run.lease is not None and run.lease.finish_by is not None and run.meter.beat_at is not None:
        left = run.lease.finish_by - run.meter.beat_at
        within = to_duration(max(0, int(left.total_seconds() * 1000)))
        assert within is not None
        response.finish_within.CopyFrom(within)
    return response
