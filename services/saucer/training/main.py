"""Wires training, top to bottom."""

from saucer.lib.config import ServiceSettings
from saucer.lib.objects import Objects
from saucer.lib.run import Process, run
from saucer.training import consumers, rpc, watching
from saucer.training.bell import Bell
from saucer.training.reading import Reading
from saucer.training.service import Training
from saucer.training.sweeper import run_sweeper


class TrainingSettings(ServiceSettings):
    """What training needs beside the usual."""

    # file:///folder, s3://bucket/prefix.
    object_store_url: str


async def wire(process: Process, settings: TrainingSettings) -> None:
    """Database, object store, events in and out, gRPC, the sweeper."""
    database = await process.database(settings, "saucer.training")
    jetstream = await process.jetstream(settings.nats_url)
    process.relay(database, jetstream)
    process.gauges(database, *watching.READINGS)
    objects = Objects(settings.object_store_url)
    bell = Bell()
    training = Training(database, objects, bell)
    dead_events = process.consumer(database, jetstream, consumers.handlers(training))
    servicers = [rpc.training_servicer(Reading(database, objects, bell)), rpc.worker_servicer(training), dead_events]
    await process.serve(settings, servicers)
    process.stack.callback(training.close)
    process.background("sweeper", run_sweeper(training))


def main() -> None:
    """Runs until it is told to stop."""
    run("training", TrainingSettings, wire)


if __name__ == "__main__":
    main()
