"""What tests of evaluation share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from tests.integration.evaluation.world import Start, World
from tests.support.services import ServiceRunner, Tokens


@pytest.fixture
def start(run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, tmp_path: Path) -> Start:
    return Start(run_service, tokens, jetstream, tmp_path)


@pytest.fixture
async def world(start: Start) -> AsyncIterator[World]:
    async with start() as world:
        yield world
