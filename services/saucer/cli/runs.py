"""`saucer run`: what a training says while it runs, and afterwards. A task's id stands for its present run."""

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from saucer.cli.app import (
    CHART,
    IDENTIFIER,
    MOMENT,
    App,
    FormFile,
    Topic,
    enum_choice,
    enum_number,
    found_or,
    limit_option,
    listed,
    pages,
    pass_app,
)
from saucer.cli.connection import follow
from saucer.cli.errors import CliError
from saucer.cli.exports import write_pieces
from saucer.cli.output import duration, either, enum_word, local_time, message_dict, moment, percent
from saucer.lib.clock import to_timestamp
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2

RUN = click.argument("run_id", type=IDENTIFIER, metavar="RUN_OR_TASK")
# Shown first, in this order, where a point has them; the engine's other values follow.
FIRST_VALUES = ("loss", "lr", "map_50", "map", "top_1")
T = TypeVar("T")
_LEVELS = training_pb2.LogLevel.DESCRIPTOR
_FORMATS = {
    ".txt": training_pb2.LOG_FORMAT_TEXT,
    ".log": training_pb2.LOG_FORMAT_TEXT,
    ".json": training_pb2.LOG_FORMAT_JSON,
    ".jsonl": training_pb2.LOG_FORMAT_JSON,
}


@click.group(cls=Topic)
def run() -> None:
    """A task's training."""


@run.command("list")
@click.option("--task", "task_id", type=IDENTIFIER, help="Only of this one.")
@limit_option()
@pass_app
def list_(app: App, task_id: str | None, limit: int) -> None:
    """Runs, newest first."""
    request = training_pb2.ListRunsRequest(account_id=app.connection.account_id, task_id=task_id or "")
    found = listed(app, app.connection.training.ListRuns, request, "runs", limit)
    app.output.listing(
        "",
        ("run id", "start", "attempts", "state", "stage", "progress", "elapsed", "best accuracy", "end", "created"),
        found,
        lambda item: (
            item.run_id,
            item.start_number,
            item.attempt,
            enum_word(item, "state"),
            enum_word(item, "stage"),
            percent(item.progress),
            duration(item.elapsed),
            either(item, "best_map_50", "best_top_1"),
            enum_word(item, "end_reason"),
            moment(item, "create_time"),
        ),
    )


@run.command()
@RUN
@click.option("--follow", "-f", "keep_following", is_flag=True, help="Wait for more, until the run ends.")
@click.option("--keyword", "keywords", multiple=True, help="Only lines with it; repeatable, all must occur.")
@click.option("--level", type=enum_choice(_LEVELS), help="This one and above.")
@click.option("--since", type=MOMENT, help="Local time.")
@click.option("--until", type=MOMENT, help="Local time.")
@click.option("--newest-first", is_flag=True)
@click.option(
    "--export",
    type=FormFile(_FORMATS),
    help="Write every line to a file: .txt or .log as text, .json or .jsonl as JSON.",
)
@limit_option(1000)
@pass_app
def logs(
    app: App,
    run_id: str,
    keep_following: bool,
    keywords: tuple[str, ...],
    level: str | None,
    since: datetime | None,
    until: datetime | None,
    newest_first: bool,
    export: Path | None,
    limit: int,
) -> None:
    """The log, as it was written or as it comes."""
    run_id = _run(app, run_id).run_id
    show = app.output.line if app.output.as_json else _log_printer(app)
    if keep_following:
        if keywords or level or since or until or newest_first or export:
            raise click.UsageError("--follow shows every line: leave the filters out.")
        training = app.connection.training
        lines = follow(
            lambda last: training.StreamLogLines(
                training_pb2.StreamLogLinesRequest(run_id=run_id, after_sequence=last.sequence if last else 0)
            )
        )
        _each(lines, show)
        return
    wanted: dict[str, Any] = {
        "run_id": run_id,
        "keywords": keywords,
        "min_level": enum_number(_LEVELS, level) if level else training_pb2.LOG_LEVEL_UNSPECIFIED,
        "start_time": to_timestamp(since),
        "end_time": to_timestamp(until),
    }
    if export is not None:
        request = training_pb2.ExportLogRequest(**wanted, format=_FORMATS[export.suffix.lower()])
        write_pieces(app, export, lambda: app.connection.training.ExportLog(request))
        return
    listing = training_pb2.ListLogLinesRequest(**wanted, newest_first=newest_first)
    _each(listed(app, app.connection.training.ListLogLines, listing, "lines", limit), show)


@run.command()
@RUN
@click.option("--follow", "-f", "keep_following", is_flag=True, help="Wait for more, until the run ends.")
@click.option("--plot", type=CHART, help="Draw the training curve as a PNG or SVG.")
@pass_app
def metrics(app: App, run_id: str, keep_following: bool, plot: Path | None) -> None:
    """Loss, learning rate, accuracy and what else the engine reports."""
    found = _run(app, run_id)
    training = app.connection.training
    if keep_following:
        points = []
        show = app.output.line if app.output.as_json else _metric_printer(app)
        for point in follow(
            lambda last: training.StreamMetrics(
                training_pb2.StreamMetricsRequest(run_id=found.run_id, after_sequence=last.sequence if last else 0)
            )
        ):
            points.append(point)
            show(point)
    else:
        listing = training_pb2.ListMetricsRequest(run_id=found.run_id)
        points = pages(app.connection.training.ListMetrics, listing, "points", None)
        if app.output.as_json:
            app.output.json([message_dict(point) for point in points])
        elif plot is None:
            _each(points, _metric_printer(app))
    if plot is not None:
        plot_metrics(plot, found, points)
        app.output.remark(f"Drawn: {plot}")


def plot_metrics(file: Path, run: training_pb2.Run, points: Iterable[training_pb2.MetricPoint]) -> None:
    """Draws the training curve. Raises CliError if the file cannot be written."""
    from saucer.drawing import charts  # noqa: PLC0415 - brings matplotlib, which the other commands need not wait for

    expected = run.config.expected_accuracy if run.config.HasField("expected_accuracy") else None
    rows = [{**point.values, "epoch": point.epoch} for point in points]
    try:
        charts.training_curve(file, rows, expected_accuracy=expected, title=f"Run {run.run_id}")
    except OSError as error:
        raise CliError(f"The picture cannot be written: {error}.") from error


def _run(app: App, identifier: str) -> training_pb2.Run:
    training = app.connection.training

    def of_task() -> training_pb2.Run:
        found = app.connection.task.GetTask(task_pb2.GetTaskRequest(task_id=identifier))
        if not found.run_id:
            raise CliError(f"The task {identifier} is {enum_word(found, 'state')} and has no run yet.")
        return training.GetRun(training_pb2.GetRunRequest(run_id=found.run_id))

    return found_or(lambda: training.GetRun(training_pb2.GetRunRequest(run_id=identifier)), of_task)


def _each(items: Iterable[T], show: Callable[[T], None]) -> None:
    for item in items:
        show(item)


def _log_printer(app: App) -> Callable[[training_pb2.LogLine], None]:
    def show(line: training_pb2.LogLine) -> None:
        app.output.say(f"{local_time(line.time)}  {enum_word(line, 'level').upper():7}  {line.text}")

    return show


def _metric_printer(app: App) -> Callable[[training_pb2.MetricPoint], None]:
    def show(point: training_pb2.MetricPoint) -> None:
        names = [name for name in FIRST_VALUES if name in point.values]
        names += sorted(set(point.values) - set(names))
        values = "  ".join(f"{name} {point.values[name]:.4g}" for name in names)
        app.output.say(f"epoch {point.epoch:7.2f}  iteration {point.iteration:6d}  {values}")

    return show
