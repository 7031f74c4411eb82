"""Another account's token sees none of it. The calls are taken from the descriptors: a new one without a case fails."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from saucer.lib.auth import Role
from saucer.lib.clock import to_timestamp
from saucer.lib.ids import new_id
from saucer.lib.v1 import access_pb2
from saucer.local.stack import REGION_ID, SPEC_ID
from tests.support.saucer_client import Account, Saucer
from tests.support.services import Metadata
from tests.support.stack import Trained

USUAL = ("saucer.lib.v1.dead_events_pb2", "saucer.lib.v1.calls_pb2")
MODULES = {
    "billing": ["saucer.billing.v1.billing_pb2", *USUAL],
    "dataset": ["saucer.dataset.v1.dataset_pb2", *USUAL],
    "task": ["saucer.task.v1.task_pb2", *USUAL],
    "training": ["saucer.training.v1.training_pb2", "saucer.training.v1.worker_pb2", *USUAL],
    "evaluation": ["saucer.evaluation.v1.evaluation_pb2", *USUAL],
    "publishing": ["saucer.publishing.v1.publishing_pb2", *USUAL],
    "gateway": ["saucer.gateway.v1.gateway_pb2"],
}
OF_ACCOUNTS = {access_pb2.ACCESS_VIEWER, access_pb2.ACCESS_EDITOR, access_pb2.ACCESS_OWNER}
# Calls of an account's role that concern nobody's things.
PUBLIC_KNOWLEDGE = {"ListRegions", "ListSpecs", "ListScenes", "ListStartingPoints", "ListParameters"}


@dataclass(frozen=True)
class Call:
    """One method of one running service."""

    service: str
    method: MethodDescriptor

    @property
    def access(self) -> int:
        return int(self.method.GetOptions().Extensions[access_pb2.access])

    def __str__(self) -> str:
        return f"{self.service}:{self.method.full_name}"


def calls() -> Iterator[Call]:
    for service, modules in MODULES.items():
        for module in modules:
            for descriptor in importlib.import_module(module).DESCRIPTOR.services_by_name.values():
                yield from (Call(service, method) for method in descriptor.methods)


CALLS = list(calls())


@dataclass(frozen=True)
class Owned:
    """Ids of real things of one account."""

    account: Account
    ids: dict[str, str]


@pytest.fixture(scope="session")
async def owned(saucer: Saucer, trained: Trained) -> Owned:
    account, task = trained.data.account, trained.task
    deployment = await saucer.deploy(account, task.model_id)
    await saucer.stop_deployment(account, deployment.deployment_id)
    upload, imported = await saucer.leftovers(account, trained.data.folder)
    ids = {
        "account_id": account.account_id,
        "task_id": task.task_id,
        "run_id": task.run_id,
        "model_id": task.model_id,
        "evaluation_id": task.evaluation_id,
        "dataset_version_id": trained.data.dataset_version_id,
        "deployment_id": deployment.deployment_id,
        "upload_id": upload,
        "import_id": imported,
        "resource_group_id": await saucer.group(account),
        "draft_id": await saucer.draft(account, trained.data.dataset_version_id),
        "image_set_id": trained.data.dataset_version_id,
    }
    return Owned(account, ids)


# What else a request needs to be well formed, by the field's name; ids come from the owner's things.
FILLING: dict[str, Callable[[], Any]] = {
    "request_id": new_id,
    "event_id": new_id,
    "base_evaluation_id": new_id,
    "hold_id": lambda: f"{new_id()}-1",
    "display_name": lambda: "x",
    "external_reference": new_id,
    "amount_micros": lambda: 1,
    "region_id": lambda: REGION_ID,
    "spec_id": lambda: SPEC_ID,
    "currency": lambda: "EUR",
    "cpu_cores": lambda: 1,
    "max_count": lambda: 1,
    "capacity": lambda: 1,
    "end_time": lambda: to_timestamp(datetime.now(UTC) + timedelta(days=1)),
    "price_per_hour_micros": lambda: 1,
    "count": lambda: 1,
    "replicas": lambda: 1,
    "billing_mode": lambda: 1,
    "work_kind": lambda: 1,
    "start_number": lambda: 1,
    "version_number": lambda: 1,
    "triton_id": lambda: "other",
    "address": lambda: "127.0.0.1:1",
    "repository": lambda: "/nowhere",
    "room": lambda: 1,
    "threads": lambda: 1,
    "size_bytes": lambda: 1,
    "data": lambda: b"x",
    "image": lambda: b"x",
    "name": lambda: "model.onnx",
    "scene": lambda: "object-detection",
    "worker_id": lambda: "w",
    "url": lambda: "file:///",
    "token": lambda: "t",
    "sequence": lambda: 1,
    "image_id": lambda: 1,
    "revision": lambda: 1,
    "stage": lambda: 3,
    "reason": lambda: 1,
    "kind": lambda: 1,
}
# Optional filters that would change what a request is about.
LEFT_OUT = {"work_id", "store_path"}


def request_of(call: Call, ids: dict[str, str]) -> Message:
    """A well-formed request about these ids."""
    message = message_factory.GetMessageClass(call.method.input_type)()
    _fill(message, ids)
    if call.method.name == "CreateHold":
        message.work_id = ids["task_id"]  # type: ignore[attr-defined] # a message of any type
        message.hold_id = f"{ids['task_id']}-1"  # type: ignore[attr-defined]
    return message


def _fill(message: Message, ids: dict[str, str]) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.name in LEFT_OUT or (field.name == "resource_group_id" and hasattr(message, "billing_mode")):
            # What is started here is post-paid.
            continue
        if field.name == "form":
            _fill(getattr(message, field.name), ids)
        elif field.name in ids:
            setattr(message, field.name, ids[field.name])
        elif field.name in FILLING:
            value = FILLING[field.name]()
            if isinstance(value, Message):
                getattr(message, field.name).CopyFrom(value)
                continue
            # A reason is an enum's number, or a sentence for the record.
            setattr(message, field.name, str(value) if field.type == field.TYPE_STRING else value)


async def answer(
    saucer: Saucer, call: Call, request: Message, metadata: Metadata, *, streams_nothing: bool = False
) -> grpc.aio.AioRpcError | None:
    """How a call is refused; None if it is not.

    Args:
        streams_nothing: of a stream of requests none is sent. Where the caller is refused whatever is asked, one that
            meets the refusal on its way would be told as an INTERNAL error by grpc.aio's client itself.
    """

    async def requests() -> AsyncIterator[Message]:
        if streams_nothing:
            await asyncio.Event().wait()
        yield request

    path = f"/{call.method.containing_service.full_name}/{call.method.name}"
    channel = saucer.channels[call.service]
    response = message_factory.GetMessageClass(call.method.output_type)
    serializers: dict[str, Any] = {
        "request_serializer": lambda message: message.SerializeToString(),
        "response_deserializer": response.FromString,
    }
    try:
        if call.method.client_streaming:
            both = channel.stream_stream(path, **serializers)(requests(), metadata=metadata, timeout=10)
            async for _ in both:
                break
        elif call.method.server_streaming:
            stream = channel.unary_stream(path, **serializers)(request, metadata=metadata, timeout=10)
            async for _ in stream:
                break
        else:
            await channel.unary_unary(path, **serializers)(request, metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.mark.parametrize(
    "call",
    [call for call in CALLS if call.access in OF_ACCOUNTS and call.method.name not in PUBLIC_KNOWLEDGE],
    ids=str,
)
async def test_another_accounts_things_do_not_exist(saucer: Saucer, owned: Owned, call: Call) -> None:
    stranger = await saucer.account(0)
    refusal = await answer(saucer, call, request_of(call, owned.ids), stranger.metadata)
    assert refusal is not None, f"{call} answered a stranger"
    assert refusal.code() is grpc.StatusCode.NOT_FOUND, refusal.details()


@pytest.mark.parametrize("call", [call for call in CALLS if call.access not in OF_ACCOUNTS], ids=str)
async def test_calls_of_the_platform_are_denied_the_same_whether_the_id_exists_or_not(
    saucer: Saucer, owned: Owned, call: Call
) -> None:
    stranger = saucer.tokens.metadata(Role.OWNER, new_id())
    refusals = []
    for ids in (owned.ids, {name: new_id() for name in owned.ids}):
        refusal = await answer(saucer, call, request_of(call, ids), stranger)
        assert refusal is not None
        refusals.append((refusal.code(), refusal.details()))
    assert refusals[0] == refusals[1]
    assert refusals[0][0] is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_without_a_token_nothing_is_answered(saucer: Saucer, owned: Owned, call: Call) -> None:
    refusal = await answer(saucer, call, request_of(call, owned.ids), (), streams_nothing=True)
    assert refusal is not None
    assert refusal.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "call", [call for call in CALLS if call.access in OF_ACCOUNTS - {access_pb2.ACCESS_VIEWER}], ids=str
)
async def test_a_viewer_changes_nothing(saucer: Saucer, owned: Owned, call: Call) -> None:
    viewer = saucer.tokens.metadata(Role.VIEWER, owned.account.account_id)
    refusal = await answer(saucer, call, request_of(call, owned.ids), viewer, streams_nothing=True)
    assert refusal is not None
    assert refusal.code() is grpc.StatusCode.PERMISSION_DENIED
