"""Task as it runs, with the real billing, and a dataset service that knows one version."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from saucer.billing.main import wire as wire_billing
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.lib.auth import Verifier
from saucer.lib.config import ServiceSettings
from saucer.lib.grpc_server import Server, Servicer
from saucer.task.main import TaskSettings
from saucer.task.main import wire as wire_task
from tests.integration.task.world import OneVersion, World
from tests.support.services import ServiceRunner, Tokens


@pytest.fixture
async def world(run_service: ServiceRunner, tokens: Tokens) -> AsyncIterator[World]:
    data = OneVersion()  # type: ignore[abstract] # the calls it lacks answer UNIMPLEMENTED
    async with AsyncExitStack() as stack:
        dataset = Server(
            "127.0.0.1:0",
            Verifier(tokens.public_keys_file),
            [
                Servicer(
                    data,
                    dataset_pb2_grpc.add_DatasetServiceServicer_to_server,
                    dataset_pb2.DESCRIPTOR.services_by_name["DatasetService"],
                )
            ],
        )
        await dataset.start()
        stack.push_async_callback(dataset.stop)
        billing = await stack.enter_async_context(run_service("billing", ServiceSettings, wire_billing))
        task = await stack.enter_async_context(
            run_service(
                "task",
                TaskSettings,
                wire_task,
                dataset_address=dataset.address,
                billing_address=billing.address,
            )
        )
        world = World(task.channel, billing.channel, data, tokens)
        await world.offer()
        yield world
