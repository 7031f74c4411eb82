"""Replicas on two real Tritons: both serve, either may die, and what is charged is the share that serves."""

import asyncio
import os
import signal
import time
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest

from saucer.lib.grpc_client import from_rpc
from saucer.local.servers import TritonServer
from saucer.publishing import reconcile
from saucer.publishing.domain import Parity
from saucer.publishing.placement import Placement, model_name
from saucer.publishing.triton import INFER_S
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.load import steady_load
from tests.integration.publishing.online import HOLD_MICROS, PRICE_MICROS, Online, jpeg
from tests.support.events import until

# Long enough for several probes of each instance.
MEASURE_S = 10.0
# Of two instances, each probed as often as their Tritons are looked at: three looks, of which the first sees a drain.
CHECKS = 6


async def until_serving(
    world: Online, deployment: publishing_pb2.Deployment, replicas: int
) -> publishing_pb2.Deployment:
    async def look() -> publishing_pb2.Deployment | None:
        found = await world.get(deployment.deployment_id)
        return found if found.serving_replicas == replicas else None

    return await until(look, timeout_s=60)


async def replicas_at_checks(world: Online, deployment: publishing_pb2.Deployment, checks: int) -> list[int]:
    """How many serve, as so many checks of serving find it that are made from now on."""
    found = await world.get(deployment.deployment_id)
    serving = []
    for _ in range(checks):
        charged_ms = found.charged_ms

        async def checked(charged_ms: int = charged_ms) -> publishing_pb2.Deployment | None:
            now = await world.get(deployment.deployment_id)
            return now if now.charged_ms > charged_ms else None

        found = await until(checked)
        serving.append(found.serving_replicas)
    return serving


async def two_replicas(world: Online) -> publishing_pb2.Deployment:
    account_id = await world.account(2 * HOLD_MICROS)
    created = await world.create(account_id, await world.model(account_id), replicas=2)
    return await world.until_state(created, "ACTIVE", "FAILED")


async def charged_share(world: Online, deployment: publishing_pb2.Deployment) -> float:
    """Of the time that passes, how much the counter advances: between two advances, which checks of serving make."""

    async def advanced() -> tuple[int, float]:
        now = await world.get(deployment.deployment_id)
        return (await world.until_charged(deployment, now.charged_ms)).charged_ms, time.monotonic()

    begun_ms, begun_s = await advanced()
    await asyncio.sleep(MEASURE_S)
    ended_ms, ended_s = await advanced()
    return (ended_ms - begun_ms) / 1000 / (ended_s - begun_s)


async def answered(server: TritonServer, deployment: publishing_pb2.Deployment) -> int:
    """Requests, probes included, that a Triton has answered."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(server.metrics_url)).text
    name = model_name(deployment.deployment_id, deployment.version_number)
    lines = [line for line in text.splitlines() if line.startswith("nv_inference_request_success") and name in line]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)


async def drain(world: Online, triton_id: str, *, undo: bool = False) -> None:
    request = publishing_pb2.DrainTritonRequest(triton_id=triton_id, undo=undo)
    await world.publishing.DrainTriton(request, metadata=world.administrator)


async def states(world: Online, deployment: publishing_pb2.Deployment) -> list[tuple[str, int, str]]:
    """Triton, version and state of each instance."""
    request = publishing_pb2.ListInstancesRequest(deployment_id=deployment.deployment_id)
    answer = await world.publishing.ListInstances(request, metadata=world.owner(deployment.account_id))
    name = publishing_pb2.InstanceState.Name
    return sorted((item.instance_id, item.version_number, name(item.state)[15:]) for item in answer.instances)


async def test_two_replicas_share_the_requests_and_while_one_is_dead_the_other_answers_all_for_half_the_price(
    world: Online, triton: TritonServer, second: TritonServer
) -> None:
    async with world.serving():
        await world.register("second", second)
        active = await until_serving(world, await two_replicas(world), 2)
        assert active.hold_micros == 2 * HOLD_MICROS == 4 * PRICE_MICROS
        assert sorted(await world.instances(active)) == [("local", True, True), ("second", True, True)]

        before = [await answered(server, active) for server in (triton, second)]
        for _ in range(60):
            assert (await world.predict(active, jpeg(180))).detections
        after = [await answered(server, active) for server in (triton, second)]
        assert all(late - early >= 15 for early, late in zip(before, after, strict=True)), (before, after)
        assert 0.7 <= await charged_share(world, active) <= 1.3

        async with steady_load(world, active) as load:
            second.kill()
            half = await until_serving(world, active, 1)
            assert half.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE
            assert half.hold_micros == 2 * HOLD_MICROS
            assert "1 of 2 replicas serve" in half.warnings[-1]
            assert await states(world, active) == [("local", 1, "SERVING"), ("second", 1, "LOST")]
            assert 0.3 <= await charged_share(world, active) <= 0.7
            assert ("second", False, False) in await world.instances(active)
            await second.start()
            whole = await until_serving(world, active, 2)
        assert not load.failures
        assert whole.active_time == active.active_time

        happened = await world.publishing.ListDeploymentEvents(
            publishing_pb2.ListDeploymentEventsRequest(deployment_id=active.deployment_id),
            metadata=world.owner(active.account_id),
        )
        assert {"1 of 2 replicas serve.", "2 of 2 replicas serve."} <= {item.message for item in happened.events}
        await world.stop(active)
        stopped = await world.until_state(active, "STOPPED")
        hold = await world.resolved(active.account_id)
        assert hold.posted_micros == stopped.cost_micros == 2 * 1_000 * (stopped.charged_ms // 1000)


async def test_with_room_for_one_of_two_it_serves_and_says_so_and_the_other_comes_as_soon_as_there_is_room(
    world: Online, second: TritonServer
) -> None:
    async with world.serving():
        account_id = await world.account(2 * HOLD_MICROS)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await world.create(account_id, await world.model(account_id), replicas=2)
        assert from_rpc(refusal.value).reason == "REPLICAS_UNAVAILABLE"
        await world.register("second", second)
        await drain(world, "second")
        active = await two_replicas(world)
        assert active.serving_replicas == 1
        assert "1 of 2 replicas serve; no Triton has room for 1." in active.warnings[-1]
        assert 0.3 <= await charged_share(world, active) <= 0.7
        await drain(world, "second", undo=True)
        whole = await until_serving(world, active, 2)
        assert len(whole.warnings) == len(active.warnings) - 1

        # Nowhere to go: what is on a drained Triton serves on.
        await drain(world, "local")
        assert set(await replicas_at_checks(world, active, CHECKS)) == {2}
        await drain(world, "local", undo=True)
        second.kill()
        await until_serving(world, active, 1)
        await world.stop(active)
        await world.until_state(active, "STOPPED", timeout_s=10)


async def test_of_two_replicas_one_whose_replay_disagrees_first_does_not_end_the_other_which_serves(
    world: Online, second: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, told = Placement.put, asyncio.Event()

    async def second_disagrees(self: Placement, *args: Any, **kwargs: Any) -> tuple[Parity, str]:
        parity, probe_key = await put(self, *args, **kwargs)
        if self._triton.address == second.grpc_address:
            return replace(parity, ok=False), probe_key
        await told.wait()
        return parity, probe_key

    monkeypatch.setattr(Placement, "put", second_disagrees)
    async with world.serving():
        await world.register("second", second)
        account_id = await world.account(2 * HOLD_MICROS)
        created = await world.create(account_id, await world.model(account_id), replicas=2)

        async def disagreed() -> publishing_pb2.Deployment | None:
            found = await world.get(created.deployment_id)
            return found if "agree with the evaluation" in found.error_message else None

        assert (await until(disagreed, timeout_s=60)).state == publishing_pb2.DEPLOYMENT_STATE_DEPLOYING
        told.set()
        active = await world.until_state(created, "ACTIVE", "FAILED")
        assert active.serving_replicas == 1
        assert await states(world, active) == [("local", 1, "SERVING"), ("second", 1, "LOADING")]
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_an_update_is_ready_once_it_serves_beside_every_replica_and_takes_all_their_places_at_once(
    world: Online, second: TritonServer
) -> None:
    async with world.serving():
        await world.register("second", second)
        active = await until_serving(world, await two_replicas(world), 2)
        model_id = await world.model(active.account_id)
        async with steady_load(world, active) as load:
            updated = await world.update(active, model_id)

            async def beside() -> bool:
                placed = [(key, number) for key, number, _ in await states(world, updated)]
                return placed == [("local", 1), ("local", 2), ("second", 1), ("second", 2)]

            await until(beside)
            settled = await world.until_settled(updated)
            assert (settled.version_number, settled.serving_replicas) == (2, 2)
            assert await states(world, settled) == [("local", 2, "SERVING"), ("second", 2, "SERVING")]
            broken = await world.update(active, await world.model(active.account_id, graph=b"no graph"))
            settled = await world.until_settled(broken)
            assert (settled.version_number, settled.serving_replicas) == (2, 2)
            split = await world.until_settled(await world.update(active, "", percent=50))
            assert split.candidate.ready
            serving = [(key, number, "SERVING") for key in ("local", "second") for number in (2, 4)]
            assert await states(world, split) == serving
            second.kill()
            await until_serving(world, active, 1)
            await second.start()
            await until_serving(world, active, 2)

            async def healed() -> bool:
                return await states(world, split) == serving

            await until(healed, timeout_s=60)
        assert not load.failures
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_a_drained_replica_moves_while_all_serve_on(
    world: Online, second: TritonServer, third: TritonServer
) -> None:
    async with world.serving():
        await world.register("second", second)
        active = await until_serving(world, await two_replicas(world), 2)
        await world.register("third", third)
        fewest = 2

        async def moved() -> bool:
            nonlocal fewest
            fewest = min(fewest, (await world.get(active.deployment_id)).serving_replicas)
            return await states(world, active) == [("second", 1, "SERVING"), ("third", 1, "SERVING")]

        async with steady_load(world, active) as load:
            await drain(world, "local")
            await until(moved, timeout_s=60)
            await asyncio.sleep(reconcile.RETIRE_AFTER_S + reconcile.LOOK_EVERY_S)
        assert (fewest, load.failures) == (2, [])
        assert [item.detail for item in await world.records(active)] == ["", "From local to third."]
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_a_triton_that_hangs_delays_the_requests_that_it_has_and_draws_no_more(
    world: Online, second: TritonServer
) -> None:
    async with world.serving():
        await world.register("second", second)
        active = await until_serving(world, await two_replicas(world), 2)
        async with steady_load(world, active) as load:
            os.killpg(second.pid, signal.SIGSTOP)
            try:
                begun_s, before = time.monotonic(), load.answers
                await until_serving(world, active, 1)
                hung_s, answers = time.monotonic() - begun_s, load.answers - before
            finally:
                os.killpg(second.pid, signal.SIGCONT)
            await until_serving(world, active, 2)
        assert not load.failures
        assert load.longest_s < INFER_S + 15
        # Both would make one in INFER_S.
        assert answers >= hung_s, "one of two callers waits, and the other is answered"
        await world.stop(active)
        await world.until_state(active, "STOPPED")
