"""Task as it runs, with the real billing, and a dataset service that knows one version."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.task.world import World, playing
from tests.support.services import ServiceRunner


@pytest.fixture
async def world(run_service: ServiceRunner) -> AsyncIterator[World]:
    async with playing(run_service) as world:
        yield world
