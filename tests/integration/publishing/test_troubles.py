"""What keeps an instance from being put somewhere, or brought back, is told: it is not waited for in silence."""

import shutil
import signal
from pathlib import Path

import pytest

from saucer.local.servers import TritonServer
from saucer.publishing import reconcile
from saucer.publishing.placement import model_name
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import HOLD_MICROS, Online, jpeg, signal_serving_process
from tests.support.events import until


async def until_told(world: Online, deployment: publishing_pb2.Deployment, message: str) -> publishing_pb2.Deployment:
    """By its only instance, and by itself."""
    request = publishing_pb2.ListInstancesRequest(deployment_id=deployment.deployment_id)
    owner = world.owner(deployment.account_id)

    async def look() -> publishing_pb2.Deployment | None:
        messages = [item.message for item in (await world.publishing.ListInstances(request, metadata=owner)).instances]
        found = await world.get(deployment.deployment_id)
        return found if messages == [found.error_message] and message in found.error_message else None

    return await until(look)


async def test_a_repository_that_takes_no_files_is_told_while_it_is_deploying_and_when_it_is_over_it_serves(
    world: Online, triton: TritonServer, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    async with world.serving(triton_repository=blocked / "repository"):
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        told = await until_told(world, created, "Not a directory")
        assert told.state == publishing_pb2.DEPLOYMENT_STATE_DEPLOYING
        assert str(blocked) not in told.error_message, "no path of the machine"
        await world.register("local", triton)
        active = await world.until_state(created, "ACTIVE", "FAILED")
        assert active.error_message == ""
        await world.stop(active)
        await world.until_state(active, "STOPPED")


async def test_what_a_failing_repository_does_not_take_goes_to_another_triton_which_is_the_first_from_then_on(
    world: Online, second: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "MOVE_AFTER_S", 2.0)
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    async with world.serving(triton_repository=blocked / "repository", room=8):
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await world.model(account_id)
        first = await world.create(account_id, model_id)
        await until_told(world, first, "Not a directory")
        await world.register("second", second, room=2)
        await world.until_state(first, "ACTIVE", "FAILED")

        async def moved() -> bool:
            return await world.instances(first) == [("second", True, True)]

        await until(moved)
        assert [record.detail for record in await world.records(first)][1:] == ["From local to second."]
        other = await world.create(account_id, model_id, display_name="other")
        active = await world.until_state(other, "ACTIVE", "FAILED")
        assert await world.instances(active) == [("second", True, True)]
        assert len(await world.records(active)) == 1, "it was placed there at once"
        for deployment in (first, other):
            await world.stop(deployment)
            await world.until_state(deployment, "STOPPED")


async def test_a_lost_disk_and_a_lost_object_are_told_and_once_the_object_is_back_it_serves(
    world: Online, triton: TritonServer
) -> None:
    async with world.serving():
        account_id = await world.account()
        model_id = await world.model(account_id)
        active = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
        key = f"system/{account_id}/runs/{model_id}/attempt-1/model.onnx"
        graph = await world.objects.get(key)
        await world.objects.delete(key)
        name = model_name(active.deployment_id, 1)
        shutil.rmtree(triton.repository / name)
        signal_serving_process(name, signal.SIGKILL)
        told = await until_told(world, active, key)
        assert told.state == publishing_pb2.DEPLOYMENT_STATE_DEGRADED
        assert "There is no object" in told.error_message
        await world.objects.put(key, graph)
        back = await world.until_state(active, "ACTIVE")
        assert (await world.predict(back, jpeg(180))).detections
        await world.stop(back)
        await world.until_state(back, "STOPPED")
