"""Wires publishing, top to bottom."""

import os
import socket
from pathlib import Path

from pydantic import Field

from saucer.lib.config import ServiceSettings
from saucer.lib.grpc_client import TokenFile
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.lib.run import Process, run
from saucer.publishing import consumers, kserve, rpc, watching
from saucer.publishing.endpoint import Endpoint
from saucer.publishing.peers import Peers
from saucer.publishing.placement import Placement
from saucer.publishing.reconcile import Reconciler
from saucer.publishing.service import Deployments, Offer
from saucer.publishing.triton import TritonClient


class PublishingSettings(ServiceSettings):
    """What publishing needs besides."""

    billing_address: str
    object_store_url: str
    # The Triton server: host:port of its gRPC, the key that opens its control calls, its model repository as a folder
    # that this process can write, and what it is in billing's words.
    triton_address: str
    triton_control_key: str = ""
    triton_repository: Path
    region_id: str
    spec_id: str
    # Models that it takes; further deployments wait, QUEUED.
    room: int = Field(default=8, ge=1, le=1000)
    # Processor threads that one model may use there.
    triton_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    # Scratch, of this process alone.
    work_folder: Path


async def wire(process: Process, settings: PublishingSettings) -> None:
    """Database, billing, Triton, events in and out, the sweeper, the reconciler, gRPC."""
    database = await process.database(settings, "saucer.publishing")
    jetstream = await process.jetstream(settings.nats_url)
    process.relay(database, jetstream)
    await process.retention(settings, database, jetstream)
    process.gauges(database, *watching.READINGS)
    peers = Peers(process.channel(settings.billing_address), TokenFile(settings.token_file))
    deployments = Deployments(database, peers, Offer(settings.region_id, settings.spec_id, settings.room))
    dead_events = process.consumer(database, jetstream, consumers.handlers(deployments))
    process.background("sweep", deployments.sweep())
    triton = TritonClient(settings.triton_address, settings.triton_control_key)
    process.stack.push_async_callback(triton.close)
    placement = Placement(
        triton,
        Objects(settings.object_store_url),
        model_repository=settings.triton_repository,
        work_folder=settings.work_folder,
        threads=settings.triton_threads,
    )
    reconciler = Reconciler(deployments, placement, holder=f"{socket.gethostname()}-{os.getpid()}-{new_id()}")
    process.background("reconcile", reconciler.run())
    endpoint = Endpoint(deployments, triton)
    await process.serve(settings, [rpc.servicer(deployments, endpoint), kserve.servicer(endpoint, triton), dead_events])


def main() -> None:
    """Runs until it is told to stop."""
    run("publishing", PublishingSettings, wire)


if __name__ == "__main__":
    main()
