"""What a start waits for, is refused for, or fails of."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saucer.billing.v1 import billing_pb2
from saucer.lib.ids import new_id
from saucer.local.servers import TritonServer
from saucer.publishing.placement import model_name
from saucer.publishing.triton import TritonClient
from saucer.publishing.v1 import publishing_pb2
from saucer.serving.detections import Detections
from tests.integration.publishing.online import HOLD_MICROS, Online, refused
from tests.support.events import until
from tests.support.services import ServiceRunner
from tests.support.triton_models import write_echo


async def test_a_replay_that_disagrees_with_the_evaluation_fails_the_deployment_uncharged(
    world: Online, triton_client: TritonClient
) -> None:
    def falsify(stored: Detections) -> Detections:
        wrong = stored.image_id == stored.images[3]
        return replace(stored, score=np.where(wrong, stored.score / 2, stored.score).astype(np.float32))

    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id, change=falsify))
        failed = await world.until_state(created, "FAILED", "ACTIVE")
        assert failed.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_PARITY_FAILED
        assert not failed.parity.ok
        assert list(failed.parity.worst_images) == [8]
        gate = await world.gate_of(failed)
        assert (gate.runtime, gate.parity.ok) == ("onnxruntime", False)
        (worst,) = gate.images
        assert (worst.image_id, worst.boxes, worst.unpaired, worst.only_served, worst.box_px) == (8, 4, 4, 0, 0.0)
        assert worst.score == pytest.approx((1 - 80 / 255) / 2, abs=0.01)
        assert failed.charged_ms == 0
        await world.resolved(account_id)
        assert await world.balance(account_id) == (HOLD_MICROS, 0)

        async def gone() -> bool:
            name = model_name(failed.deployment_id, 1)
            return not any(entry.model == name for entry in await triton_client.index())

        await until(gone)


async def test_a_model_that_triton_does_not_take_fails_with_its_reason_after_a_few_attempts(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id, graph=b"no graph"))
        failed = await world.until_state(created, "FAILED", "ACTIVE")
        assert failed.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_FAILED
        assert "model.onnx cannot be loaded" in failed.error_message
        await world.resolved(account_id)
        again = await world.start(failed)
        assert (again.start_number, again.charged_ms, again.error_message) == (2, 0, "")
        await world.stop(again)
        assert (await world.until_state(again, "STOPPED")).hold_id == f"{again.deployment_id}-2"
        assert (await world.resolved(account_id)).start_number == 2


async def test_a_refused_hold_names_what_is_missing_and_a_refused_new_start_leaves_the_former_state(
    world: Online,
) -> None:
    async with world.serving():
        account_id = await world.account(HOLD_MICROS - 1)
        model_id = await world.model(account_id)
        form = world.form(model_id)
        for _ in range(2):
            status, error = await refused(world.publishing.CreateDeployment(form, metadata=world.owner(account_id)))
            assert (status, error.reason) == ("FAILED_PRECONDITION", "INSUFFICIENT_BALANCE")
            assert error.metadata["missing_micros"] == "1"
        found = await world.get(error.metadata["deployment_id"])
        assert publishing_pb2.DeploymentState.Name(found.state) == "DEPLOYMENT_STATE_REFUSED"
        assert (await refused(world.start(found)))[1].reason == "INSUFFICIENT_BALANCE"
        found = await world.get(found.deployment_id)
        assert publishing_pb2.DeploymentState.Name(found.state) == "DEPLOYMENT_STATE_REFUSED"
        assert (found.start_number, found.missing_micros) == (2, 1)
        assert await world.balance(account_id) == (HOLD_MICROS - 1, 0)
        await world.top_up(account_id, 1)
        started = await world.until_state(await world.start(found), "ACTIVE", "FAILED")
        assert (started.start_number, started.missing_micros) == (3, 0)
        assert (await refused(world.start(started)))[1].metadata["state"] == "ACTIVE"


async def test_what_does_not_fit_is_refused_by_name_before_anything_is_stored(world: Online) -> None:
    async with world.serving():
        account_id = await world.account(3 * HOLD_MICROS)
        unevaluated = await world.model(account_id, evaluated=False)
        # On data of somebody's choice: not what its thresholds come from.
        await world.evaluate(account_id, unevaluated, by_prediction=True)
        model_id = await world.model(account_id)
        other = await world.account(HOLD_MICROS)
        threshold = publishing_pb2.ClassThreshold(class_name="spoon", threshold=0.5)
        prepaid = billing_pb2.BILLING_MODE_PREPAID
        expected = {
            "MODEL_NOT_EVALUATED": world.create(account_id, unevaluated),
            "MODEL_NOT_FOUND": world.create(account_id, new_id()),
            "MODEL_NOT_FOUND ": world.create(other, model_id),
            "SPEC_NOT_SERVED": world.create(account_id, model_id, spec_id="gpu-1"),
            "REPLICAS_UNAVAILABLE": world.create(account_id, model_id, replicas=2),
            "RESOURCE_GROUP_REQUIRED": world.create(account_id, model_id, billing_mode=prepaid),
            "CLASS_UNKNOWN": world.create(account_id, model_id, thresholds=[threshold]),
        }
        answers = await asyncio.gather(*(refused(call) for call in expected.values()))
        assert [error.reason for _, error in answers] == [reason.strip() for reason in expected]
        request = publishing_pb2.ListDeploymentsRequest(account_id=account_id)
        listed = await world.publishing.ListDeployments(request, metadata=world.administrator)
        assert not listed.deployments

        form = world.form(model_id)
        first = await world.publishing.CreateDeployment(form, metadata=world.owner(account_id))
        assert (await refused(world.create(account_id, model_id)))[1].reason == "NAME_TAKEN"
        form.display_name = "plates"
        status, error = await refused(world.publishing.CreateDeployment(form, metadata=world.owner(account_id)))
        assert (status, error.reason) == ("ALREADY_EXISTS", "REQUEST_ID_USED")
        await world.stop(first)
        await world.until_state(first, "STOPPED")
        second = await world.create(account_id, model_id)
        assert (await refused(world.start(first)))[1].reason == "NAME_TAKEN"
        page = publishing_pb2.ListDeploymentsRequest(page_size=1)
        newest = await world.publishing.ListDeployments(page, metadata=world.owner(account_id))
        assert [found.deployment_id for found in newest.deployments] == [second.deployment_id]
        page.page_token = newest.next_page_token
        oldest = await world.publishing.ListDeployments(page, metadata=world.owner(account_id))
        assert [found.deployment_id for found in oldest.deployments] == [first.deployment_id]
        assert not oldest.next_page_token


async def test_without_room_a_deployment_waits_queued_and_what_nobody_wants_is_cleared_away(
    world: Online, triton: TritonServer, triton_client: TritonClient, tmp_path: Path
) -> None:
    orphan = model_name(new_id(), 1)
    write_echo(triton.repository, orphan, 3, tmp_path)
    await triton_client.load(orphan)
    async with world.serving(room=1):
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await world.model(account_id)
        first = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
        second = await world.create(account_id, model_id, display_name="second")

        async def cleared() -> bool:
            return not any(entry.model == orphan for entry in await triton_client.index())

        await until(cleared)
        waiting = await world.get(second.deployment_id)
        assert publishing_pb2.DeploymentState.Name(waiting.state) == "DEPLOYMENT_STATE_QUEUED"
        assert waiting.charged_ms == 0
        await world.stop(first)
        await world.until_state(second, "ACTIVE")
        await world.stop(second)
        await world.until_state(second, "STOPPED")


async def test_prepaid_a_deployment_waits_for_capacity_of_its_group_and_then_serves_uncharged(world: Online) -> None:
    async with world.serving():
        account_id = await world.account(0)
        model_id = await world.model(account_id)
        group_id = await world.group(account_id, capacity=1)
        prepaid = {"billing_mode": billing_pb2.BILLING_MODE_PREPAID, "resource_group_id": group_id}
        first = await world.create(account_id, model_id, **prepaid)
        second = await world.create(account_id, model_id, display_name="second", **prepaid)
        assert second.state == publishing_pb2.DEPLOYMENT_STATE_WAITING
        active = await world.until_state(first, "ACTIVE", "FAILED")
        assert active.charge_status == billing_pb2.CHARGE_STATUS_NOT_BILLING
        assert not active.warnings
        await world.stop(first)
        active = await world.until_state(second, "ACTIVE", "FAILED")
        assert (active.hold_micros, active.price_per_hour_micros) == (0, 0)
        await world.stop(second)
        stopped = await world.until_state(second, "STOPPED")
        assert (stopped.cost_micros, await world.balance(account_id)) == (0, (0, 0))


async def test_a_silent_billing_leaves_it_pending_and_it_goes_on_when_billing_answers(
    world: Online, run_service: ServiceRunner
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        async with world.serving(billing_address=nobody):
            account_id = await world.account()
            created = await world.create(account_id, await world.model(account_id))
            assert publishing_pb2.DeploymentState.Name(created.state) == "DEPLOYMENT_STATE_PENDING"
            assert await world.balance(account_id) == (HOLD_MICROS, 0)
    async with world.serving():
        assert (await world.until_state(created, "ACTIVE", "FAILED")).hold_micros == HOLD_MICROS
        assert await world.balance(account_id) == (0, HOLD_MICROS)
