"""A Triton, its backend or publishing goes away, and what was served comes back by itself, uncharged between."""

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.local.servers import TritonServer
from saucer.local.triton_env import TritonEnvironment
from saucer.publishing.placement import model_name
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import (
    HOLD_MICROS,
    Online,
    jpeg,
    online,
    refused,
    serving_processes,
    signal_serving_process,
)
from tests.support.events import read_events
from tests.support.services import ServiceRunner, Tokens

# Of a Triton, or of publishing, in seconds: longer than publishing needs to see that it is back.
OUTAGE_S = 6
# Publishing counts for so long at most after it was told to stop, and since it was last looked at.
STOP_S = 2.5


@pytest.fixture
async def own_triton(tmp_path: Path, triton_environment: TritonEnvironment) -> AsyncIterator[TritonServer]:
    """A server that a test may restart."""
    server = TritonServer(tmp_path / "triton", tmp_path / "repository", triton_environment)
    await server.start()
    yield server
    await server.stop()


async def test_after_a_restart_of_triton_and_fifteen_seconds_after_its_backend_process_died_it_serves_uncharged_between(
    run_service: ServiceRunner,
    tokens: Tokens,
    jetstream: JetStreamContext,
    own_triton: TritonServer,
    tmp_path: Path,
) -> None:
    async with online(run_service, tokens, jetstream, own_triton, tmp_path) as world, world.serving():
        active = await world.active()
        account_id = active.account_id

        await own_triton.stop()
        degraded = await world.until_state(active, "DEGRADED")
        assert degraded.charge_status == billing_pb2.CHARGE_STATUS_NOT_BILLING
        assert (await refused(world.predict(active, jpeg(180))))[1].metadata["state"] == "DEGRADED"
        await asyncio.sleep(OUTAGE_S)
        assert (await world.get(active.deployment_id)).charged_ms == degraded.charged_ms
        await own_triton.start()
        back = await world.until_state(active, "ACTIVE")
        # It may have been probed again by the time that it was looked at; the outage is in no probe.
        assert back.charged_ms - degraded.charged_ms < 1000 * OUTAGE_S
        assert (back.parity, back.active_time) == (active.parity, active.active_time)
        assert (await world.predict(active, jpeg(180))).detections

        signal_serving_process(active.deployment_id, signal.SIGKILL)
        async with asyncio.timeout(15):
            await world.until_state(active, "DEGRADED")
            await world.until_state(active, "ACTIVE")
        assert (await world.predict(active, jpeg(180))).detections
        pattern = f"saucer.publishing.v1.DeploymentActivated.{account_id}.>"
        assert len(await read_events(jetstream, pattern, count=3)) == 3


async def test_three_models_serve_again_within_fifteen_seconds_of_a_killed_tritons_return(
    run_service: ServiceRunner,
    tokens: Tokens,
    jetstream: JetStreamContext,
    own_triton: TritonServer,
    tmp_path: Path,
) -> None:
    async with online(run_service, tokens, jetstream, own_triton, tmp_path) as world, world.serving():
        account_id = await world.account(3 * HOLD_MICROS)
        model_id = await world.model(account_id)
        names = ("first", "second", "third")
        made = [await world.create(account_id, model_id, display_name=name) for name in names]
        active = [await world.until_state(item, "ACTIVE", "FAILED") for item in made]
        own_triton.kill()
        degraded = [await world.until_state(item, "DEGRADED") for item in active]
        await own_triton.start()
        back = await asyncio.gather(*(world.until_state(item, "ACTIVE", timeout_s=15) for item in degraded))
        for item in back:
            assert (await world.predict(item, jpeg(180))).detections
            await world.stop(item)


async def test_a_triton_that_lost_its_disk_or_one_file_of_it_serves_again(
    run_service: ServiceRunner,
    tokens: Tokens,
    jetstream: JetStreamContext,
    own_triton: TritonServer,
    tmp_path: Path,
) -> None:
    async with online(run_service, tokens, jetstream, own_triton, tmp_path) as world, world.serving():
        active = await world.active()
        graph = own_triton.repository / model_name(active.deployment_id, 1) / "1" / "model.onnx"
        whole = graph.read_bytes()

        def lose_everything() -> None:
            shutil.rmtree(own_triton.repository)

        def lose_the_end_of_a_file() -> None:
            graph.write_bytes(whole[:-100])

        for damage in (lose_everything, lose_the_end_of_a_file):
            await own_triton.stop()
            await world.until_state(active, "DEGRADED")
            damage()
            await own_triton.start()
            await world.until_state(active, "ACTIVE")
            assert (await world.predict(active, jpeg(180))).detections
            assert graph.read_bytes() == whole
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_a_triton_that_moved_to_another_machine_serves_again_there(
    world: Online, second: TritonServer, third: TritonServer
) -> None:
    async with world.serving():
        drain = publishing_pb2.DrainTritonRequest(triton_id="local")
        await world.publishing.DrainTriton(drain, metadata=world.administrator)
        await world.register("moved", second)
        account_id = await world.account()
        active = await world.until_state(
            await world.create(account_id, await world.model(account_id)), "ACTIVE", "FAILED"
        )
        await second.stop()
        await world.until_state(active, "DEGRADED")
        await world.register("moved", third)
        back = await world.until_state(active, "ACTIVE")
        assert await world.instances(back) == [("moved", True, True)]
        assert (await world.predict(back, jpeg(180))).detections
        assert (third.repository / model_name(back.deployment_id, 1) / "1" / "model.onnx").exists()
        await world.stop(back)
        await world.until_state(back, "STOPPED")


async def test_a_deployment_goes_on_when_the_acting_replica_ends_and_when_all_of_publishing_was_down(
    world: Online,
) -> None:
    async with AsyncExitStack() as second:
        async with world.serving():
            active = await world.active()
            await second.enter_async_context(world.serving())
        taken_over = await world.until_charged(active, (await world.get(active.deployment_id)).charged_ms)
        looked_s = time.monotonic()
    stopping_s = time.monotonic() - looked_s
    (process,) = serving_processes(active.deployment_id)
    await asyncio.sleep(OUTAGE_S)
    begun_s = time.monotonic()
    async with world.serving():
        counted = await world.until_charged(active, taken_over.charged_ms + 2_000)
        most_s = time.monotonic() - begun_s + stopping_s + STOP_S
        assert counted.charged_ms - taken_over.charged_ms <= 1000 * most_s, "nobody could ask it meanwhile"
        assert (await world.predict(active, jpeg(180))).detections
        assert serving_processes(active.deployment_id) == [process], "it was never unloaded"
        await world.stop(active)
        await world.until_state(active, "STOPPED")
