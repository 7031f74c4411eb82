"""A run's checkpoints on their way into the object store, while training goes on."""

import asyncio
import contextlib
import os
from pathlib import Path

import structlog

from saucer.lib.errors import DomainError
from saucer.lib.objects import Objects
from saucer.training.v1 import training_pb2
from saucer.worker import job as protocol
from saucer.worker import transfer
from saucer.worker.heart import Heart

log = structlog.get_logger()


class Checkpoints:
    """Sends checkpoints to the object store while training goes on, always the newest; reports what is whole there."""

    def __init__(self, prefix: str, objects: Objects, folder: Path, heart: Heart) -> None:
        self._prefix = prefix
        self._objects = objects
        self._folder = folder
        self._heart = heart
        self._waiting: tuple[Path, protocol.Checkpoint] | None = None
        self._offered = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._known_key: str | None = None

    def offer(self, checkpoint: protocol.Checkpoint) -> None:
        """Takes a checkpoint over; one that still waits makes room. The child may remove its own file at any time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"checkpoint_{checkpoint.iteration}.pth"
        with contextlib.suppress(FileExistsError):
            os.link(checkpoint.path, file)
        if self._waiting is not None and self._waiting[0] != file:
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
            except (DomainError, OSError) as error:
                self._heart.line(f"A checkpoint was not kept: {error}", training_pb2.LOG_LEVEL_WARNING)
                log.warning("checkpoint_not_kept", error=repr(error))
            finally:
                file.unlink(missing_ok=True)
            if self._waiting is None:
                self._idle.set()

    async def _send(self, file: Path, checkpoint: protocol.Checkpoint) -> None:
        key = f"{self._prefix}/checkpoints/{file.name}"
        uploaded = await transfer.upload(self._objects, file, key)
        await self._heart.checkpoint(uploaded, checkpoint.iteration, checkpoint.elapsed_ms)
        former, self._known_key = self._known_key, key
        if former is not None and former != key:
            await self._objects.delete(former)
