"""`saucer worker`, `saucer queue`: for administrators."""

import click

from saucer.cli.app import App, Topic, limit_option, listed, pass_app
from saucer.cli.output import enum_word, moment
from saucer.training.v1 import training_pb2

WORKER = click.argument("worker_id", metavar="WORKER")


@click.group(cls=Topic)
def worker() -> None:
    """Processes that train."""


@worker.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """Every worker that asked for a run in the last week."""
    found = listed(app, app.connection.training.ListWorkers, training_pb2.ListWorkersRequest(), "workers", limit)
    app.output.listing("", ("worker", "region", "spec", "state", "run id", "seen"), found, _row)


@worker.command()
@WORKER
@pass_app
def drain(app: App, worker_id: str) -> None:
    """Let it end the run that it has, and give it no other until `worker resume`."""
    _print(app, app.connection.training.DrainWorker(training_pb2.DrainWorkerRequest(worker_id=worker_id)))


@worker.command()
@WORKER
@pass_app
def resume(app: App, worker_id: str) -> None:
    """Give it runs again."""
    _print(app, app.connection.training.ResumeWorker(training_pb2.ResumeWorkerRequest(worker_id=worker_id)))


@click.group(cls=Topic)
def queue() -> None:
    """What waits for workers."""


@queue.command("list")
@pass_app
def queues(app: App) -> None:
    """How deep the queues are, by region and spec."""
    found = app.connection.training.ListQueues(training_pb2.ListQueuesRequest()).queues
    app.output.listing(
        "",
        ("region", "spec", "queued", "at work", "workers", "oldest since"),
        found,
        lambda item: (
            item.region_id,
            item.spec_id,
            item.queued,
            item.at_work,
            item.workers,
            moment(item, "oldest_queued_time"),
        ),
    )


def _row(worker: training_pb2.Worker) -> tuple[object, ...]:
    return (
        worker.worker_id,
        worker.region_id,
        worker.spec_id,
        enum_word(worker, "state"),
        worker.run_id,
        moment(worker, "seen_time"),
    )


def _print(app: App, worker: training_pb2.Worker) -> None:
    names = ("worker", "region", "spec", "state", "run id", "seen")
    app.output.record("", worker, list(zip(names, _row(worker), strict=True)))
