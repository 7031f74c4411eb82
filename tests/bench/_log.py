"""log_pages_p99_growth, log_searches_p99_growth and task_pages_p99_growth: a log of a million lines, and 10,000 tasks,
against a hundredth of them. The services are as they are wired, with a client in the same process.

Pages are any page, in either order. Searches are by words that are frequent, rare or not there, by two words, by level,
by a window of time, and by all of these together, at any page of what they find.
"""

import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from saucer.lib.auth import Role
from saucer.lib.ids import new_id
from saucer.lib.paging import read_page
from saucer.task.v1 import task_pb2
from saucer.training.main import TrainingSettings, wire
from saucer.training.v1 import training_pb2, training_pb2_grpc
from tests.bench._servers import service_runner
from tests.bench.harness import LEAST_ROUNDS, Row, Say, percentile, row
from tests.integration.task.world import HOLD_MICROS, World, playing
from tests.support.services import Metadata, ServiceRunner

LINES, TASKS = (10_000, 1_000_000), (100, 10_000)
CALLS = 200
PAGE = 100
WORDS = ("loss", "iteration", "checkpoint", "overflow", "nowhere")

Call = Callable[[random.Random], Awaitable[object]]


async def measure(folder: Path, say: Say) -> list[Row]:
    """The three rows."""
    async with service_runner(folder) as run:
        return [*await _logs(run, folder, say), await _tasks(run, say)]


async def _logs(run: ServiceRunner, folder: Path, say: Say) -> list[Row]:
    database_url, account_id = await run.new_database(), new_id()
    settings = {"database_url": database_url, "object_store_url": f"file://{folder / 'objects'}"}
    async with run("training", TrainingSettings, wire, **settings) as running:
        stub = training_pb2_grpc.TrainingServiceStub(running.channel)
        metadata = run.tokens.metadata(Role.VIEWER, account_id)
        runs = {lines: await _grown_log(database_url, account_id, lines) for lines in LINES}
        pages = {lines: _pages(stub, metadata, run_id, lines) for lines, run_id in runs.items()}
        searches = {lines: _searches(stub, metadata, run_id, lines) for lines, run_id in runs.items()}
        return [
            await _growth("log_pages_p99_growth", pages, say),
            await _growth("log_searches_p99_growth", searches, say),
        ]


async def _grown_log(database_url: str, account_id: str, lines: int) -> str:
    """A run with so many lines, of a second each."""
    run_id = new_id()
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        """
        INSERT INTO run (run_id, account_id, task_id, task_name, start_number, hold_id, region_id, spec_id, count,
            dataset_version_id, config, max_duration_ms, output_prefix, created_at, state, queued_at, ended_at, attempt,
            lost_attempts, stop_at_charged_ms, end_reason, error_message, metric_count, log_count, told_epoch, revision,
            sequence, stage, iteration, iterations, epoch, elapsed_ms, stage_progress, charged_ms, finishing_ms,
            reached_stage, reached_done, counted_stage, counted_done, caught_up)
        VALUES ($1::uuid, $2, $1::uuid, 't', 1, $1::text, 'r', 's', 1, $1::uuid, '{}', 1, 'o', to_timestamp(0), 'ENDED',
            to_timestamp(0), now(), 1, 0, 0, 'COMPLETED', '', 0, $3, 0, 1, 0, 'ENDED', 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
            true)
        """,
        run_id,
        account_id,
        lines,
    )
    await connection.execute(
        """
        INSERT INTO log_line (run_id, sequence, attempt, level, logged_at, line)
        SELECT $1, n, 1, CASE WHEN n % 5000 = 0 THEN 4 WHEN n % 500 = 0 THEN 3 ELSE 2 END, to_timestamp(n),
            'iteration ' || n || ' loss ' || round((3 + sin(n))::numeric, 4) || ' lr 0.002 time 0.31 data_time 0.02'
            || CASE WHEN n % 100 = 0 THEN ' checkpoint saved' ELSE '' END
            || CASE WHEN n % 2500 = 0 THEN ' overflow in the gradient, step left out' ELSE '' END
        FROM generate_series(1, $2::bigint) AS n
        """,
        run_id,
        lines,
        timeout=300,
    )
    await connection.execute("VACUUM ANALYZE log_line", timeout=300)
    await connection.close()
    return run_id


def _pages(stub: "training_pb2_grpc.TrainingServiceAsyncStub", metadata: Metadata, run_id: str, lines: int) -> Call:
    async def call(draw: random.Random) -> object:
        request = training_pb2.ListLogLinesRequest(run_id=run_id, page_size=PAGE, newest_first=draw.random() < 0.5)
        return await _at_any_page(stub, request, metadata, draw.randrange(lines))

    return call


def _searches(stub: "training_pb2_grpc.TrainingServiceAsyncStub", metadata: Metadata, run_id: str, lines: int) -> Call:
    async def call(draw: random.Random) -> object:
        request = training_pb2.ListLogLinesRequest(run_id=run_id, page_size=PAGE, newest_first=draw.random() < 0.5)
        if draw.random() < 0.7:
            request.keywords.extend(draw.sample(WORDS, draw.choice((1, 1, 2))))
        if draw.random() < 0.3:
            request.min_level = draw.choice((training_pb2.LOG_LEVEL_WARNING, training_pb2.LOG_LEVEL_ERROR))
        if draw.random() < 0.3:
            start = draw.randrange(lines)
            request.start_time.FromSeconds(start)
            request.end_time.FromSeconds(start + lines // 50)
        return await _at_any_page(stub, request, metadata, draw.randrange(lines))

    return call


async def _at_any_page(
    stub: "training_pb2_grpc.TrainingServiceAsyncStub",
    request: training_pb2.ListLogLinesRequest,
    metadata: Metadata,
    after: int,
) -> object:
    request.page_token = read_page(request).token([after])
    return await stub.ListLogLines(request, metadata=metadata)


async def _tasks(run: ServiceRunner, say: Say) -> Row:
    database_url = await run.new_database()
    async with playing(run, database_url=database_url) as world:
        calls = {}
        for count in TASKS:
            account_id, editor = await world.account(HOLD_MICROS)
            await world.create(world.form(account_id), editor)
            moments = await _grown_tasks(database_url, account_id, count)
            calls[count] = _task_pages(world, editor, moments)
        return await _growth("task_pages_p99_growth", calls, say)


async def _grown_tasks(database_url: str, account_id: str, count: int) -> list[tuple[str, str]]:
    """An account's only task so many times, a second apart, nearly all at rest; time and id of each."""
    connection = await asyncpg.connect(database_url)
    columns = [
        row["column_name"]
        for row in await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'task'"
        )
    ]
    changed = {
        "task_id": "gen_random_uuid()",
        "request_id": "gen_random_uuid()",
        "display_name": "'t' || n",
        "state": "CASE WHEN n % 20 = 0 THEN 'FAILED' WHEN n % 50 = 1 THEN 'STOPPED' ELSE 'SUCCEEDED' END",
        "created_at": "to_timestamp(n)",
        "ended_at": "to_timestamp(n)",
    }
    values = ", ".join(changed.get(name, name) for name in columns)
    await connection.execute(
        f"INSERT INTO task ({', '.join(columns)}) SELECT {values} FROM task, generate_series(1, $2::bigint) AS n "
        "WHERE account_id = $1",
        account_id,
        count,
        timeout=120,
    )
    await connection.execute("VACUUM ANALYZE task")
    rows = await connection.fetch("SELECT created_at, task_id FROM task WHERE account_id = $1", account_id)
    await connection.close()
    return [(row["created_at"].isoformat(), str(row["task_id"])) for row in rows]


def _task_pages(world: World, metadata: Metadata, moments: list[tuple[str, str]]) -> Call:
    async def call(draw: random.Random) -> object:
        request = task_pb2.ListTasksRequest(page_size=PAGE)
        kind = draw.choice(("all", "failed", "stopped", "both"))
        if kind in ("failed", "both"):
            request.states.append(task_pb2.TASK_STATE_FAILED)
        if kind in ("stopped", "both"):
            request.states.append(task_pb2.TASK_STATE_STOPPED)
        request.page_token = read_page(request).token(list(draw.choice(moments)))
        return await world.tasks.ListTasks(request, metadata=metadata)

    return call


async def _growth(name: str, calls: dict[int, Call], say: Say) -> Row:
    """In turns: the 99th percentile of CALLS at the large size against the small one."""
    few, many = sorted(calls)
    measured: dict[int, list[float]] = {few: [], many: []}
    for number in range(1, LEAST_ROUNDS + 1):
        for size, call in calls.items():
            measured[size].append(await _p99_ms(call, number))
        say(f"{name} {number}/{LEAST_ROUNDS}: {measured[many][-1]:.2f} against {measured[few][-1]:.2f} ms")
    return row(name, "ms", "<= 2.0", measured[many], measured[few])


async def _p99_ms(call: Call, seed: int) -> float:
    draw = random.Random(seed)
    taken_ms = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call(draw)
        taken_ms.append(1000 * (time.perf_counter() - started))
    return percentile(taken_ms, 0.99)
