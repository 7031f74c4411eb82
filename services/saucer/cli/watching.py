"""Follows a task: a bar on a terminal, a line for each change elsewhere, JSON lines with --json."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from saucer.cli.app import App
from saucer.cli.connection import follow
from saucer.cli.errors import CliError
from saucer.cli.output import duration, either, enum_word, money, percent, ratio
from saucer.lib.money import charge_micros
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2

FAILED = {task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_REFUSED}
AT_REST = FAILED | {task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_STOPPED}
# Without a terminal, a line for each such share of progress.
PLAIN_STEP = 0.05
TICK_S = 1.0

Show = Callable[[task_pb2.Task], None]


def watch_task(app: App, task_id: str) -> task_pb2.Task:
    """The task, at rest. Survives a restart of the services; the task goes on whether it is watched or not."""
    if app.output.as_json:
        return _follow(app, task_id, app.output.line)
    if not app.output.live:
        with _ticking(app, _lines(app)) as show:
            return _follow(app, task_id, show)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[more]}"))
    with Progress(*columns, console=app.output.stderr) as progress:
        bar = progress.add_task("…", total=1.0, more="")

        def draw(task: task_pb2.Task) -> None:
            progress.update(bar, description=_stage(task), completed=task.progress, more=_figures(task))

        with _ticking(app, draw) as show:
            return _follow(app, task_id, show)


@contextmanager
def _ticking(app: App, show: Show) -> Iterator[Show]:
    """Shows a task as it comes and, while it trains, its run each second: a task hears of its run once an epoch."""
    present: list[task_pb2.Task] = []
    ended = threading.Event()
    lock = threading.Lock()

    def take(task: task_pb2.Task) -> None:
        with lock:
            present[:] = [task]
            show(task)

    def tick() -> None:
        while not ended.wait(TICK_S):
            task = present[0] if present else None
            if task is None or task.state != task_pb2.TASK_STATE_TRAINING or not task.run_id:
                continue
            try:
                run = app.connection.training.GetRun(training_pb2.GetRunRequest(run_id=task.run_id))
            except grpc.RpcError:
                continue  # the stream tells what is wrong, or it passes
            with lock:
                if present[0] is task:
                    show(_with_run(task, run))

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield take
    finally:
        ended.set()
        ticker.join()


def _with_run(task: task_pb2.Task, run: training_pb2.Run) -> task_pb2.Task:
    """The task with what its run says now."""
    shown = task_pb2.Task()
    shown.CopyFrom(task)
    shown.MergeFrom(
        task_pb2.Task(
            stage=run.stage,
            progress=run.progress,
            epoch=run.epoch,
            attempt=run.attempt,
            elapsed=run.elapsed,
            time_left=run.time_left if run.HasField("time_left") else None,
            best_map_50=run.best_map_50 if run.HasField("best_map_50") else None,
            best_top_1=run.best_top_1 if run.HasField("best_top_1") else None,
            cost_micros=charge_micros(task.price_per_hour_micros, task.form.count, run.charged_ms),
        )
    )
    return shown


def _follow(app: App, task_id: str, show: Show) -> task_pb2.Task:
    request = task_pb2.WatchTaskRequest(task_id=task_id)
    last = None
    for task in follow(lambda _: app.connection.task.WatchTask(request)):
        show(task)
        last = task
    if last is None:
        raise CliError(f"The task {task_id} says nothing; ask again.")
    return last


def _lines(app: App) -> Show:
    last: tuple[object, ...] = ()

    def show(task: task_pb2.Task) -> None:
        nonlocal last
        best = either(task, "best_map_50", "best_top_1")
        now = (task.state, task.stage, task.attempt, int(task.progress / PLAIN_STEP), best)
        if now != last:
            last = now
            app.output.remark(f"{_stage(task)}  {percent(task.progress)}  {_figures(task)}")

    return show


def _stage(task: task_pb2.Task) -> str:
    state, stage = enum_word(task, "state"), enum_word(task, "stage")
    return stage if task.state == task_pb2.TASK_STATE_TRAINING and stage else state


def _figures(task: task_pb2.Task) -> str:
    """Epoch, time, cost, accuracy: each where it is known."""
    parts = []
    if task.config.epochs and task.epoch:
        parts.append(f"epoch {task.epoch:.1f} of {task.config.epochs}")
    if task.HasField("elapsed"):
        most = f" of {duration(task.config.max_duration)}" if task.config.HasField("max_duration") else ""
        parts.append(f"{duration(task.elapsed)}{most}")
    if task.HasField("time_left"):
        parts.append(f"{duration(task.time_left)} left")
    parts.append(f"{money(task.cost_micros, task.currency)} so far")
    best = either(task, "best_map_50", "best_top_1")
    if best != "-":
        expected, name = ratio(task.config, "expected_accuracy"), "top-1" if task.config.classification else "map_50"
        parts.append(f"best {name} {best}" + (f" of {expected}" if expected != "-" else ""))
    if task.attempt > 1:
        parts.append(f"attempt {task.attempt}")
    if task.stop_requested and task.state not in AT_REST:
        parts.append("stopping")
    return " · ".join(parts)
