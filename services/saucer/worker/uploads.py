"""A run's checkpoints on their way into the object store, while training goes on."""

import asyncio
import os
from pathlib import Path

import structlog

from saucer.lib.errors import DomainError, UnavailableError
from saucer.lib.objects import Objects
from saucer.training.v1 import training_pb2
from saucer.worker import job as protocol
from saucer.worker import transfer
from saucer.worker.heart import Heart

# Before an upload is tried again while the object store does not answer; how often is up to the lease.
RETRY_S = 1.0

log = structlog.get_logger()


class Checkpoints:
    """Sends checkpoints to the object store while training goes on, always the newest; reports what is whole there.

    A run is saved at one iteration more than once, with and without what a validation found. Each checkpoint has a key
    of its own, so that the one that the service knows stays what its checksum says until the service knows another.
    """

    def __init__(self, prefix: str, objects: Objects, folder: Path, heart: Heart) -> None:
        # Iterations of those that the service knows.
        self.kept: asyncio.Queue[int] = asyncio.Queue()
        self._prefix = prefix
        self._objects = objects
        self._folder = folder
        self._heart = heart
        self._waiting: tuple[Path, protocol.Checkpoint] | None = None
        self._offered = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._known_key: str | None = None
        # Checkpoints of this attempt so far.
        self._number = 0

    def offer(self, checkpoint: protocol.Checkpoint) -> None:
        """Takes a checkpoint over; one that still waits makes room. The child may remove its own file at any time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        file = self._folder / f"checkpoint_{checkpoint.iteration}_{self._number}.pth"
        os.link(checkpoint.path, file)
        if self._waiting is not None:
            self._waiting[0].unlink(missing_ok=True)
        self._waiting = (file, checkpoint)
        self._idle.clear()
        self._offered.set()

    async def drain(self) -> None:
        """Until what was offered is in the object store and known to the service, or has failed."""
        await self._idle.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._offered.wait()
            self._offered.clear()
            if self._waiting is None:
                continue
            (file, checkpoint), self._waiting = self._waiting, None
            try:
                await self._send(file, checkpoint)
            except UnavailableError as error:
                self._told(error)
                self._idle.set()
                await asyncio.sleep(RETRY_S)
                # Training may wait for this one; no newer one comes then.
                if self._waiting is None:
                    self._waiting = (file, checkpoint)
                    self._offered.set()
                    continue
            except (DomainError, OSError) as error:
                self._told(error)
            file.unlink(missing_ok=True)
            if self._waiting is None:
                self._idle.set()

    def _told(self, error: Exception) -> None:
        self._heart.line(f"A checkpoint was not kept: {error}", training_pb2.LOG_LEVEL_WARNING)
        log.warning("checkpoint_not_kept", error=repr(error))

    async def _send(self, file: Path, checkpoint: protocol.Checkpoint) -> None:
        key = f"{self._prefix}/checkpoints/{file.name}"
        uploaded = await transfer.upload(self._objects, file, key)
        await self._heart.checkpoint(uploaded, checkpoint.iteration, checkpoint.elapsed_ms)
        self.kept.put_nowait(checkpoint.iteration)
        former, self._known_key = self._known_key, key
        if former is not None:
            try:
                await self._objects.delete(former)
            except UnavailableError as error:  # it goes with what the run leaves
                log.warning("checkpoint_not_removed", error=repr(error))
