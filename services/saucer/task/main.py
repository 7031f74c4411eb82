"""Wires task, top to bottom."""

from saucer.lib.config import CallingSettings
from saucer.lib.grpc_client import TokenFile
from saucer.lib.run import Process, run
from saucer.task import consumers, rpc, scenes, watching
from saucer.task.peers import Peers
from saucer.task.service import SWEEP_S, Tasks


class TaskSettings(CallingSettings):
    """What task needs besides."""

    dataset_address: str
    billing_address: str
    # Workers reach the catalogue's addresses, or its weights are in the object store: then a GPU starts from COCO.
    fetches_weights: bool = False


async def wire(process: Process, settings: TaskSettings) -> None:
    """Database, peers, events in and out, the sweeper, gRPC."""
    database = await process.database(settings, "saucer.task")
    jetstream = await process.jetstream(settings)
    process.relay(database, jetstream)
    process.retention(settings, database)
    process.gauges(database, *watching.READINGS)
    peers = Peers(
        process.channel(settings.dataset_address),
        process.channel(settings.billing_address),
        TokenFile(settings.token_file),
    )
    tasks = Tasks(database, peers, scenes.load(), fetches_weights=settings.fetches_weights)
    dead_events = process.consumer(database, jetstream, consumers.handlers(tasks))
    process.rounds("sweep", tasks.sweep_once, SWEEP_S)
    await process.serve(settings, [rpc.servicer(tasks), dead_events], database)


def main() -> None:
    """Runs until it is told to stop."""
    run("task", TaskSettings, wire)


if __name__ == "__main__":
    main()
