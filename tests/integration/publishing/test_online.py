"""From an evaluated model to boxes and a bill, as it runs."""

import asyncio
from typing import Any

import asyncpg
import pytest

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib.cloudevent import from_json
from saucer.lib.ids import new_id
from saucer.publishing.placement import model_name
from saucer.publishing.triton import TritonClient
from saucer.publishing.v1 import events_pb2, publishing_pb2
from saucer.serving.detector import Detector
from tests.integration.publishing.online import HOLD_MICROS, TEST_IMAGES, Online, jpeg, refused
from tests.support.events import read_events
from tests.support.graphs import write_model


async def test_an_evaluated_model_comes_online_answers_and_is_paid_until_it_is_stopped(
    world: Online, triton_client: TritonClient
) -> None:
    async with world.serving():
        account_id = await world.account()
        model_id = await world.model(account_id)
        form = world.form(model_id)
        created = await world.publishing.CreateDeployment(form, metadata=world.owner(account_id))
        assert publishing_pb2.DeploymentState.Name(created.state) == "DEPLOYMENT_STATE_QUEUED"
        assert await world.publishing.CreateDeployment(form, metadata=world.owner(account_id)) is not None
        assert await world.balance(account_id) == (0, HOLD_MICROS)
        assert "no max duration" in created.warnings[0]
        assert {item.class_name: item.threshold for item in created.thresholds} == {"dark": 0.3, "bright": 0.4}

        active = await world.until_state(created, "ACTIVE", "FAILED")
        assert (active.parity.ok, active.parity.images, active.parity.paired_share) == (True, TEST_IMAGES, 1.0)
        assert active.parity.boxes == active.parity.paired > TEST_IMAGES

        image = jpeg(220, 120, 100)
        answer = await world.predict(active, image)
        expected = Detector.load(write_model(world.folder / "expected")).detect([image])[0]
        assert [found.score for found in answer.detections] == pytest.approx(expected.scores.tolist(), abs=1e-5)
        assert [(found.x1, found.y1, found.x2, found.y2) for found in answer.detections] == [
            pytest.approx(box, abs=1e-3) for box in expected.boxes.tolist()
        ]
        assert [(found.class_name, found.above_threshold) for found in answer.detections] == [
            ("bright", True),
            ("dark", False),
        ]
        assert (answer.width, answer.height) == (120, 100)
        assert answer.highest_score == answer.detections[0].score

        charged = await world.until_charged(active, 2_000)
        assert charged.charge_status == billing_pb2.CHARGE_STATUS_BILLING
        stopping = await world.stop(charged)
        assert publishing_pb2.DeploymentState.Name(stopping.state) == "DEPLOYMENT_STATE_STOPPING"
        stopped = await world.until_state(stopping, "STOPPED")
        assert stopped.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_STOPPED_BY_USER
        assert not any(entry.model == model_name(stopped.deployment_id, 1) for entry in await triton_client.index())
        assert (await refused(world.predict(stopped, image)))[1].reason == "NOT_ACTIVE"

        hold = await world.resolved(account_id)
        assert hold.charged_ms == stopped.charged_ms
        assert hold.posted_micros == stopped.cost_micros == 1_000 * (stopped.charged_ms // 1000)
        assert await world.balance(account_id) == (HOLD_MICROS - stopped.cost_micros, 0)

        names = ["Created", "Queued", "Changed", "Activated", "StopRequested", "Ended"]
        events = await read_events(world.jetstream, f"saucer.publishing.v1.*.{account_id}.>", count=len(names))
        assert [event.type for event in events] == [f"saucer.publishing.v1.Deployment{name}" for name in names]
        revisions = [from_json(event.data, events_pb2.DeploymentChanged()).deployment.revision for event in events]
        assert revisions == sorted(set(revisions))


async def test_a_deployment_at_rest_is_deleted_softly_and_only_its_bill_and_events_remain(world: Online) -> None:
    async with world.serving():
        account_id = await world.account(2 * HOLD_MICROS)
        owner, model_id = world.owner(account_id), await world.model(account_id)
        active = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
        request = publishing_pb2.DeleteDeploymentRequest(request_id=new_id(), deployment_id=active.deployment_id)
        status, error = await refused(world.publishing.DeleteDeployment(request, metadata=owner))
        assert (status, error.reason, error.metadata["state"]) == ("FAILED_PRECONDITION", "STATE_NOT_AT_REST", "ACTIVE")
        await world.until_charged(active, 1_000)
        stop = publishing_pb2.StopDeploymentRequest(request_id=new_id(), deployment_id=active.deployment_id)
        await world.publishing.StopDeployment(stop, metadata=owner)
        stopped = await world.until_state(active, "STOPPED")
        used = publishing_pb2.DeleteDeploymentRequest(request_id=stop.request_id, deployment_id=stop.deployment_id)
        assert (await refused(world.publishing.DeleteDeployment(used, metadata=owner)))[1].reason == "REQUEST_ID_USED"
        stranger = world.owner(await world.account(0))
        assert (await refused(world.publishing.DeleteDeployment(request, metadata=stranger)))[0] == "NOT_FOUND"

        deleted = await world.publishing.DeleteDeployment(request, metadata=owner)
        assert deleted.HasField("delete_time")
        assert deleted.revision == stopped.revision + 1
        assert await world.publishing.DeleteDeployment(request, metadata=owner) == deleted, "a retry"
        assert (await refused(world.publishing.DeleteDeployment(request, metadata=stranger)))[0] == "NOT_FOUND"

        await _find_nothing_of(world, deleted)
        connection = await asyncpg.connect(world.settings["database_url"])
        records = "SELECT action FROM update_record WHERE deployment_id = $1 ORDER BY number"
        actions = [row["action"] for row in await connection.fetch(records, deleted.deployment_id)]
        await connection.close()
        assert actions == ["CREATED", "STOPPED", "DELETED"]
        again = await world.create(account_id, model_id)
        assert again.display_name == deleted.display_name
        assert again.deployment_id != deleted.deployment_id
        (bill,) = [
            statement for statement in await world.statements(account_id) if statement.hold.hold_id == deleted.hold_id
        ]
        assert bill.hold.posted_micros == deleted.cost_micros > 0
        subject = f"saucer.publishing.v1.*.{account_id}.{deleted.deployment_id}.>"
        told = await read_events(world.jetstream, subject, count=7)
        assert [event.type.rpartition(".")[2] for event in told][-2:] == ["DeploymentEnded", "DeploymentDeleted"]


async def _find_nothing_of(world: Online, deleted: publishing_pb2.Deployment) -> None:
    """Every call but the deletion's own retry."""
    owner, stub, messages = world.owner(deleted.account_id), world.publishing, publishing_pb2
    identity: dict[str, Any] = {"deployment_id": deleted.deployment_id}
    change: dict[str, Any] = {"request_id": new_id(), **identity}
    for call in (
        stub.GetDeployment(messages.GetDeploymentRequest(**identity), metadata=owner),
        stub.StopDeployment(messages.StopDeploymentRequest(**change), metadata=owner),
        stub.StartDeployment(messages.StartDeploymentRequest(**change), metadata=owner),
        stub.DeleteDeployment(messages.DeleteDeploymentRequest(**change), metadata=owner),
        stub.UpdateDeployment(messages.UpdateDeploymentRequest(**change), metadata=owner),
        stub.RollBackDeployment(messages.RollBackDeploymentRequest(**change, version_number=1), metadata=owner),
        stub.SplitDeployment(messages.SplitDeploymentRequest(**change, percent=9), metadata=owner),
        stub.PromoteCandidate(messages.PromoteCandidateRequest(**change), metadata=owner),
        stub.AbandonCandidate(messages.AbandonCandidateRequest(**change), metadata=owner),
        stub.ListDeploymentVersions(messages.ListDeploymentVersionsRequest(**identity), metadata=owner),
        stub.ListUpdateRecords(messages.ListUpdateRecordsRequest(**identity), metadata=owner),
        stub.ListInstances(messages.ListInstancesRequest(**identity), metadata=owner),
        stub.ListTrafficSamples(messages.ListTrafficSamplesRequest(**identity), metadata=owner),
        stub.ListDeploymentEvents(messages.ListDeploymentEventsRequest(**identity), metadata=owner),
        stub.ListDeploymentLogLines(messages.ListDeploymentLogLinesRequest(**identity), metadata=owner),
        stub.Predict(messages.PredictRequest(**identity, image=jpeg(9)), metadata=owner),
    ):
        assert (await refused(call))[0] == "NOT_FOUND"
    listed = await stub.ListDeployments(messages.ListDeploymentsRequest(), metadata=owner)
    assert not listed.deployments


async def test_another_account_finds_nothing(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        stranger = world.owner(await world.account(0))
        identity = {"deployment_id": created.deployment_id}
        request: dict[str, Any] = {"request_id": new_id(), **identity}
        stub = world.publishing
        for call in (
            stub.GetDeployment(publishing_pb2.GetDeploymentRequest(**identity), metadata=stranger),
            stub.StopDeployment(publishing_pb2.StopDeploymentRequest(**request), metadata=stranger),
            stub.StartDeployment(publishing_pb2.StartDeploymentRequest(**request), metadata=stranger),
            stub.Predict(publishing_pb2.PredictRequest(**identity, image=jpeg(9)), metadata=stranger),
            stub.ListDeployments(publishing_pb2.ListDeploymentsRequest(account_id=account_id), metadata=stranger),
        ):
            assert (await refused(call))[0] == "NOT_FOUND"
        listed = await stub.ListDeployments(publishing_pb2.ListDeploymentsRequest(), metadata=stranger)
        assert not listed.deployments


async def test_at_the_max_duration_it_stops_and_is_charged_exactly_that(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        form = world.form(await world.model(account_id))
        form.max_duration.FromSeconds(10)
        created = await world.publishing.CreateDeployment(form, metadata=world.owner(account_id))
        assert not created.warnings
        active = await world.until_state(created, "ACTIVE", "FAILED")
        assert 0 < active.stop_time.ToSeconds() - active.active_time.ToSeconds() <= 11
        stopped = await world.until_state(created, "STOPPED")
        assert stopped.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_DURATION_REACHED
        assert 0 <= stopped.end_time.ToSeconds() - active.stop_time.ToSeconds() <= 5
        assert stopped.charged_ms == 10_000
        assert (await world.resolved(account_id)).posted_micros == 10_000


async def test_without_requests_it_stops_at_its_idle_time_and_each_request_begins_it_anew(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        form = world.form(await world.model(account_id))
        form.idle_stop.FromSeconds(6)
        created = await world.publishing.CreateDeployment(form, metadata=world.owner(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        assert active.idle_stop_time.ToSeconds() - active.active_time.ToSeconds() in (6, 7)
        for _ in range(8):
            await world.predict(active, jpeg(180))
            await asyncio.sleep(1)
        still = await world.get(active.deployment_id)
        assert still.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE
        stopped = await world.until_state(active, "STOPPED")
        assert stopped.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_IDLE
        assert 0 <= stopped.end_time.ToSeconds() - still.idle_stop_time.ToSeconds() <= 5


async def test_a_stop_that_billing_orders_ends_the_start_that_it_names_within_five_seconds_and_no_other(
    world: Online,
) -> None:
    async with world.serving():
        active = await world.active()
        account_id = active.account_id
        for start_number in (2, 1):
            hold = billing_pb2.Hold(
                work_kind=billing_pb2.WORK_KIND_DEPLOYMENT, work_id=active.deployment_id, start_number=start_number
            )
            order = billing_events.StopOrdered(hold=hold, reason=billing_events.STOP_REASON_ARREARS)
            await world.send(order, "billing", account_id, active.deployment_id)
        stopped = await world.until_state(active, "STOPPED", timeout_s=5)
        assert stopped.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_ARREARS
        assert stopped.charge_status == billing_pb2.CHARGE_STATUS_STOPPED_FOR_ARREARS
