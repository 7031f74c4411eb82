"""Publishing killed at each step of a publish, and two processes of it at once: one deployment, one hold, one load."""

from __future__ import annotations  # the stubs' asynchronous classes exist only for type checkers

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import grpc
import pytest

from saucer.lib.auth import Role
from saucer.lib.ids import new_id
from saucer.local.ports import choose_port
from saucer.local.servers import TritonServer
from saucer.publishing import repository
from saucer.publishing.placement import model_name
from saucer.publishing.triton import TritonClient
from saucer.publishing.v1 import publishing_pb2, publishing_pb2_grpc
from tests.integration.publishing.killed import STEPS
from tests.integration.publishing.online import HOLD_MICROS, Online, jpeg
from tests.support.events import until

# Each waits for the killed process's lease to end; the other steps are in `make soak`.
USUAL_STEPS = ("billing has granted the hold", "Triton has loaded it")


@asynccontextmanager
async def process_of(
    world: Online, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, publishing_pb2_grpc.PublishingServiceAsyncStub]]:
    """Publishing as a process of its own, and its stub once it serves."""
    folder = world.folder / new_id()
    folder.mkdir()
    settings = world.settings | {
        "listen": f"127.0.0.1:{choose_port()}",
        "nats_url": world.run_service.nats_url,
        "public_keys_file": world.tokens.public_keys_file,
        "token_file": world.tokens.file(Role.SERVICE),
        "work_folder": folder / "work",
        "log_level": "ERROR",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.publishing.killed", *arguments),
        env=os.environ | {f"SAUCER_{name.upper()}": str(value) for name, value in settings.items()},
    )
    try:
        async with grpc.aio.insecure_channel(settings["listen"]) as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            yield process, publishing_pb2_grpc.PublishingServiceStub(channel)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[] if step in USUAL_STEPS else [pytest.mark.soak]) for step in STEPS]
)
async def test_publishing_killed_in_a_publish_leaves_one_deployment_with_one_hold_and_one_load(
    world: Online, triton: TritonServer, triton_client: TritonClient, step: str
) -> None:
    account_id = await world.account()
    form, owner = world.form(await world.model(account_id)), world.owner(account_id)
    async with process_of(world, step) as (process, publishing):

        async def asked() -> bool:
            try:
                await publishing.CreateDeployment(form, metadata=owner, timeout=20)
            except grpc.aio.AioRpcError as error:  # killed in the middle of the call, if it knows the model already
                return error.code() is not grpc.StatusCode.NOT_FOUND
            return True

        await until(asked)
        assert await asyncio.wait_for(process.wait(), 30) == -signal.SIGKILL
    async with world.serving():
        # The client repeats what it heard no answer to.
        created = await world.publishing.CreateDeployment(form, metadata=owner)
        active = await world.until_state(created, "ACTIVE", "FAILED")
        assert (await world.predict(active, jpeg(180))).detections
        listed = await world.publishing.ListDeployments(
            publishing_pb2.ListDeploymentsRequest(account_id=account_id), metadata=owner
        )
        assert [item.deployment_id for item in listed.deployments] == [active.deployment_id]
        assert len(await world.statements(account_id)) == 1
        name = model_name(active.deployment_id, 1)
        await until_held(triton, triton_client, [name])
        assert count_loads(triton, name) == 1
        assert list((triton.repository / name).glob(".*")) == []
        await world.stop(active)
        await world.until_state(active, "STOPPED")
        await until_held(triton, triton_client, [])


def count_loads(triton: TritonServer, name: str) -> int:
    return triton.log_path.read_text().count(f"successfully loaded '{name}'")


async def until_held(triton: TritonServer, client: TritonClient, names: list[str]) -> None:
    """Deployments' folders and loaded models are these, once what former tests left is cleared away."""

    def ours(models: Iterable[str]) -> list[str]:
        # Other tests have models of their own in this Triton, which publishing leaves alone.
        return sorted(model for model in models if model.startswith("deployment_"))

    async def look() -> bool:
        loaded = ours(entry.model for entry in await client.index() if entry.state == "READY")
        return ours(repository.list_models(triton.repository)) == loaded == names

    await until(look)


@pytest.mark.parametrize("publishes", [4, pytest.param(50, marks=pytest.mark.soak)])
async def test_two_processes_of_publishing_load_each_deployment_once_and_leave_no_folder(
    world: Online, triton: TritonServer, triton_client: TritonClient, publishes: int
) -> None:
    account_id = await world.account(publishes * HOLD_MICROS)
    model_id = await world.model(account_id)
    owner = world.owner(account_id)
    deployment_ids = []
    async with process_of(world) as (_, first), process_of(world) as (_, second), world.serving():
        for pair in range(publishes // 2):
            made = await asyncio.gather(
                first.CreateDeployment(world.form(model_id, display_name=f"a{pair}"), metadata=owner),
                second.CreateDeployment(world.form(model_id, display_name=f"b{pair}"), metadata=owner),
            )
            for item in made:
                active = await world.until_state(item, "ACTIVE", "FAILED")
                assert (await world.predict(active, jpeg(180))).detections
                await world.stop(active)
            for item in made:
                await world.until_state(item, "STOPPED")
                deployment_ids.append(item.deployment_id)
        await until_held(triton, triton_client, [])
    assert {count_loads(triton, model_name(each, 1)) for each in deployment_ids} == {1}
    assert len(await world.statements(account_id)) == publishes
