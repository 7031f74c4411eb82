"""The use cases on real PostgreSQL, with a clock that the test moves."""

from __future__ import annotations  # some of grpc's classes exist only for type checkers

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.clock import ManualClock
from saucer.lib.errors import DomainError, FailedPreconditionError
from saucer.lib.ids import derived_id, new_id
from saucer.lib.objects import Objects
from saucer.lib.postgres import Database, connect, migrate
from saucer.lib.retention import forget
from saucer.training.bell import Bell
from saucer.training.charging import LEASE_MS
from saucer.training.domain import (
    BACK_OFF,
    FINISH_QUEUE_LIMIT,
    MAX_ATTEMPTS,
    QUEUE_LIMIT,
    Beat,
    Checkpoint,
    EndReason,
    LogSearch,
    ModelFile,
    Progress,
    Run,
    RunRequest,
    RunStage,
    RunState,
)
from saucer.training.log_limit import BURST, LINES_PER_S
from saucer.training.main import TrainingSettings, retention_rules
from saucer.training.reading import Reading
from saucer.training.service import Logged, Measured, Training
from saucer.training.store import log_search, runs
from tests.support.servers import NewDatabase

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
            config="{}",
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
    ) -> Run:
        return await self.lab.training.attempts.finish_run(
            request_id or new_id(),
            self.leased.run_id,
            self.token,
            reason,
            error_message="it broke",
            user_error=user_error,
            released=released,
            elapsed_ms=0,
            best_map_50=None,
            files=files or [],
        )

    async def files(self, names: Sequence[str] = ("model.onnx", "model.json")) -> list[ModelFile]:
        made = []
        for name in names:
            key = f"{self.leased.artifact_prefix}/{name}"
            made.append(ModelFile(name, key, len(name), await self.lab.objects.put(key, name.encode())))
        return made


@pytest.fixture
async def lab(new_database: NewDatabase, tmp_path: Path) -> AsyncIterator[Lab]:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    database = await connect(await new_database(), clock)
    await migrate(database, "saucer.lib", "saucer.training")
    yield Lab(database, clock, Objects(f"file://{tmp_path}"))
    await database.pool.close()


async def test_of_many_workers_one_gets_the_run(lab: Lab) -> None:
    await lab.queue()
    taken = await asyncio.gather(*(lab.take() for _ in range(10)))
    assert sum(worker is not None for worker in taken) == 1


async def test_the_same_request_gets_the_same_lease_also_when_asked_at_once(lab: Lab) -> None:
    await lab.queue()
    await lab.queue()
    request_id = new_id()
    taken = await asyncio.gather(*(lab.take(request_id, wait_s=5) for _ in range(5)))
    assert len({(worker.leased.run_id, worker.token) for worker in taken if worker is not None}) == 1
    assert all(worker is not None for worker in taken)


async def test_the_account_with_the_fewest_at_work_comes_first_then_who_waits_longest(lab: Lab) -> None:
    busy, other = new_id(), new_id()
    runs = []
    for account_id in (busy, busy, busy, other):
        runs.append(await lab.queue(account_id))
        lab.clock.advance(SECOND)
    assert [(await lab.worker()).leased.run_id for _ in range(4)] == [runs[0], runs[3], runs[1], runs[2]]


async def test_a_run_waits_charges_progresses_and_ends(lab: Lab) -> None:
    run_id = await lab.queue()
    lab.clock.advance(timedelta(hours=1))
    worker = await lab.worker()
    for second in range(70):
        run = await worker.beat(second)
        lab.clock.advance(SECOND)
    assert run.meter.charged_ms == 69_000
    run = await worker.finish(files=await worker.files())
    assert (run.state, run.end_reason, run.model_id) == (
        RunState.ENDED,
        EndReason.COMPLETED,
        derived_id("model", run_id),
    )
    assert await lab.told(run_id) == ["RunQueued", "RunStarted", "RunProgressed", "RunEnded"]
    copies = await lab.objects.keys(f"accounts/{run.request.account_id}")
    assert copies == [
        f"{run.request.output_prefix}/{run.request.task_id}/{run.model_id}/{name}"
        for name in ("model.json", "model.onnx")
    ]


async def test_a_lost_run_is_queued_again_and_the_gap_is_not_charged(lab: Lab) -> None:
    run_id = await lab.queue()
    first = await lab.worker()
    await first.beat(1)
    lab.clock.advance(5 * SECOND)
    await first.beat(20, checkpoint=10)
    lab.clock.advance(LEASE)
    await lab.training.sweep(expire=True)
    assert (await lab.run(run_id)).state is RunState.RUNNING, "its lease ends now, it is not over"
    lab.clock.advance(SECOND)
    await lab.training.sweep(expire=False)
    assert (await lab.run(run_id)).state is RunState.RUNNING, "nobody could have prolonged it"
    await lab.training.sweep(expire=True)
    assert (await lab.run(run_id)).state is RunState.QUEUED
    with pytest.raises(FailedPreconditionError, match="nobody's") as zombie:
        await first.beat(21)
    assert zombie.value.reason == "LEASE_LOST"

    lab.clock.advance(100 * SECOND)
    second = await lab.worker()
    assert second.leased.attempt == 2
    assert second.leased.checkpoint is not None
    assert second.leased.checkpoint.key.endswith("attempt-1/c10")
    for iteration in (10, 20, 21, 30):
        run = await second.beat(iteration)
        lab.clock.advance(SECOND)
    assert run.meter.charged_ms == 6_000, "5 s of the first, and of the second only what came after iteration 20"
    for attempt_of_the_zombie in (first.beat(22), first.finish()):
        with pytest.raises(FailedPreconditionError):
            await attempt_of_the_zombie
    assert await lab.told(run_id) == ["RunQueued", "RunStarted", "RunInterrupted", "RunProgressed"]


async def test_a_lease_without_a_heartbeat_lapses_silently_and_starts_no_charge(lab: Lab) -> None:
    run_id = await lab.queue()
    await lab.worker()
    lab.clock.advance(LEASE + SECOND)
    await lab.training.sweep(expire=True)
    run = await lab.run(run_id)
    assert (run.state, run.lost_attempts, run.started_at) == (RunState.QUEUED, 0, None)
    assert await lab.told(run_id) == ["RunQueued"]


async def test_a_repeated_heartbeat_changes_nothing(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    line = Logged(2, lab.clock.time, "once")
    await worker.beat(1, lines=[line])
    first = await lab.run(run_id)
    lab.clock.advance(SECOND)
    await worker.beat(1, lines=[line], repeat=True)
    assert await lab.run(run_id) == first


async def test_a_finish_with_a_lost_reply_gets_the_same_answer_again(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    request_id, files = new_id(), await worker.files()
    answers = [await worker.finish(request_id=request_id, files=files) for _ in range(2)]
    assert answers[0] == answers[1]
    with pytest.raises(FailedPreconditionError):
        await worker.finish(files=files)
    assert (await lab.told(run_id)).count("RunEnded") == 1


async def test_a_run_whose_stop_came_first_ends_at_once(lab: Lab) -> None:
    task_id = new_id()
    await lab.training.starts.order_stop(f"{task_id}-1", EndReason.STOPPED_BY_USER, 0)
    run = await lab.run(await lab.queue(task_id=task_id))
    assert (run.state, run.end_reason) == (RunState.ENDED, EndReason.STOPPED_BY_USER)
    assert await lab.told(run.run_id) == ["RunQueued", "RunEnded"]
    assert await lab.take() is None


async def test_a_stop_and_a_start_at_once_lose_nothing(lab: Lab) -> None:
    for _ in range(20):
        task_id = new_id()
        run_id, _ = await asyncio.gather(
            lab.queue(task_id=task_id), lab.training.starts.order_stop(f"{task_id}-1", EndReason.ARREARS, 0)
        )
        assert (await lab.run(run_id)).end_reason is EndReason.ARREARS


async def test_a_stop_reaches_the_worker_with_its_next_heartbeat(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    hold_id = (await lab.run(run_id)).request.hold_id
    await lab.training.starts.order_stop(hold_id, EndReason.ARREARS, 0)
    run = await worker.beat(2)
    assert (run.must_stop, run.stop_reason) == (True, EndReason.ARREARS)
    assert run.lease is not None
    assert run.lease.finish_by is not None
    run = await worker.finish(EndReason.ARREARS, files=await worker.files())
    assert (run.end_reason, run.model_id is not None) == (EndReason.ARREARS, True)


async def test_the_attempts_are_limited_and_the_last_only_finishes_uncharged(lab: Lab) -> None:
    run_id = await lab.queue()
    for _ in range(MAX_ATTEMPTS):
        worker = await lab.worker()
        assert not worker.leased.finish_only
        await worker.beat(1)
        lab.clock.advance(SECOND)
        await worker.beat(20, checkpoint=10)
        await worker.finish(EndReason.FAILED)
        lab.clock.advance(BACK_OFF[-1])
    charged_ms = (await lab.run(run_id)).meter.charged_ms
    worker = await lab.worker()
    assert worker.leased.finish_only
    for _ in range(5):
        await worker.beat(20, stage=RunStage.EXPORTING)
        lab.clock.advance(SECOND)
    run = await worker.finish(EndReason.FAILED, files=await worker.files())
    assert (run.end_reason, run.error_message) == (EndReason.FAILED, "it broke")
    assert run.model_id is not None
    assert run.meter.charged_ms == charged_ms


async def test_a_users_error_ends_the_run_at_once(lab: Lab) -> None:
    await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    run = await worker.finish(EndReason.FAILED, user_error=True)
    assert (run.state, run.error_message, run.model_id) == (RunState.ENDED, "it broke", None)


async def test_a_released_run_is_free_at_once_and_the_release_may_be_repeated(lab: Lab) -> None:
    run_id = await lab.queue()
    for _ in range(MAX_ATTEMPTS + 2):
        worker = await lab.worker()
        await worker.beat(checkpoint=1)
        request_id = new_id()
        for _ in range(2):
            run = await worker.finish(EndReason.FAILED, request_id=request_id, released=True)
        assert (run.state, run.lost_attempts) == (RunState.QUEUED, 0)
    assert (await lab.told(run_id)).count("RunInterrupted") == MAX_ATTEMPTS + 2


async def test_a_file_that_is_not_what_was_reported_ends_nothing(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    good = await worker.files()
    await lab.objects.put(f"accounts/{new_id()}/model.onnx", b"x")
    wrong = [
        [good[0]],
        [*good, good[0]],
        [*good, ModelFile("evil.sh", f"{worker.leased.artifact_prefix}/evil.sh", 1, "0" * 64)],
        [good[0], ModelFile("model.json", f"{worker.leased.artifact_prefix}/../model.json", 1, "0" * 64)],
        [good[0], ModelFile("model.json", good[1].key, good[1].size_bytes, "0" * 64)],
        [good[0], ModelFile("model.json", good[1].key, good[1].size_bytes + 1, good[1].sha256)],
        [*good, ModelFile("report.json", f"{worker.leased.artifact_prefix}/report.json", 1, "0" * 64)],
    ]
    reasons = []
    for files in wrong:
        with pytest.raises(DomainError) as refusal:
            await worker.finish(files=files)
        reasons.append(refusal.value.reason)
    assert reasons == [
        "FILE_NAMES",
        "FILE_NAMES",
        "FILE_NAMES",
        "KEY_OUTSIDE_ATTEMPT",
        "CHECKSUM_MISMATCH",
        "SIZE_MISMATCH",
        "ARTIFACT_MISSING",
    ]
    assert (await lab.run(run_id)).state is RunState.RUNNING


async def test_a_restart_from_scratch_begins_without_the_former_runs_checkpoint_and_time(lab: Lab) -> None:
    task_id, account_id = new_id(), new_id()
    await lab.queue(account_id, task_id=task_id)
    worker = await lab.worker()
    await worker.beat(50, checkpoint=40)
    await worker.finish(EndReason.FAILED, user_error=True)
    run_id = await lab.queue(account_id, task_id=task_id, start_number=2, resume=False)
    assert (await lab.run(run_id)).checkpoint is None
    begun = await (await lab.worker()).beat(1)
    assert (begun.progress.elapsed_ms, begun.progress.best_map_50) == (100, None)
    assert begun.meter.caught_up, "it is charged from its beginning"


async def test_a_stream_of_metrics_goes_on_after_the_point_that_was_seen_last(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    points = [Measured(iteration, 0.1, {"loss": 1 / iteration}, lab.clock.time) for iteration in (1, 2, 3)]
    await worker.beat(3, metrics=points)
    set_current(Principal("tester", Role.ADMINISTRATOR, None, "t", float("inf")))
    reading = Reading(lab.database, lab.objects, Bell())
    stream = reading.stream_metrics(run_id, 1)
    seen = [(await anext(stream)).iteration, (await anext(stream)).iteration]
    await worker.beat(4, metrics=[Measured(4, 0.1, {"loss": 0.1}, lab.clock.time)])
    await worker.finish(EndReason.FAILED, user_error=True)
    assert seen + [point.iteration async for point in stream] == [2, 3, 4]
    assert [point.iteration async for point in reading.stream_metrics(run_id, 3)] == [4]


async def test_a_restart_goes_on_from_the_former_runs_checkpoint(lab: Lab) -> None:
    task_id, account_id = new_id(), new_id()
    await lab.queue(account_id, task_id=task_id)
    worker = await lab.worker()
    await worker.beat(20, checkpoint=20)
    await lab.training.starts.order_stop(f"{task_id}-1", EndReason.STOPPED_BY_USER, 0)
    await worker.finish(EndReason.STOPPED_BY_USER)
    await lab.queue(account_id, task_id=task_id, start_number=2)
    second = (await lab.worker()).leased
    assert second.checkpoint is not None
    assert (second.attempt, second.checkpoint.iteration, second.checkpoint.elapsed_ms) == (1, 20, 2_000)
    assert second.checkpoint.key.endswith("attempt-1/c20")


async def test_waiting_ends_with_a_typed_reason(lab: Lab) -> None:
    forgotten, stopped = await lab.queue(), await lab.queue()
    worker = await lab.worker()
    await worker.beat(checkpoint=1)
    taken = worker.leased.run_id
    forgotten, stopped = (forgotten, stopped) if taken == stopped else (stopped, forgotten)
    await worker.finish(EndReason.FAILED)
    await lab.training.starts.order_stop((await lab.run(stopped)).request.hold_id, EndReason.BUDGET_REACHED, 0)
    lab.clock.advance(FINISH_QUEUE_LIMIT + SECOND)
    await lab.training.sweep(expire=True)
    assert (await lab.run(stopped)).end_reason is EndReason.BUDGET_REACHED
    assert (await lab.run(forgotten)).state is RunState.QUEUED
    lab.clock.advance(QUEUE_LIMIT)
    await lab.training.sweep(expire=True)
    assert (await lab.run(forgotten)).end_reason is EndReason.WAITED_TOO_LONG


async def test_two_sweepers_at_once_interrupt_once(lab: Lab) -> None:
    runs = [await lab.queue() for _ in range(10)]
    for _ in runs:
        await (await lab.worker()).beat()
    lab.clock.advance(LEASE + SECOND)
    other = Training(lab.database, lab.objects, Bell())
    await asyncio.gather(*(sweeper.sweep(expire=True) for sweeper in (lab.training, other) * 3))
    for run_id in runs:
        assert (await lab.run(run_id)).lost_attempts == 1
        assert (await lab.told(run_id)).count("RunInterrupted") == 1


async def test_a_flood_of_lines_is_cut_however_often_its_worker_beats_and_says_so(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    lines = [Logged(2, lab.clock.time, f"line {number}\x00") for number in range(500)]
    for _ in range(100):
        run = await worker.beat(lines=lines)
        lab.clock.advance(SECOND / 100)
    assert run.log_count <= BURST + LINES_PER_S
    lab.clock.advance(SECOND)
    run = await worker.beat(lines=lines[:1])
    async with lab.database.reading() as connection:
        said = await connection.fetch(
            "SELECT substring(line FROM '^([0-9]+) lines were dropped')::int AS lines FROM log_line WHERE run_id = $1 "
            "AND level = 3",
            run_id,
        )
    assert sum(row["lines"] for row in said) + run.log_count - len(said) == 100 * 500 + 1, "each is kept or counted"


async def test_a_logs_times_never_go_back_so_that_a_window_is_a_range_of_lines(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    given = [lab.clock.time + seconds * SECOND for seconds in (-30, -10, -20, 99, -5)]
    await worker.beat(lines=[Logged(2, time, str(number)) for number, time in enumerate(given)])
    async with lab.database.reading() as connection:
        lines = await log_search.list_log(connection, run_id, LogSearch(), after=None, limit=10)
        assert [line.time for line in lines] == [given[0], given[1], given[1], lab.clock.time, lab.clock.time]
        for start, end, found in (
            (given[1], lab.clock.time, "12"),
            (None, given[1], "0"),
            (lab.clock.time + SECOND, None, ""),
            (None, lab.clock.time + SECOND, "01234"),
        ):
            window = await log_search.list_log(
                connection, run_id, LogSearch(start=start, end=end), after=None, limit=10
            )
            assert "".join(line.text for line in window) == found


async def test_what_a_lost_attempt_measured_beyond_its_checkpoint_is_measured_anew(lab: Lab) -> None:
    run_id = await lab.queue()

    def points(*iterations: int) -> list[Measured]:
        return [Measured(iteration, 0.0, {"loss": float(iteration)}, lab.clock.time) for iteration in iterations]

    first = await lab.worker()
    await first.beat(30, checkpoint=10, metrics=points(5, 10, 15, 20))
    await first.finish(EndReason.FAILED)
    second = await lab.worker()
    await second.beat(12, metrics=points(15))
    async with lab.database.reading() as connection:
        rows = await connection.fetch(
            "SELECT sequence, iteration FROM metric_point WHERE run_id = $1 ORDER BY sequence", run_id
        )
    assert [tuple(row) for row in rows] == [(1, 5), (2, 10), (5, 15)]


async def test_of_runs_that_ended_long_ago_the_log_is_forgotten_and_of_no_other(lab: Lab) -> None:
    old, new = await lab.queue(), await lab.queue()
    for age in (timedelta(days=100), timedelta(days=1)):
        worker = await lab.worker()
        await worker.beat(lines=[Logged(2, lab.clock.time, "line")] * 3)
        await worker.finish(EndReason.FAILED, user_error=True)
        lab.clock.advance(age)
    settings = TrainingSettings.model_construct(logs_keep_days=90)
    await forget("training", lab.database, retention_rules(settings))
    async with lab.database.reading() as connection:
        rows = await connection.fetch("SELECT run_id, count(*) AS lines FROM log_line GROUP BY run_id")
    assert {str(row["run_id"]): row["lines"] for row in rows} == {new: 3}, old


async def test_the_keyword_index_is_there_for_a_plain_role(lab: Lab) -> None:
    async with lab.database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname = 'log_line_run_words'") == 1
