"""Metrics and log of a run: in order, bounded, and kept for as long as they are to be."""

from datetime import timedelta

import pytest

from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.retention import forget
from saucer.training.bell import Bell
from saucer.training.domain import EndReason, LogSearch
from saucer.training.log_limit import BURST, LINES_PER_S
from saucer.training.main import TrainingSettings, retention_rules
from saucer.training.service import Logged, Measured, attempts
from saucer.training.service.reading import Reading
from saucer.training.store import log_search, models
from tests.support.training_lab import LEASE, SECOND, Lab


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


async def test_the_log_that_is_left_has_what_lost_attempts_logged(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LOG_BATCH", 2)
    run_id = await lab.queue()
    first = await lab.worker()
    await first.beat(lines=[Logged(2, lab.clock.time, f"line {number}") for number in range(5)])
    lab.clock.advance(LEASE + SECOND)
    await lab.training.sweep(expire=True)
    lab.clock.advance(timedelta(hours=1))
    second = await lab.worker()
    await second.beat(lines=[Logged(2, lab.clock.time, "resumed")])
    files = await second.files(("model.onnx", "model.json", "log.txt"))
    run = await second.finish(files=files)
    assert run.model_id is not None
    async with lab.database.reading() as connection:
        model = await models.get_model(connection, run.model_id)
    assert model is not None
    log = next(file for file in model.files if file.name == "log.txt")
    text = (await lab.objects.get(log.key, sha256=log.sha256)).decode()
    *earlier, own = text.splitlines()
    assert [line.partition("] ")[2] for line in earlier if "line" in line] == [f"line {number}" for number in range(5)]
    assert own == "log.txt", "the worker's own follows as it is"
    assert log.size_bytes == len(text)
    copied = await lab.objects.get(f"{run.request.output_prefix}/{run.request.task_id}/{run.model_id}/log.txt")
    assert copied.decode() == text
    assert (await lab.run(run_id)).model_id == run.model_id
