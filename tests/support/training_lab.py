"""The use cases of training on real PostgreSQL, with a clock that the test moves, and a worker of theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

from saucer.lib.clock import ManualClock
from saucer.lib.ids import derived_id, new_id
from saucer.lib.objects import Objects
from saucer.lib.postgres import Database
from saucer.training.bell import Bell
from saucer.training.charging import LEASE_MS
from saucer.training.domain import Beat, Checkpoint, EndReason, ModelFile, Progress, Run, RunRequest, RunStage
from saucer.training.service import Logged, Measured, Training
from saucer.training.store import runs

LEASE = timedelta(milliseconds=LEASE_MS)
SECOND = timedelta(seconds=1)
REGION = "local"


class Lab:
    """The service's use cases, and what they told."""

    def __init__(self, database: Database, clock: ManualClock, objects: Objects) -> None:
        self.database = database
        self.clock = clock
        self.objects = objects
        self.training = Training(database, objects, Bell())

    async def queue(
        self,
        account_id: str | None = None,
        *,
        task_id: str | None = None,
        start_number: int = 1,
        predicts_model_id: str | None = None,
        config: str = "{}",
        region_id: str = REGION,
        priority: int = 0,
        resume: bool | None = None,
    ) -> str:
        account_id, task_id = account_id or new_id(), task_id or new_id()
        hold_id = f"{task_id}-{start_number}"
        request = RunRequest(
            run_id=derived_id("run", hold_id),
            account_id=account_id,
            task_id=task_id,
            task_name="t",
            start_number=start_number,
            hold_id=hold_id,
            region_id=region_id,
            spec_id="cpu",
            count=1,
            dataset_version_id=new_id(),
            config=config,
            max_duration_ms=600_000,
            output_prefix=f"accounts/{account_id}/outputs",
            priority=priority,
            predicts_model_id=predicts_model_id,
        )
        resume = start_number > 1 if resume is None else resume
        await self.training.starts.queue_run(request, resume=resume)
        return request.run_id

    async def run(self, run_id: str) -> Run:
        async with self.database.reading() as connection:
            run = await runs.get_run(connection, run_id)
        assert run is not None
        return run

    async def take(
        self, request_id: str | None = None, *, wait_s: float = 0, worker_id: str = "w", region_id: str = REGION
    ) -> Worker | None:
        leased = await self.training.leases.lease_run(
            request_id or new_id(), worker_id, region_id, "cpu", wait_s=wait_s
        )
        return Worker(self, *leased) if leased is not None else None

    async def worker(self) -> Worker:
        worker = await self.take()
        assert worker is not None
        return worker

    async def told(self, run_id: str) -> list[str]:
        """Events of a run in order; fails if a revision does not rise."""
        async with self.database.reading() as connection:
            rows = await connection.fetch("SELECT type, data FROM outbox WHERE resource = $1 ORDER BY position", run_id)
        revisions = [int(json.loads(row["data"])["run"]["revision"]) for row in rows]
        assert revisions == sorted(set(revisions))
        return [row["type"].rpartition(".")[2] for row in rows]


class Worker:
    """The owner of one attempt."""

    def __init__(self, lab: Lab, run: Run, token: str) -> None:
        self.lab = lab
        self.leased = run
        self.token = token
        self.sequence = 0

    async def beat(
        self,
        iteration: int = 1,
        *,
        stage: RunStage = RunStage.TRAINING,
        share: float = 0.0,
        checkpoint: int | Checkpoint | None = None,
        metrics: list[Measured] | None = None,
        lines: list[Logged] | None = None,
        repeat: bool = False,
    ) -> Run:
        self.sequence += 0 if repeat else 1
        kept = checkpoint if isinstance(checkpoint, Checkpoint) else None
        if isinstance(checkpoint, int):
            kept = Checkpoint(f"{self.leased.artifact_prefix}/c{checkpoint}", "s", checkpoint, checkpoint * 100)
        progress = Progress(stage, iteration, 100, elapsed_ms=iteration * 100, stage_progress=share)
        return await self.lab.training.attempts.heartbeat(
            self.leased.run_id, self.token, Beat(self.sequence, progress, kept), metrics or [], lines or []
        )

    async def finish(
        self,
        reason: EndReason = EndReason.COMPLETED,
        *,
        request_id: str | None = None,
        user_error: bool = False,
        released: bool = False,
        files: list[ModelFile] | None = None,
        error_message: str = "it broke",
    ) -> Run:
        return await self.lab.training.attempts.finish_run(
            request_id or new_id(),
            self.leased.run_id,
            self.token,
            reason,
            error_message=error_message,
            user_error=user_error,
            released=released,
            elapsed_ms=0,
            best_accuracy=None,
            files=files or [],
        )

    async def files(self, names: Sequence[str] = ("model.onnx", "model.json")) -> list[ModelFile]:
        made = []
        for name in names:
            key = f"{self.leased.artifact_prefix}/{name}"
            made.append(ModelFile(name, key, len(name), await self.lab.objects.put(key, name.encode())))
        return made
