"""Who did what: which calls are told, and with what."""

import importlib

import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from saucer.billing.v1 import billing_pb2
from saucer.lib.auth import Principal, Role
from saucer.lib.records import is_recorded, record
from saucer.lib.v1 import access_pb2
from saucer.task.v1 import task_pb2


def recorded(proto: str) -> set[str]:
    services = importlib.import_module(f"saucer.{proto}_pb2").DESCRIPTOR.services_by_name.values()
    return {
        method.name
        for service in services
        for method in service.methods
        if is_recorded(method, method.GetOptions().Extensions[access_pb2.access])
    }


@pytest.mark.parametrize(
    ("proto", "among", "not_among"),
    [
        ("dataset.v1.dataset", {"CreateUpload", "ImportDataset", "DeleteDraft"}, {"WriteUpload", "SaveLabels"}),
        ("task.v1.task", {"CreateTask", "StopTask", "RestartTask", "DeleteTask"}, {"QuoteTask", "GetTask"}),
        ("publishing.v1.publishing", {"CreateDeployment", "StopDeployment", "StartDeployment"}, {"Predict"}),
        ("billing.v1.billing", {"TopUpAccount", "SuspendAccount", "SetBudget", "SetPrice"}, {"CreateHold"}),
        ("lib.v1.dead_events", {"RetryDeadEvent"}, {"ListDeadEvents"}),
        ("training.v1.worker", set(), {"LeaseRun", "Heartbeat", "FinishRun"}),
    ],
)
def test_what_people_change_is_recorded_once_and_not_what_they_read(
    proto: str, among: set[str], not_among: set[str]
) -> None:
    assert recorded(proto) >= among
    assert not recorded(proto) & not_among


@pytest.mark.parametrize(
    ("principal_account", "request_", "response", "account_id", "ids"),
    [
        ("a", task_pb2.StopTaskRequest(request_id="r", task_id="t"), task_pb2.Task(task_id="t"), "a", {"task_id": "t"}),
        (
            None,
            task_pb2.CreateTaskRequest(request_id="r"),
            task_pb2.Task(task_id="t", account_id="b"),
            "b",
            {"task_id": "t"},
        ),
        (
            None,
            billing_pb2.SuspendAccountRequest(request_id="r", account_id="b"),
            billing_pb2.Account(account_id="b"),
            "b",
            {},
        ),
    ],
)
def test_a_line_says_who_did_what_to_which_with_which_token(
    principal_account: str | None, request_: Message, response: Message, account_id: str, ids: dict[str, str]
) -> None:
    role = Role.EDITOR if principal_account else Role.ADMINISTRATOR
    with capture_logs() as lines:
        record(Principal("somebody", role, principal_account, "token", 0.0), "/s/M", request_, response)
    assert lines == [
        {
            "event": "call_made",
            "log_level": "info",
            "method": "/s/M",
            "author": "somebody",
            "role": role,
            "token_id": "token",
            "account_id": account_id,
            "request_id": "r",
            "ids": ids,
        }
    ]
