"""Wires training, top to bottom."""

from datetime import timedelta
from functools import partial

from pydantic import Field

from saucer.lib.config import ServiceSettings
from saucer.lib.objects import Objects
from saucer.lib.retention import Forget
from saucer.lib.run import Process, run
from saucer.training import consumers, rpc, watching
from saucer.training.bell import Bell
from saucer.training.copies import COPY_EVERY_S, make_due
from saucer.training.leftovers import REMOVE_EVERY_S, remove_all
from saucer.training.service import Training
from saucer.training.service.reading import Reading
from saucer.training.store.told import DELETE_OLD_LOGS
from saucer.training.store.workers import DELETE_OLD_WORKERS
from saucer.training.sweeper import SWEEP_S, Sweeper

# A worker that asked for nothing for so long is listed no more; drained ones go too.
WORKERS_KEEP = timedelta(days=7)


class TrainingSettings(ServiceSettings):
    """What training needs beside the usual."""

    # file:///folder, s3://bucket/prefix.
    object_store_url: str
    # Log lines of runs that ended longer ago are deleted; metrics stay.
    logs_keep_days: int = Field(default=90, ge=1, le=3650)
    # Objects of attempts that nothing names are removed so long after their run's end.
    attempts_keep_days: int = Field(default=7, ge=1, le=3650)


def retention_rules(settings: TrainingSettings) -> list[Forget]:
    """What training forgets besides the usual."""
    return [
        Forget("log_line", timedelta(days=settings.logs_keep_days), DELETE_OLD_LOGS),
        Forget("worker", WORKERS_KEEP, DELETE_OLD_WORKERS),
    ]


async def wire(process: Process, settings: TrainingSettings) -> None:
    """Database, object store, events in and out, gRPC, the sweeper."""
    database = await process.database(settings, "saucer.training")
    jetstream = await process.jetstream(settings)
    process.relay(database, jetstream)
    process.retention(settings, database, *retention_rules(settings))
    process.gauges(database, *watching.READINGS)
    objects = Objects(settings.object_store_url)
    bell = Bell()
    training = Training(database, objects, bell)
    dead_events = process.consumer(database, jetstream, consumers.handlers(training))
    reading = Reading(database, objects, bell)
    servicers = [rpc.training_servicer(reading, training), rpc.worker_servicer(training), dead_events]
    await process.serve(settings, servicers, database)
    process.stack.callback(training.leases.close)
    process.rounds("sweep", Sweeper(training).sweep_once, SWEEP_S)
    process.rounds("copies", partial(make_due, database, objects), COPY_EVERY_S)
    keep = timedelta(days=settings.attempts_keep_days)
    process.rounds("leftovers", partial(remove_all, database, objects, keep), REMOVE_EVERY_S)


def main() -> None:
    """Runs until it is told to stop."""
    run("training", TrainingSettings, wire)


if __name__ == "__main__":
    main()
