"""Steady callers of one deployment, inside and outside."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import numpy as np
import tritonclient.grpc

from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import Online, jpeg


@dataclass
class Load:
    """What steady callers saw."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def answered(self, begun_s: float) -> None:
        self.answers += 1
        self.longest_s = max(self.longest_s, time.monotonic() - begun_s)


@asynccontextmanager
async def steady_load(world: Online, deployment: publishing_pb2.Deployment) -> AsyncIterator[Load]:
    """An outside tritonclient, and Predict, one request after another until the block ends."""
    load, done = Load(), Event()
    headers = dict(world.owner(deployment.account_id))

    def outside() -> None:
        client = tritonclient.grpc.InferenceServerClient(world.address)
        tensor = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[jpeg(180)]], dtype=object))
        while not done.is_set():
            begun_s = time.monotonic()
            try:
                client.infer(deployment.deployment_id, [tensor], headers=headers, client_timeout=20)
                load.answered(begun_s)
            except Exception as error:  # whatever it is, it is a failed request
                load.failures.append(repr(error))
        client.close()

    async def inside() -> None:
        while not done.is_set():
            begun_s = time.monotonic()
            try:
                await world.predict(deployment, jpeg(180))
                load.answered(begun_s)
            except Exception as error:
                load.failures.append(repr(error))

    thread, task = Thread(target=outside), asyncio.create_task(inside())
    thread.start()
    try:
        yield load
    finally:
        done.set()
        await task
        await asyncio.to_thread(thread.join)
