"""From an evaluated model to boxes and a bill, as it runs."""

import asyncio
import json
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest
import tritonclient.grpc
from nats.js import JetStreamContext
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib.cloudevent import from_json
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.local.servers import TritonServer
from saucer.local.triton_env import TritonEnvironment
from saucer.publishing.endpoint import MAX_IMAGE_BYTES
from saucer.publishing.placement import model_name
from saucer.publishing.triton import TritonClient
from saucer.publishing.v1 import events_pb2, publishing_pb2
from saucer.serving.detections import Detections
from saucer.serving.detector import Detector
from tests.integration.publishing.online import (
    HOLD_MICROS,
    TEST_IMAGES,
    Online,
    infer_request,
    jpeg,
    online,
    serving_processes,
    signal_serving_process,
)
from tests.support.events import read_events, until
from tests.support.graphs import write_model
from tests.support.services import ServiceRunner, Tokens
from tests.support.triton_models import write_echo

# Of a Triton, in seconds: longer than publishing needs to see that it is back.
OUTAGE_S = 6


@pytest.fixture
async def own_triton(tmp_path: Path, triton_environment: TritonEnvironment) -> AsyncIterator[TritonServer]:
    """A server that a test may restart."""
    server = TritonServer(tmp_path / "triton", tmp_path / "repository", triton_environment)
    await server.start()
    yield server
    await server.stop()


async def refused(call: Any) -> tuple[str, Any]:
    """Status and typed error of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code().name, from_rpc(failure.value)


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


async def test_a_plain_triton_client_sends_jpeg_bytes_with_a_token_and_gets_boxes(world: Online) -> None:
    async with world.serving():
        account_id = await world.account(2 * HOLD_MICROS)
        model_id = await world.model(account_id)
        deployment = await world.until_state(await world.create(account_id, model_id), "ACTIVE", "FAILED")
        headers = dict(world.owner(account_id))
        await asyncio.to_thread(_use_plain_client, world.address, headers, deployment.deployment_id)

        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            metadata, stranger = world.owner(account_id), world.owner(await world.account(0))
            for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelStatistics"):
                request = getattr(pb, f"{name}Request")()
                assert (await refused(getattr(stub, name)(request, metadata=metadata)))[0] == "UNIMPLEMENTED"
            for name in ("SystemSharedMemoryRegister", "CudaSharedMemoryStatus", "TraceSetting", "LogSettings"):
                request = getattr(pb, f"{name}Request")()
                assert (await refused(getattr(stub, name)(request, metadata=metadata)))[0] == "UNIMPLEMENTED"
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                async for _ in stub.ModelStreamInfer(iter([pb.ModelInferRequest()]), metadata=metadata):
                    pass
            infer = infer_request(deployment.deployment_id, jpeg(180))
            for call in (
                stub.ModelInfer(infer, metadata=stranger),
                stub.ModelReady(pb.ModelReadyRequest(name=deployment.deployment_id), metadata=stranger),
                stub.ModelMetadata(pb.ModelMetadataRequest(name=deployment.deployment_id), metadata=stranger),
                stub.ModelConfig(pb.ModelConfigRequest(name=deployment.deployment_id), metadata=stranger),
            ):
                assert (await refused(call))[0] == "NOT_FOUND"
            assert (await refused(stub.ModelInfer(infer)))[0] == "UNAUTHENTICATED"
            infer.inputs[0].parameters["shared_memory_region"].string_param = "x"
            assert (await refused(stub.ModelInfer(infer, metadata=metadata)))[1].reason == "PARAMETERS_REFUSED"
            inner = infer_request(model_name(deployment.deployment_id, 1), jpeg(180))
            assert (await refused(stub.ModelInfer(inner, metadata=metadata)))[0] == "NOT_FOUND"
            wrong = infer_request(deployment.deployment_id, b"no image")
            assert (await refused(stub.ModelInfer(wrong, metadata=metadata)))[1].reason == "IMAGE_REFUSED"
            large = infer_request(deployment.deployment_id, jpeg(180) + bytes(MAX_IMAGE_BYTES))
            status, error = await refused(stub.ModelInfer(large, metadata=metadata))
            assert (status, error.reason) == ("INVALID_ARGUMENT", "IMAGE_REFUSED")
            assert f"more than {MAX_IMAGE_BYTES}" in error.message
            # KServe's other way to carry bytes, which other clients use.
            typed = infer_request(deployment.deployment_id, jpeg(180))
            typed.ClearField("raw_input_contents")
            typed.inputs[0].contents.bytes_contents.append(jpeg(180))
            assert (await stub.ModelInfer(typed, metadata=metadata)).model_name == deployment.deployment_id


def _use_plain_client(url: str, headers: dict[str, str], model: str) -> None:
    client = tritonclient.grpc.InferenceServerClient(url)
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready(model, headers=headers)
    assert client.get_model_metadata(model, headers=headers).inputs[0].name == "IMAGE"
    config = client.get_model_config(model, headers=headers).config
    assert config.max_batch_size == 8
    assert {name: json.loads(item.string_value) for name, item in config.parameters.items()} == {
        "classes": ["dark", "bright"]
    }
    assert [output.name for output in config.output] == ["BOXES", "SCORES", "LABELS", "COUNT"]
    image = tritonclient.grpc.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[jpeg(180, 64, 64)]], dtype=object))
    result = client.infer(model, [image], headers=headers)
    assert result.as_numpy("BOXES").shape == (1, 2, 4)
    assert result.as_numpy("SCORES")[0].tolist() == pytest.approx([180 / 255, 75 / 255], abs=0.01)
    assert result.as_numpy("LABELS").tolist() == [[1, 0]]
    assert result.as_numpy("COUNT").tolist() == [[2]]
    assert result.get_response().model_name == model
    with pytest.raises(InferenceServerException, match="not REPORT"):
        client.infer(model, [image], headers=headers, outputs=[tritonclient.grpc.InferRequestedOutput("REPORT")])
    with pytest.raises(InferenceServerException, match="no deployment"):
        client.infer(new_id(), [image], headers=headers)
    client.close()


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


async def test_an_image_that_is_none_or_too_large_is_refused_and_a_turned_one_has_its_upright_size(
    world: Online,
) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (8001).to_bytes(4, "big") * 2
        for image in (b"no image", png, jpeg(9)[:20]):
            status, error = await refused(world.predict(active, image))
            assert (status, error.reason) == ("INVALID_ARGUMENT", "IMAGE_REFUSED")
        plain = jpeg(200, 90, 40)
        # A minimal EXIF segment with orientation 6: turned by 90°.
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
        answer = await world.predict(active, turned)
        assert (answer.width, answer.height) == (40, 90)
        assert max(found.x2 for found in answer.detections) <= 40
        assert max(found.y2 for found in answer.detections) > 60


async def test_after_a_restart_of_triton_and_fifteen_seconds_after_its_backend_process_died_it_serves_uncharged_between(
    run_service: ServiceRunner,
    tokens: Tokens,
    jetstream: JetStreamContext,
    own_triton: TritonServer,
    tmp_path: Path,
) -> None:
    async with online(run_service, tokens, jetstream, own_triton, tmp_path) as world, world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")

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
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
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
            account_id = await world.account()
            created = await world.create(account_id, await world.model(account_id))
            active = await world.until_state(created, "ACTIVE", "FAILED")
            await second.enter_async_context(world.serving())
        taken_over = await world.until_charged(active, (await world.get(active.deployment_id)).charged_ms)
    (process,) = serving_processes(active.deployment_id)
    async with world.serving():
        assert await world.until_charged(active, taken_over.charged_ms)
        assert (await world.predict(active, jpeg(180))).detections
        assert serving_processes(active.deployment_id) == [process], "it was never unloaded"
        await world.stop(active)
        await world.until_state(active, "STOPPED")


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


async def test_a_token_that_asks_too_fast_is_refused_at_once_and_others_are_served(world: Online) -> None:
    async with world.serving(token_requests_per_s=2):
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        request = publishing_pb2.PredictRequest(deployment_id=active.deployment_id, image=jpeg(180))
        token, other = world.owner(account_id), world.owner(account_id)
        for _ in range(2):
            await world.publishing.Predict(request, metadata=token)
        status, error = await refused(world.publishing.Predict(request, metadata=token))
        assert (status, error.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert 0 < float(error.metadata["retry_after_s"]) <= 0.5
        assert (await world.publishing.Predict(request, metadata=other)).detections
        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await stub.ModelInfer(infer_request(active.deployment_id, jpeg(180)), metadata=other)
            call = stub.ModelInfer(infer_request(active.deployment_id, jpeg(180)), metadata=other)
            assert (await refused(call))[1].reason == "RATE_LIMITED"


async def test_each_image_of_a_kserve_request_is_a_request_to_the_tokens_limits(world: Online) -> None:
    async with world.serving(token_requests_per_s=10):
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        eight = infer_request(active.deployment_id, *[jpeg(180)] * 8)
        nine = infer_request(active.deployment_id, *[jpeg(180)] * 9)
        cut = infer_request(active.deployment_id, jpeg(180))
        cut.raw_input_contents[0] = cut.raw_input_contents[0][:-1]
        token = world.owner(account_id)
        async with grpc.aio.insecure_channel(world.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for wrong in (nine, cut):
                assert (await refused(stub.ModelInfer(wrong, metadata=token)))[1].reason == "IMAGE_REFUSED"
            answer = await stub.ModelInfer(eight, metadata=token)
            assert answer.outputs[0].shape[0] == 8
            error = (await refused(stub.ModelInfer(eight, metadata=token)))[1]
            assert error.reason == "RATE_LIMITED"
            assert 0.3 < float(error.metadata["retry_after_s"]) <= 0.6


async def test_a_stop_that_billing_orders_ends_the_start_that_it_names_within_five_seconds_and_no_other(
    world: Online,
) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        for start_number in (2, 1):
            hold = billing_pb2.Hold(
                work_kind=billing_pb2.WORK_KIND_DEPLOYMENT, work_id=active.deployment_id, start_number=start_number
            )
            order = billing_events.StopOrdered(hold=hold, reason=billing_events.STOP_REASON_ARREARS)
            await world.send(order, "billing", account_id, active.deployment_id)
        stopped = await world.until_state(active, "STOPPED", timeout_s=5)
        assert stopped.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_ARREARS
        assert stopped.charge_status == billing_pb2.CHARGE_STATUS_STOPPED_FOR_ARREARS


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


async def test_more_requests_than_may_be_in_flight_are_refused_at_once(world: Online) -> None:
    async with world.serving():
        account_id = await world.account()
        created = await world.create(account_id, await world.model(account_id))
        active = await world.until_state(created, "ACTIVE", "FAILED")
        signal_serving_process(active.deployment_id, signal.SIGSTOP)
        try:
            calls = [asyncio.ensure_future(world.predict(active, jpeg(180))) for _ in range(33)]
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert len(waiting) == 32
            status, error = await refused(done.pop())
            assert (status, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
        finally:
            signal_serving_process(active.deployment_id, signal.SIGCONT)
        assert all(answer.detections for answer in await asyncio.gather(*waiting))
