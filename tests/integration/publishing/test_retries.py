"""Calls that come once more, at once or long after: they have changed what they change, and say so again."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest

from saucer.billing.v1 import billing_pb2
from saucer.lib.clock import PostgresClock
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.lib.postgres import connect
from saucer.lib.retention import Forget, forget
from saucer.publishing.store import versions as version_store
from saucer.publishing.v1 import publishing_pb2
from tests.integration.publishing.online import HOLD_MICROS, Online
from tests.support.events import until


@pytest.fixture
def world(world: Online) -> Online:
    # On no Triton that there is: all stays QUEUED, and is STOPPED at once.
    world.settings["triton_address"] = "127.0.0.1:1"
    return world


class Calls:
    """Of one deployment's owner; under one name, always the same request id."""

    def __init__(self, world: Online, deployment: publishing_pb2.Deployment) -> None:
        self._world, self._deployment = world, deployment
        self._ids: dict[str, str] = {}

    async def __call__(self, kind: str, name: str, **fields: Any) -> tuple[str, int]:
        """State and start number; or the reason for which it is refused, and 0."""
        request = getattr(publishing_pb2, f"{kind}Request")(
            request_id=self._ids.setdefault(name, new_id()), deployment_id=self._deployment.deployment_id, **fields
        )
        owner = self._world.owner(self._deployment.account_id)
        try:
            answer = await getattr(self._world.publishing, kind)(request, metadata=owner)
        except grpc.aio.AioRpcError as error:
            return from_rpc(error).reason, 0
        return publishing_pb2.DeploymentState.Name(answer.state).removeprefix("DEPLOYMENT_STATE_"), answer.start_number


async def until_released(world: Online, account_id: str) -> None:
    async def look() -> bool:
        return await world.balance(account_id) == (HOLD_MICROS, 0)

    await until(look)


async def actions(world: Online, deployment: publishing_pb2.Deployment) -> list[str]:
    return [publishing_pb2.UpdateAction.Name(item.action)[14:] for item in await world.records(deployment)]


async def test_a_late_retry_of_a_stop_or_a_start_changes_nothing_that_came_after_it(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        call = Calls(world, created)
        assert await call("StopDeployment", "stop 1") == ("STOPPED", 1)
        await until_released(world, account_id)
        assert await call("StartDeployment", "start 2") == ("QUEUED", 2)
        assert await call("StopDeployment", "stop 1") == ("QUEUED", 2)
        assert (await world.get(created.deployment_id)).state == publishing_pb2.DEPLOYMENT_STATE_QUEUED

        assert await call("StopDeployment", "stop 2") == ("STOPPED", 2)
        await until_released(world, account_id)
        assert await call("StartDeployment", "start 3") == ("QUEUED", 3)
        assert await call("StartDeployment", "start 2") == ("QUEUED", 3)
        assert await call("StopDeployment", "stop 3") == ("STOPPED", 3)
        assert await call("StartDeployment", "start 2") == ("STOPPED", 3)
        assert await call("StartDeployment", "start 3") == ("STOPPED", 3)
        assert await actions(world, created) == ["CREATED", "STOPPED", "STARTED", "STOPPED", "STARTED", "STOPPED"]

        assert await call("StopDeployment", "start 3") == ("REQUEST_ID_USED", 0)
        assert await call("StartDeployment", "stop 1") == ("REQUEST_ID_USED", 0)


async def test_a_late_retry_of_a_creation_means_the_deployment_that_has_another_billing_mode_since(
    world: Online,
) -> None:
    async with world.serving():
        account_id = await world.account()
        group_id = await world.group(account_id, 1)
        create = world.form(
            await world.model(account_id),
            billing_mode=billing_pb2.BILLING_MODE_PREPAID,
            resource_group_id=group_id,
        )

        async def created() -> publishing_pb2.Deployment:
            return await world.publishing.CreateDeployment(create, metadata=world.owner(account_id))

        call = Calls(world, await created())
        assert await call("StopDeployment", "stop 1") == ("STOPPED", 1)
        postpaid = {"billing_mode": billing_pb2.BILLING_MODE_POSTPAID}
        assert await call("StartDeployment", "start 2", **postpaid) == ("QUEUED", 2)
        again = await created()
        assert (again.billing_mode, again.start_number) == (billing_pb2.BILLING_MODE_POSTPAID, 2)

        create.billing_mode, create.resource_group_id = billing_pb2.BILLING_MODE_POSTPAID, ""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await created()
        assert from_rpc(refused.value).reason == "REQUEST_ID_USED"


async def test_a_group_that_is_named_alone_takes_the_place_of_the_former_one_and_is_refused_without_prepaid(
    world: Online,
) -> None:
    async with world.serving():
        account_id = await world.account()
        groups = [await world.group(account_id, 1) for _ in range(2)]
        prepaid = {"billing_mode": billing_pb2.BILLING_MODE_PREPAID, "resource_group_id": groups[0]}
        created = await world.create(account_id, await world.model(account_id), **prepaid)
        call = Calls(world, created)
        assert await call("StopDeployment", "stop 1") == ("STOPPED", 1)
        assert await call("StartDeployment", "start 2", resource_group_id=groups[1]) == ("QUEUED", 2)
        assert (await world.get(created.deployment_id)).resource_group_id == groups[1]
        assert await call("StopDeployment", "stop 2") == ("STOPPED", 2)
        postpaid = {"billing_mode": billing_pb2.BILLING_MODE_POSTPAID}
        assert await call("StartDeployment", "start 3", **postpaid) == ("QUEUED", 3)
        assert await call("StopDeployment", "stop 3") == ("STOPPED", 3)
        refused = await call("StartDeployment", "start 4", resource_group_id=groups[1])
        assert refused == ("RESOURCE_GROUP_UNEXPECTED", 0)


async def test_a_late_retry_of_a_stop_that_found_nothing_to_stop_changes_nothing_either_and_none_is_a_change(
    world: Online,
) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        call = Calls(world, created)
        assert await call("StopDeployment", "stop 1") == ("STOPPED", 1)
        assert await call("StopDeployment", "stop again") == ("STOPPED", 1)
        assert await call("StopDeployment", "stop again") == ("STOPPED", 1)
        assert await call("StartDeployment", "stop again") == ("REQUEST_ID_USED", 0)
        assert await actions(world, created) == ["CREATED", "STOPPED"]
        await until_released(world, account_id)
        assert await call("StartDeployment", "start 2") == ("QUEUED", 2)
        assert await call("StopDeployment", "stop again") == ("QUEUED", 2)
        assert await call("StopDeployment", "stop 2") == ("STOPPED", 2)
        assert await actions(world, created) == ["CREATED", "STOPPED", "STARTED", "STOPPED"]


async def test_calls_that_changed_nothing_are_forgotten_after_a_time(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        call = Calls(world, created)
        for name in ("stop", "stop again"):
            assert await call("StopDeployment", name) == ("STOPPED", 1)

    database = await connect(world.settings["database_url"], PostgresClock())

    async def kept(rule: Forget) -> int:
        await forget("publishing", database, [rule])
        async with database.reading() as connection:
            return int(await connection.fetchval("SELECT count(*) FROM unchanged_request"))

    assert await kept(version_store.RETENTION) == 1
    assert await kept(replace(version_store.RETENTION, after=timedelta(0))) == 0
    database.pool.terminate()


async def test_a_retried_start_whose_hold_was_refused_is_refused_again_until_another_start_is_granted(
    world: Online,
) -> None:
    async with world.serving():
        account_id = await world.account()
        model_id = await world.model(account_id)
        created = await world.create(account_id, model_id)
        call = Calls(world, created)
        assert await call("StopDeployment", "stop 1") == ("STOPPED", 1)
        await until_released(world, account_id)
        other = Calls(world, await world.create(account_id, model_id, display_name="other"))
        for _ in range(2):
            assert await call("StartDeployment", "start 2") == ("INSUFFICIENT_BALANCE", 0)
        assert (await world.get(created.deployment_id)).start_number == 2
        assert await other("StopDeployment", "stop") == ("STOPPED", 1)
        await until_released(world, account_id)
        assert await call("StartDeployment", "start 2") == ("INSUFFICIENT_BALANCE", 0), "a refused hold's id is used up"
        assert await call("StartDeployment", "start 3") == ("QUEUED", 3)
        assert await call("StopDeployment", "stop 3") == ("STOPPED", 3)
        assert await call("StartDeployment", "start 3") == ("STOPPED", 3)
        assert await call("StartDeployment", "start 2") == ("STOPPED", 3)
