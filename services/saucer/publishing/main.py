"""Wires publishing, top to bottom."""

import asyncio
import os
import shutil
import socket
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from pydantic import Field

from saucer.lib.config import CallingSettings
from saucer.lib.errors import InvalidArgumentError
from saucer.lib.grpc_client import TokenFile
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.lib.run import Process, run
from saucer.publishing import consumers, kserve, rpc, watching
from saucer.publishing.domain import Triton
from saucer.publishing.endpoint import TELL_TRAFFIC_S, TELL_USE_S, Endpoint
from saucer.publishing.fleet import Fleet
from saucer.publishing.limits import Limits
from saucer.publishing.peers import Peers
from saucer.publishing.placement import Placement
from saucer.publishing.reconcile import Reconciler
from saucer.publishing.sampling import sample
from saucer.publishing.service import SWEEP_S, Deployments
from saucer.publishing.store import versions as version_store
from saucer.publishing.store.monitoring import retention_rules
from saucer.publishing.triton import TritonClient
from saucer.serving.triton_config import TRIAL_S

log = structlog.get_logger()


class PublishingSettings(CallingSettings):
    """What publishing needs besides."""

    billing_address: str
    object_store_url: str
    # A Triton server, which is registered under this id; RegisterTriton registers more. host:port of its gRPC, the key
    # that opens the control calls of all of them, its model repository as a folder that this process can write, and
    # what it is in billing's words.
    triton_id: str = "local"
    triton_address: str
    triton_control_key: str = ""
    triton_repository: Path
    region_id: str
    spec_id: str
    # Models that it takes; further deployments wait, QUEUED.
    room: int = Field(default=8, ge=1, le=1000)
    # The shape of a model there: processor threads that one copy of it may use, and copies, each a process. One with
    # all threads answers soonest; several with fewer answer more images a second, for the memory of each.
    triton_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    triton_copies: int = Field(default=1, ge=1, le=64)
    # Whether models compute on its first GPU.
    triton_gpu: bool = False
    # What a model's first load may take there, in a child process; one that takes longer is refused.
    triton_trial_s: float = Field(default=TRIAL_S, gt=0, le=90)
    # Whether the fastest runtime is found by measurement, once for each model and spec, or again after a while if one
    # failed, and serves if the replay agrees; else the one of evaluations serves, or what was found before.
    triton_choose_runtime: bool = True
    # What one token may ask for of one replica of publishing, at most a second's worth at once; more is
    # RESOURCE_EXHAUSTED. An image is a request, and so is any other call of KServe's, as whether a model is ready.
    token_requests_per_s: float = Field(default=500.0, gt=0)
    token_megabytes_per_s: float = Field(default=200.0, gt=0)
    # Series, events and log lines of deployments.
    monitoring_keep_days: int = Field(default=7, ge=1, le=365)
    # Scratch, of this process alone.
    work_folder: Path


async def wire(process: Process, settings: PublishingSettings) -> None:
    """Database, billing, Triton, events in and out, the sweeper, the reconciler, gRPC."""
    database = await process.database(settings, "saucer.publishing")
    jetstream = await process.jetstream(settings)
    process.relay(database, jetstream)
    monitoring = retention_rules(timedelta(days=settings.monitoring_keep_days))
    process.retention(settings, database, *monitoring, version_store.RETENTION)
    process.gauges(database, *watching.READINGS)
    peers = Peers(process.channel(settings.billing_address), TokenFile(settings.token_file))
    deployments = Deployments(database, peers)
    await register_own(deployments, _own_triton(settings))
    dead_events = process.consumer(database, jetstream, consumers.handlers(deployments))
    process.rounds("sweep", deployments.sweep, SWEEP_S)
    objects = Objects(settings.object_store_url)

    def place(client: TritonClient, triton: Triton) -> Placement:
        return Placement(
            client,
            objects,
            deployments.gates,
            deployments.monitoring,
            triton,
            work_folder=settings.work_folder / triton.triton_id,
            trial_s=settings.triton_trial_s,
            choose_runtime=settings.triton_choose_runtime,
        )

    fleet = Fleet(deployments.tritons, settings.triton_control_key, place)
    process.stack.push_async_callback(fleet.close)
    # What a killed predecessor left.
    await asyncio.to_thread(shutil.rmtree, settings.work_folder, ignore_errors=True)
    replica = f"{socket.gethostname()}-{os.getpid()}-{new_id()}"
    reconciler = Reconciler(deployments, fleet, holder=replica)
    process.background("reconcile", reconciler.run())
    endpoint = Endpoint(
        deployments, fleet, Limits(settings.token_requests_per_s, settings.token_megabytes_per_s * 1_000_000)
    )
    process.rounds("tell_use", endpoint.tell_use, TELL_USE_S, at_once=False)
    process.background("sample", sample(fleet, deployments.monitoring))
    # The stop is in the opposite order: by then the server and these rounds have ended.
    process.stack.push_async_callback(endpoint.tell_last_traffic, replica)
    process.rounds("tell_traffic", partial(endpoint.tell_traffic, replica), TELL_TRAFFIC_S, at_once=False)
    await process.serve(
        settings, [rpc.servicer(deployments, endpoint, fleet), kserve.servicer(endpoint, fleet), dead_events], database
    )


async def register_own(deployments: Deployments, triton: Triton) -> None:
    """One that is refused keeps nobody from unregistering the other, and the others from serving: it is only logged."""
    try:
        await deployments.tritons.register(triton)
    except InvalidArgumentError as error:
        log.error("own_triton_refused", triton_id=triton.triton_id, error=error.message)


def _own_triton(settings: PublishingSettings) -> Triton:
    return Triton(
        settings.triton_id,
        settings.triton_address,
        str(settings.triton_repository),
        settings.region_id,
        settings.spec_id,
        settings.room,
        settings.triton_threads,
        settings.triton_copies,
        settings.triton_gpu,
    )


def main() -> None:
    """Runs until it is told to stop."""
    run("publishing", PublishingSettings, wire)


if __name__ == "__main__":
    main()
