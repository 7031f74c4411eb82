"""The worker's loop: keep a child warm, lease a run, do one attempt of it, again.

A run is leased only when a child is ready, so nobody waits, or pays, for an import of torch.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from prometheus_client import Counter, Gauge

from saucer.lib import tracing
from saucer.lib.clock import wait_at_most
from saucer.lib.errors import DomainError
from saucer.lib.grpc_client import TokenFile, call
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.training.v1 import worker_pb2, worker_pb2_grpc
from saucer.worker.attempt import Attempt
from saucer.worker.catalogue import ZOO_URL
from saucer.worker.child_process import ChildGoneError, ChildProcess
from saucer.worker.heart import LeaseLostError
from saucer.worker.job import Quit
from saucer.worker.transfer import ImageCache

LEASE_WAIT_S = 30
# Beyond the wait, for the call itself.
LEASE_CALL_S = 10.0
RETRY_S = 1.0
# Before a child that could not start is started again; doubles up to the greatest.
RESTART_FIRST_S = 1.0
RESTART_GREATEST_S = 60.0
# With less free disk no run is taken.
LEAST_FREE_BYTES = 128 * 1024**2
ROOM_POLL_S = 1.0
# A stop has this long for checkpoint, upload and release, unless told otherwise; then the child is killed, and the
# lease runs out. A checkpoint of the largest detectors has 1 GB.
RELEASE_S = 45.0

log = structlog.get_logger()
drained = Gauge("saucer_worker_drained", "1 once it has no run and takes none")
attempts_total = Counter("saucer_worker_attempts_total", "Attempts by how they ended", ["outcome"])
T = TypeVar("T")


class Agent:
    """One worker: at most one run at a time."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        token: TokenFile,
        objects: Objects,
        *,
        worker_id: str,
        region_id: str,
        spec_id: str,
        work_folder: Path,
        cache_bytes: int,
        threads: int,
        deterministic: bool = False,
        precision: str = "",
        catalogue_url: str = ZOO_URL,
        release_s: float = RELEASE_S,
    ) -> None:
        self._stub = worker_pb2_grpc.WorkerServiceStub(channel)
        self._token = token
        self._objects = objects
        self._worker_id = worker_id
        self._region_id = region_id
        self._spec_id = spec_id
        self._cache = ImageCache(work_folder / "images", objects, cache_bytes)
        self._runs = work_folder / "runs"
        self._child_log = work_folder / "child.log"
        self._threads = threads
        self._deterministic = deterministic
        self._precision = precision
        self._catalogue_url = catalogue_url
        self._release_s = release_s
        self._child: ChildProcess | None = None
        # Of several processes, while its attempt lasts.
        self._group: ChildProcess | None = None
        self._starting = asyncio.Lock()
        self._attempt: Attempt | None = None
        # No further run is leased.
        self._leaving = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Until stop() is called; after drain() without taking another run."""
        shutil.rmtree(self._runs, ignore_errors=True)  # what a killed worker left
        try:
            while not self._leaving.is_set():
                await self._unless_leaving(self._room())
                await self._unless_leaving(self._ready_child())
                lease = await self._unless_leaving(self._lease_run())
                if lease is not None:
                    await self._do(lease)
            if not self._stopping.is_set():
                drained.set(1)
                log.info("drained")
                await self._stopping.wait()
        finally:
            await self._drop_child()
            self._stopped.set()

    def drain(self) -> None:
        """Ends the present run as it would end anyway, then idles until stop(): for work on the machine."""
        log.info("draining")
        self._leaving.set()

    async def stop(self) -> None:
        """Gives the present run back, so that another worker goes on at once, and ends run()."""
        self._leaving.set()
        self._stopping.set()
        if self._attempt is not None:
            self._attempt.release()
        await wait_at_most(self._stopped, self._release_s)

    async def _unless_leaving(self, work: Coroutine[object, object, T]) -> T | None:
        """A lease that was granted at this very moment lapses, uncharged."""
        task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, leaving):
                each.cancel()
            await asyncio.gather(task, leaving, return_exceptions=True)

    # The child

    async def _ready_child(self) -> ChildProcess:
        """The child, started anew if it has ended."""
        wait_s = RESTART_FIRST_S
        async with self._starting:
            while self._child is None or not self._child.alive:
                try:
                    self._child = await ChildProcess.start(self._child_log, precision=self._precision)
                except (ChildGoneError, OSError, ValueError) as error:
                    log.error("child_did_not_start", error=repr(error), again_in_s=wait_s)
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, RESTART_GREATEST_S)
            # The next one, on the same machine, needs not find it again.
            self._precision = self._child.precision
            return self._child

    async def _child_of(self, processes: int) -> ChildProcess:
        """The one that waits; or a group of several, which nobody knew of before and which ends with its attempt."""
        if processes == 1:
            return await self._ready_child()
        self._group = await ChildProcess.start(self._child_log, processes, precision=self._precision)
        return self._group

    async def _drop_group(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            await group.kill()

    async def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ChildGoneError):
                await child.send(Quit())
            await child.kill()

    # Runs

    async def _room(self) -> None:
        """Until the disk has some: a worker without would only lose one attempt after another."""
        while (free_bytes := shutil.disk_usage(self._runs.parent).free) < LEAST_FREE_BYTES:
            log.error("disk_full", free_bytes=free_bytes, needed_bytes=LEAST_FREE_BYTES)
            await asyncio.sleep(ROOM_POLL_S)

    async def _lease_run(self) -> worker_pb2.Lease | None:
        request = worker_pb2.LeaseRunRequest(
            request_id=new_id(),
            worker_id=self._worker_id,
            region_id=self._region_id,
            spec_id=self._spec_id,
            wait=Duration(seconds=LEASE_WAIT_S),
        )
        while True:
            try:
                response = await call(self._stub.LeaseRun, request, self._token, timeout_s=LEASE_WAIT_S + LEASE_CALL_S)
            except (DomainError, OSError) as error:
                # The same request id again: a lease whose answer was lost is still ours.
                log.warning("no_answer_to_lease", error=repr(error))
                await asyncio.sleep(RETRY_S)
            else:
                return response.lease if response.HasField("lease") else None

    async def _do(self, lease: worker_pb2.Lease) -> None:
        run = lease.run
        workdir = self._runs / f"{run.run_id}-{run.attempt}"
        workdir.mkdir(parents=True)
        self._attempt = Attempt(
            lease,
            stub=self._stub,
            token=self._token,
            objects=self._objects,
            cache=self._cache,
            workdir=workdir,
            child=self._child_of,
            threads=self._threads,
            deterministic=self._deterministic,
            catalogue_url=self._catalogue_url,
        )
        if self._stopping.is_set():
            self._attempt.release()
        log.info("attempt_begins", run_id=run.run_id, attempt=run.attempt)
        outcome, keep_child = "error", False
        try:
            ids = {"run_id": run.run_id, "worker_id": self._worker_id}
            with tracing.span("attempt", parent=lease.traceparent or None, attributes=ids):
                outcome, keep_child = await self._attempt.go(), True
        except LeaseLostError as error:
            outcome = "lease_lost"
            log.warning("lease_lost", run_id=run.run_id, attempt=run.attempt, error=str(error))
        except Exception:
            # A fault of ours ends the attempt, not the worker: the lease runs out, and another attempt begins.
            log.exception("attempt_failed", run_id=run.run_id, attempt=run.attempt)
        finally:
            self._attempt = None
            await self._drop_group()
            attempts_total.labels(outcome).inc()
            log.info("attempt_ended", run_id=run.run_id, attempt=run.attempt, outcome=outcome)
            if not keep_child:
                await self._drop_child()
            elif self._child is not None:
                self._child.trim_log()
            await asyncio.to_thread(shutil.rmtree, workdir, ignore_errors=True)
