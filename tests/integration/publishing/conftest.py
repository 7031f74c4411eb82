"""Servers that tests of publishing share."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from saucer.local.servers import TritonServer
from saucer.local.triton_env import TritonEnvironment


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
