"""Several Tritons: where deployments go, and where they go on when one is drained or dies."""

import asyncio
import os
import signal
from collections.abc import Awaitable

import grpc
import pytest

from saucer.lib.v1 import calls_pb2, calls_pb2_grpc
from saucer.local.servers import TritonServer
from saucer.publishing import reconcile
from saucer.publishing.placement import model_name
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.load import steady_load
from tests.integration.publishing.online import HOLD_MICROS, Online, jpeg, refused, serving_processes
from tests.support.events import until


def unregister(world: Online, triton_id: str) -> Awaitable[publishing_pb2.Triton]:
    request = publishing_pb2.UnregisterTritonRequest(triton_id=triton_id)
    return world.publishing.UnregisterTriton(request, metadata=world.administrator)


async def test_a_drained_triton_gives_its_deployments_away_with_no_failed_request_and_a_dead_one_within_seconds(
    world: Online, second: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "MOVE_AFTER_S", 2.0)
    async with world.serving(room=1):
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await world.model(account_id)
        first = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
        assert await world.instances(first) == [("local", True, True)]
        waiting = await world.create(account_id, model_id, display_name="second")
        assert await world.instances(waiting) == []
        await world.register("second", second, room=1)
        other = await world.until_state(waiting, "ACTIVE", "FAILED")
        assert await world.instances(other) == [("second", True, True)]
        await world.stop(other)
        await world.until_state(other, "STOPPED")

        async def where(instances: list[tuple[str, bool, bool]]) -> bool:
            return await world.instances(first) == instances

        async with steady_load(world, first) as load:
            drain = publishing_pb2.DrainTritonRequest(triton_id="local")
            assert (await world.publishing.DrainTriton(drain, metadata=world.administrator)).draining
            await until(lambda: where([("second", True, True)]), timeout_s=60)
            await asyncio.sleep(reconcile.RETIRE_AFTER_S + reconcile.LOOK_EVERY_S)
        assert not load.failures
        records = await world.records(first)
        assert [publishing_pb2.UpdateAction.Name(item.action)[14:] for item in records] == ["CREATED", "MOVED"]
        assert records[1].detail == "From local to second."

        drain.undo = True
        await world.publishing.DrainTriton(drain, metadata=world.administrator)
        await second.stop()
        degraded = await world.until_state(first, "DEGRADED")
        await until(lambda: where([("local", True, True)]), timeout_s=60)
        back = await world.until_state(first, "ACTIVE")
        assert (await world.predict(back, jpeg(180))).detections
        assert back.active_time == degraded.active_time
        listed = await world.publishing.ListTritons(publishing_pb2.ListTritonsRequest(), metadata=world.administrator)
        assert [(item.triton_id, item.live, item.used) for item in listed.tritons] == [
            ("local", True, 1), ("second", False, 0),
        ]  # fmt: skip
        assert (await refused(unregister(world, "local")))[1].reason == "TRITON_IN_USE"
        assert (await unregister(world, "second")).triton_id == "second"
        assert (await refused(unregister(world, "second")))[0] == "NOT_FOUND"
        listed = await world.publishing.ListTritons(publishing_pb2.ListTritonsRequest(), metadata=world.administrator)
        assert [item.triton_id for item in listed.tritons] == ["local"]
        async with grpc.aio.insecure_channel(world.address) as channel:
            asked = calls_pb2.ListCallsRequest(resource_id="second")
            recorded = await calls_pb2_grpc.CallServiceStub(channel).ListCalls(asked, metadata=world.administrator)
        assert [(call.method.rpartition("/")[2], call.outcome) for call in recorded.calls] == [
            ("UnregisterTriton", "NOT_FOUND"), ("UnregisterTriton", "OK"), ("RegisterTriton", "OK"),
        ]  # fmt: skip
        await world.stop(back)
        await world.until_state(back, "STOPPED")


async def test_what_is_on_a_triton_that_is_registered_again_at_another_spec_goes_on_at_its_own(
    world: Online, triton: TritonServer, second: TritonServer
) -> None:
    async with world.serving():
        account_id = await world.account()
        active = await world.until_state(
            await world.create(account_id, await world.model(account_id)), "ACTIVE", "FAILED"
        )

        async def moved() -> bool:
            return await world.instances(active) == [("second", True, True)]

        async def unloaded() -> bool:
            return not (triton.repository / model_name(active.deployment_id, 1)).exists()

        async with steady_load(world, active) as load:
            await world.register("local", triton, spec_id="cpu-8")
            # Nobody else has its spec: better there than nowhere.
            await asyncio.sleep(2 * reconcile.LOOK_EVERY_S)
            assert await world.instances(active) == [("local", True, True)]
            await world.register("second", second)
            await until(moved, timeout_s=60)
            _, refusal = await refused(unregister(world, "local"))
            assert (refusal.reason, "nobody wants any more: 1." in refusal.message) == ("TRITON_IN_USE", True)
            await until(unloaded)
        assert not load.failures
        assert (await unregister(world, "local")).spec_id == "cpu-8"
        assert [record.detail for record in await world.records(active)][1:] == ["From local to second."]
        await world.stop(active)
        await world.until_state(active, "STOPPED")


@pytest.mark.parametrize("choose", [False, True])
async def test_a_model_has_the_copies_of_its_tritons_shape_and_a_killed_one_comes_back(
    world: Online, triton: TritonServer, choose: bool
) -> None:
    async with world.serving(triton_copies=2, triton_choose_runtime=choose):
        active = await world.active()
        name = model_name(active.deployment_id, 1)
        assert "count: 2 " in (triton.repository / name / "config.pbtxt").read_text()
        gate = await world.gate_of(active)
        assert bool(gate.times) is choose

        async def two() -> list[int] | None:
            found = serving_processes(active.deployment_id)
            return found if len(found) == 2 else None

        # The one that measured goes once it has nothing to answer.
        first, second = await until(two)
        os.kill(first, signal.SIGKILL)

        async def replaced() -> bool:
            # Triton may keep the one that lived: it waits for the requests of the one that does not.
            return len({*serving_processes(active.deployment_id)} - {first, second}) == 2

        await until(replaced, timeout_s=60)
        await world.until_state(active, "ACTIVE")
        for _ in range(8):
            assert (await world.predict(active, jpeg(180))).detections
        listed = await world.publishing.ListTritons(publishing_pb2.ListTritonsRequest(), metadata=world.administrator)
        assert [(item.triton_id, item.copies, item.threads) for item in listed.tritons] == [("local", 2, 1)]
        await world.register("local", triton)
        listed = await world.publishing.ListTritons(publishing_pb2.ListTritonsRequest(), metadata=world.administrator)
        assert [(item.triton_id, item.copies) for item in listed.tritons] == [("local", 1)]
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_a_triton_that_is_said_to_have_a_gpu_and_has_none_serves_nothing_and_the_deployment_says_why(
    world: Online,
) -> None:
    async with world.serving(triton_gpu=True):
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        failed = await world.until_state(created, "FAILED", "ACTIVE")
        assert failed.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_FAILED
        assert "GPU" in failed.error_message, failed.error_message
        listed = await world.publishing.ListTritons(publishing_pb2.ListTritonsRequest(), metadata=world.administrator)
        assert [item.gpu for item in listed.tritons] == [True]


async def test_what_a_triton_that_answers_does_not_take_goes_to_another_that_does(
    world: Online, second: TritonServer
) -> None:
    # The first is the one with more room, and loads nothing: it has no GPU.
    async with world.serving(triton_gpu=True):
        await world.register("second", second, room=1)
        active = await world.active()
        assert active.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, active.error_message

        async def moved() -> bool:
            return await world.instances(active) == [("second", True, True)]

        await until(moved)
        assert [record.detail for record in await world.records(active)][1:] == ["From local to second."]
        assert (await world.predict(active, jpeg(180))).detections
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_a_triton_that_was_never_asked_gets_nothing_until_it_has_answered(world: Online) -> None:
    async with world.serving():
        request = publishing_pb2.RegisterTritonRequest(
            triton_id="absent",
            address="127.0.0.1:1",
            repository="/nowhere",
            region_id="local",
            spec_id="cpu-2",
            room=1000,
            threads=1,
        )
        assert not (await world.publishing.RegisterTriton(request, metadata=world.administrator)).live
        active = await world.active()
        assert await world.instances(active) == [("local", True, True)]
        await world.stop(active)
        await world.until_state(active, "STOPPED")
