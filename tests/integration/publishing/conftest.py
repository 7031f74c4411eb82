"""Servers that tests of publishing share, and the world that they deploy in."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from saucer.local.servers import TritonServer
from saucer.local.triton_env import TritonEnvironment
from tests.integration.publishing.online import Online, online
from tests.support.services import ServiceRunner, Tokens


@asynccontextmanager
async def _another(
    name: str, folder: Path, first: TritonServer, environment: TritonEnvironment
) -> AsyncIterator[TritonServer]:
    """A server that opens its control calls to the same key as the first."""
    (folder / name).mkdir()
    shutil.copy(first.data_dir / "passwords.json", folder / name)
    server = TritonServer(folder / name, folder / name / "repository", environment)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
async def second(
    tmp_path: Path, triton: TritonServer, triton_environment: TritonEnvironment
) -> AsyncIterator[TritonServer]:
    async with _another("second", tmp_path, triton, triton_environment) as server:
        yield server


@pytest.fixture
async def third(
    tmp_path: Path, triton: TritonServer, triton_environment: TritonEnvironment
) -> AsyncIterator[TritonServer]:
    async with _another("third", tmp_path, triton, triton_environment) as server:
        yield server


@pytest.fixture
async def world(
    run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, triton: TritonServer, tmp_path: Path
) -> AsyncIterator[Online]:
    if not triton.running:  # one that crashed fails the test in which it did, and no other
        await triton.start()
    async with online(run_service, tokens, jetstream, triton, tmp_path) as made:
        yield made
