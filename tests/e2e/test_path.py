"""The main job on real parts, seen from outside: by reflection, by events, by a Triton client, by the bill."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import nats
import numpy as np
import pytest
import tritonclient.grpc as triton
import yaml
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.local.stack import REGION_ID, SPEC_ID
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2
from tests.support.bill import replay, starts
from tests.support.saucer_client import HOLD_MICROS, Saucer
from tests.support.stack import PROJECT, Data, Trained


async def test_from_labelled_images_to_a_served_detector_and_its_bill(saucer: Saucer, trained: Trained) -> None:
    account, task = trained.data.account, trained.task
    assert task.end_reason == training_pb2.END_REASON_COMPLETED
    assert task.HasField("test_map_50")
    deployment = await saucer.deploy(account, task.model_id)
    assert deployment.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, deployment
    assert deployment.parity.ok
    # The least that any runtime is allowed.
    assert deployment.parity.paired_share >= 0.95

    image = first_image(trained.data.folder)
    predict = publishing_pb2.PredictRequest(deployment_id=deployment.deployment_id, image=image)
    answer = await saucer.publishing.Predict(predict, metadata=account.metadata)
    assert answer.width > 0
    assert answer.detections

    boxes = await asyncio.to_thread(bare_triton_client, deployment.deployment_id, image, account.token, saucer)
    assert len(boxes) == len(answer.detections)
    expected = [[found.x1, found.y1, found.x2, found.y2] for found in answer.detections]
    np.testing.assert_allclose(boxes, expected, atol=1e-3)

    stopped = await saucer.stop_deployment(account, deployment.deployment_id)
    assert stopped.end_reason == publishing_pb2.DEPLOYMENT_END_REASON_STOPPED_BY_USER
    await saucer.nothing_frozen(account)
    await the_bill_is_what_the_events_say(saucer, trained.data)


async def the_bill_is_what_the_events_say(saucer: Saucer, data: Data) -> None:
    client = await nats.connect(saucer.stack.nats.uri)
    events = await replay(client.jetstream(), f"saucer.*.v1.*.{data.account.account_id}.>")
    await client.close()
    read = starts(events)
    statements = {statement.hold.hold_id: statement for statement in await saucer.statements(data.account)}
    assert set(statements) == set(read)
    for hold_id, start in read.items():
        hold = statements[hold_id].hold
        assert hold.charge_micros == start.charge_micros
        assert hold.settled_micros + hold.posted_micros + hold.lost_micros == start.charge_micros
        assert hold.amount_micros == start.amount_micros == HOLD_MICROS
    available, frozen = await saucer.balance(data.account)
    assert frozen == 0
    assert available == 100 * HOLD_MICROS - sum(start.charge_micros for start in read.values())
    audit = await saucer.audit()
    assert audit.clean, audit.findings
    assert audit.ledger_sum_micros == 0


async def test_a_model_evaluated_again_by_a_predict_task_has_the_same_detections_and_figures(
    saucer: Saucer, trained: Trained
) -> None:
    account, task = trained.data.account, trained.task
    form = saucer.form(trained.data.dataset_version_id, kind=task_pb2.TASK_KIND_PREDICT, model_id=task.model_id)
    created = await saucer.create_task(account, form)
    again = await saucer.task_ends(account, created.task_id)
    assert again.state == task_pb2.TASK_STATE_SUCCEEDED, again
    assert (again.model_id, again.test_map_50) == (task.model_id, task.test_map_50)
    assert again.evaluation_id != task.evaluation_id
    model = await saucer.training.GetModel(
        training_pb2.GetModelRequest(model_id=task.model_id), metadata=account.metadata
    )
    sums = {file.name: file.sha256 for file in model.files}
    run = await saucer.run_of(account, again.task_id)
    assert run is not None
    objects = Objects(f"file://{saucer.stack.layout.objects}")
    for name in ("detections_test.npz", "detections_validation.npz"):
        stored = await objects.get(f"system/{account.account_id}/runs/{run.run_id}/attempt-1/{name}")
        assert hashlib.sha256(stored).hexdigest() == sums[name]
    first, second = [
        await saucer.evaluation.GetEvaluation(
            evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id), metadata=account.metadata
        )
        for evaluation_id in (task.evaluation_id, again.evaluation_id)
    ]
    assert (first.by_prediction, second.by_prediction) == (False, True)
    assert [entry.SerializeToString() for entry in first.classes] == [
        entry.SerializeToString() for entry in second.classes
    ]
    await saucer.nothing_frozen(account)


def first_image(folder: Path) -> bytes:
    """One that shows something."""
    labels = json.loads((folder / "annotations" / "test.json").read_text())
    image_id = labels["annotations"][0]["image_id"]
    (name,) = (image["file_name"] for image in labels["images"] if image["id"] == image_id)
    return (folder / "images" / Path(name).name).read_bytes()


def bare_triton_client(deployment_id: str, image: bytes, token: str, saucer: Saucer) -> Any:
    """Knows KServe v2, the address and a token; sends JPEG bytes."""
    headers = {"authorization": f"Bearer {token}"}
    address = saucer.stack.processes["publishing"].address
    with triton.InferenceServerClient(address) as client:
        assert client.is_model_ready(deployment_id, headers=headers)
        names = {output.name for output in client.get_model_metadata(deployment_id, headers=headers).outputs}
        assert names == {"BOXES", "SCORES", "LABELS", "COUNT"}
        tensor = triton.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], dtype=np.object_))
        return client.infer(deployment_id, [tensor], headers=headers).as_numpy("BOXES").reshape(-1, 4)


async def test_a_client_that_knows_only_address_token_and_reflection_creates_a_task_and_reads_it(
    saucer: Saucer, data: Data
) -> None:
    created, read = await asyncio.to_thread(create_by_reflection, saucer, data)
    assert read["taskId"] == created["taskId"]
    assert read["state"] in {"TASK_STATE_QUEUED", "TASK_STATE_TRAINING"}
    await saucer.stop_task(data.account, created["taskId"])
    await saucer.task_ends(data.account, created["taskId"])


def create_by_reflection(saucer: Saucer, data: Data) -> tuple[dict[str, Any], dict[str, Any]]:
    address = saucer.stack.processes["task"].address
    assert address is not None
    with grpc.insecure_channel(address) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("saucer.task.v1.TaskService")

        def call(name: str, fields: dict[str, Any]) -> dict[str, Any]:
            method = service.FindMethodByName(name)
            request = json_format.ParseDict(fields, message_factory.GetMessageClass(method.input_type)())
            response = message_factory.GetMessageClass(method.output_type)
            stub: Callable[..., Message] = channel.unary_unary(
                f"/{service.full_name}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )
            result: dict[str, Any] = json_format.MessageToDict(stub(request, metadata=data.account.metadata))
            return result

        form = {
            "displayName": "by-reflection",
            "scene": "object-detection",
            "datasetVersionId": data.dataset_version_id,
            "regionId": REGION_ID,
            "specId": SPEC_ID,
            "count": 1,
            "billingMode": "BILLING_MODE_POSTPAID",
        }
        created = call("CreateTask", {"requestId": new_id(), "form": form})
        return created, call("GetTask", {"taskId": created["taskId"]})


async def test_a_subscriber_that_joins_late_replays_every_event_of_a_task_as_asyncapi_describes_it(
    saucer: Saucer, trained: Trained
) -> None:
    contract = yaml.safe_load((PROJECT / "protos" / "asyncapi.yaml").read_text())
    client = await nats.connect(saucer.stack.nats.uri)
    events = await replay(
        client.jetstream(), f"saucer.*.v1.*.{trained.data.account.account_id}.{trained.task.task_id}.>"
    )
    await client.close()
    types = [event.type.rsplit(".", 1)[1] for event in events]
    assert set(types) >= {
        "TaskCreated",
        "HoldGranted",
        "TaskQueued",
        "RunQueued",
        "RunStarted",
        "RunProgressed",
        "RunEnded",
        "HoldResolved",
        "EvaluationEnded",
        "TaskEnded",
    }
    revisions: dict[tuple[str, str], list[int]] = {}
    for event in events:
        headers = {name: value for name, value in event.headers().items() if name != "Nats-Msg-Id"}
        validate(headers, {"$ref": "#/components/schemas/CloudEventHeaders"}, contract)
        body = json.loads(event.data)
        validate(body, contract["components"]["messages"][event.type]["payload"], contract)
        snapshot_name, snapshot = next(iter(body.items()))
        revisions.setdefault((snapshot_name, event.subject.rsplit(".", 1)[1]), []).append(int(snapshot["revision"]))
    for resource, seen in revisions.items():
        assert seen == sorted(set(seen)), resource


def validate(value: object, schema: dict[str, Any], contract: dict[str, Any]) -> None:
    jsonschema.validate(value, {**schema, "components": contract["components"]})


async def test_a_balance_one_micro_short_is_refused_and_starts_nothing(saucer: Saucer, shapes_folder: Path) -> None:
    account = await saucer.account(HOLD_MICROS - 1)
    imported = await saucer.import_folder(account, shapes_folder)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await saucer.create_task(account, saucer.form(imported.dataset_version_id))
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await saucer.balance(account) == (HOLD_MICROS - 1, 0)
    response = await saucer.task.ListTasks(task_pb2.ListTasksRequest(), metadata=account.metadata)
    assert [task.state for task in response.tasks] == [task_pb2.TASK_STATE_REFUSED]
    assert await saucer.run_of(account, response.tasks[0].task_id) is None
