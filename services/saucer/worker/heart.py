"""The heartbeat of an attempt: a task of its own, which no transfer and no training holds up.

1. The lease counts from when the last accepted heartbeat was sent, by this machine's monotonic clock: that is never
   later than the service's own reckoning, so the worker halts before anybody else may be given the run.
2. A heartbeat that got no answer is sent again as it was, under its sequence number.
3. Metrics and log lines wait in bounded queues; what does not fit is dropped, and a line says how much.
"""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from saucer.lib.clock import from_duration, to_duration, wait_at_most
from saucer.lib.errors import DomainError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from saucer.lib.grpc_client import TokenFile, call
from saucer.training.v1 import training_pb2, worker_pb2, worker_pb2_grpc
from saucer.worker.transfer import Uploaded

BEAT_S = 1.0
# Of one call, and before it is made again.
CALL_S = 3.0
RETRY_S = 0.5
# The work is halted so long before its lease ends.
HALT_MARGIN_S = 1.0
# What waits at the end of an attempt is given so long to be sent.
FLUSH_S = 5.0
# Of one heartbeat, as worker.proto limits them.
BATCH_METRICS = 200
BATCH_LINES = 500
MAX_LINE_CHARACTERS = 8192
# Waiting to be sent; older metrics make room, later lines are dropped.
WAITING_METRICS = 5_000
WAITING_LINES = 5_000

log = structlog.get_logger()


class LeaseLostError(Exception):
    """The run is not this worker's any more: halt, and keep nothing."""


@dataclass
class Vitals:
    """What the next heartbeat says."""

    stage: training_pb2.RunStage.ValueType = training_pb2.RUN_STAGE_PREPARING_DATA
    stage_progress: float = 0.0
    iteration: int = 0
    iterations: int = 0
    validated: float = 0.0
    epoch: float = 0.0
    elapsed_ms: int = 0
    # When training will have ended, by time.monotonic(): what is told later says less.
    trained_by_s: float | None = None
    # Top-1 of a classification.
    best_map_50: float | None = None


class Heart:
    """Of one attempt."""

    def __init__(self, stub: worker_pb2_grpc.WorkerServiceAsyncStub, token: TokenFile, lease: worker_pb2.Lease) -> None:
        self.vitals = Vitals(
            iteration=lease.run.iteration,
            iterations=lease.run.iterations,
            epoch=lease.run.epoch,
            elapsed_ms=from_duration(lease.elapsed),
        )
        # Set when the service wants the run stopped; then stop_reason says why.
        self.stopped = asyncio.Event()
        self.stop_reason = training_pb2.END_REASON_UNSPECIFIED
        # Set by the first accepted heartbeat: the attempt has begun.
        self.accepted = asyncio.Event()
        self._stub = stub
        self._token = token
        self._lease = lease
        self._lease_s = from_duration(lease.lease_length) / 1000
        self._lost_at_s = time.monotonic() + self._lease_s - HALT_MARGIN_S
        self._sequence = 0
        self._news = asyncio.Event()
        self._metrics: deque[worker_pb2.MetricReport] = deque(maxlen=WAITING_METRICS)
        self._lines: deque[worker_pb2.LogReport] = deque()
        self._dropped_lines = 0
        # Neither a metric nor a line waits.
        self._sent = asyncio.Event()
        self._sent.set()
        self._checkpoint: tuple[worker_pb2.CheckpointReport, asyncio.Future[None]] | None = None

    def metric(self, iteration: int, epoch: float, values: Mapping[str, float]) -> None:
        """To be sent with the next heartbeat."""
        report = worker_pb2.MetricReport(iteration=iteration, epoch=epoch, values=values)
        report.time.GetCurrentTime()
        self._metrics.append(report)
        self._sent.clear()

    def line(
        self, text: str, level: training_pb2.LogLevel.ValueType = training_pb2.LOG_LEVEL_INFO, at_s: float | None = None
    ) -> None:
        """A line of the run's log, to be sent with the next heartbeat. `at_s` is seconds since the epoch."""
        if len(self._lines) >= WAITING_LINES:
            self._dropped_lines += 1
            return
        if self._dropped_lines:
            dropped, self._dropped_lines = self._dropped_lines, 0
            self.line(f"{dropped} lines were dropped by the worker.", training_pb2.LOG_LEVEL_WARNING)
        report = worker_pb2.LogReport(level=level, text=text[:MAX_LINE_CHARACTERS])
        report.time.FromNanoseconds(int((time.time() if at_s is None else at_s) * 1e9))
        self._lines.append(report)
        self._sent.clear()

    def checkpoint(self, uploaded: Uploaded, iteration: int, elapsed_ms: int) -> asyncio.Future[None]:
        """Reports a checkpoint that is whole in the object store, at once. Done when the service knows it."""
        report = worker_pb2.CheckpointReport(
            key=uploaded.key,
            sha256=uploaded.sha256,
            size_bytes=uploaded.size_bytes,
            iteration=iteration,
            elapsed=to_duration(elapsed_ms),
        )
        known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._checkpoint = (report, known)
        self._news.set()
        return known

    def hurry(self) -> None:
        """There is news: the next heartbeat goes out at once."""
        self._news.set()

    async def flush(self) -> None:
        """Until the service has the metrics and lines that wait, or is too late with its answer."""
        self.hurry()
        if not await wait_at_most(self._sent, FLUSH_S):
            log.warning("not_flushed", run_id=self._lease.run.run_id)

    async def beat(self) -> None:
        """Until cancelled. Raises LeaseLostError."""
        while True:
            request, checkpoint = self._request(), self._checkpoint
            if checkpoint is not None:
                request.checkpoint.CopyFrom(checkpoint[0])
            answer = await self._send(request)
            for _ in request.metrics:
                self._metrics.popleft()
            for _ in request.log:
                self._lines.popleft()
            if not self._metrics and not self._lines:
                self._sent.set()
            if checkpoint is not None:
                self._checkpoint = None if self._checkpoint is checkpoint else self._checkpoint
                if not checkpoint[1].done():
                    checkpoint[1].set_result(None)
            self.accepted.set()
            if answer.stop_reason and not self.stopped.is_set():
                self.stop_reason = answer.stop_reason
                self.stopped.set()
            if len(self._lines) < BATCH_LINES and len(self._metrics) < BATCH_METRICS:
                await self._wait()

    async def _wait(self) -> None:
        try:
            await wait_at_most(self._news, BEAT_S)
        finally:
            self._news.clear()

    def _request(self) -> worker_pb2.HeartbeatRequest:
        self._sequence += 1
        vitals = self.vitals
        return worker_pb2.HeartbeatRequest(
            run_id=self._lease.run.run_id,
            token=self._lease.token,
            sequence=self._sequence,
            stage=vitals.stage,
            stage_progress=min(1.0, max(0.0, vitals.stage_progress)),
            iteration=vitals.iteration,
            iterations=vitals.iterations,
            validated=vitals.validated,
            epoch=vitals.epoch,
            elapsed=to_duration(vitals.elapsed_ms),
            time_left=to_duration(_left_ms(vitals.trained_by_s)),
            best_map_50=vitals.best_map_50,
            metrics=[self._metrics[index] for index in range(min(BATCH_METRICS, len(self._metrics)))],
            log=[self._lines[index] for index in range(min(BATCH_LINES, len(self._lines)))],
        )

    async def _send(self, request: worker_pb2.HeartbeatRequest) -> worker_pb2.HeartbeatResponse:
        while True:
            sent_s = time.monotonic()
            left_s = self._lost_at_s - sent_s
            if left_s <= 0:
                raise LeaseLostError(f"The training service was out of reach for {self._lease_s:.0f} s.")
            try:
                answer = await call(self._stub.Heartbeat, request, self._token, timeout_s=min(CALL_S, left_s))
            except (FailedPreconditionError, NotFoundError, InvalidArgumentError) as error:
                raise LeaseLostError(error.message) from error
            except (DomainError, OSError) as error:
                log.warning("heartbeat_failed", run_id=request.run_id, sequence=request.sequence, error=repr(error))
                await asyncio.sleep(min(RETRY_S, max(0.0, self._lost_at_s - time.monotonic())))
                continue
            self._lost_at_s = sent_s + self._lease_s - HALT_MARGIN_S
            return answer


def _left_ms(until_s: float | None) -> int | None:
    return None if until_s is None else max(0, round(1000 * (until_s - time.monotonic())))
