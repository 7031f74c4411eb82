"""Wires a worker, top to bottom."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field

from saucer.lib.config import ProcessSettings
from saucer.lib.grpc_client import TokenFile
from saucer.lib.objects import Objects
from saucer.lib.run import Process, run
from saucer.worker.agent import RELEASE_S, Agent
from saucer.worker.catalogue import ZOO_URL

ID_PATTERN = "^[a-z][a-z0-9-]{0,39}$"


class WorkerSettings(ProcessSettings):
    """What a worker needs."""

    # host:port of the training service.
    training_address: str
    object_store_url: str
    # Of the role worker.
    token_file: Path
    # The runs that it takes.
    region_id: str = Field(pattern=ID_PATTERN)
    spec_id: str = Field(pattern=ID_PATTERN)
    # Names it in logs; empty: host and process id.
    worker_id: str = Field(default="", max_length=100)
    # Of this worker alone: cached images and the files of the present run.
    work_folder: Path
    # Images kept for the next run; a run that needs more keeps more until its end.
    cache_bytes: int = Field(default=20 * 1024**3, ge=0)
    # Of torch and of prediction; 0 stands for all cores.
    threads: int = Field(default=0, ge=0, le=1024)
    # The same run ends with the same bits, interrupted or not; slower.
    deterministic: bool = False
    # Of training; empty: the faster one, by a short trial.
    precision: Literal["", "bf16", "fp32"] = ""
    # Where pretrained weights come from the first time: the model zoo, or an object store with the same folders.
    catalogue_url: str = ZOO_URL
    # From the order to stop to the end of saving and giving back a run. Whoever kills the worker waits 10 s longer.
    release_s: float = Field(default=RELEASE_S, gt=0, le=3600)


async def wire(process: Process, settings: WorkerSettings) -> None:
    """The agent; it is stopped before anything else is."""
    agent = Agent(
        process.channel(settings.training_address),
        TokenFile(settings.token_file),
        Objects(settings.object_store_url),
        worker_id=settings.worker_id or f"{socket.gethostname()}-{os.getpid()}",
        region_id=settings.region_id,
        spec_id=settings.spec_id,
        work_folder=settings.work_folder,
        cache_bytes=settings.cache_bytes,
        threads=settings.threads,
        deterministic=settings.deterministic,
        precision=settings.precision,
        catalogue_url=settings.catalogue_url,
        release_s=settings.release_s,
    )
    process.background("agent", agent.run())
    # An operator's word, before work on the machine: `kill -USR1`.
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, agent.drain)
    process.stack.push_async_callback(agent.stop)


def main() -> None:
    """Runs until it is told to stop."""
    run("worker", WorkerSettings, wire)


if __name__ == "__main__":
    main()
