"""Who did what: which calls are recorded."""

import importlib

import pytest

from saucer.lib.records import is_recorded
from saucer.lib.v1 import access_pb2


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
        ("lib.v1.calls", set(), {"ListCalls"}),
        ("training.v1.worker", set(), {"LeaseRun", "Heartbeat", "FinishRun"}),
    ],
)
def test_what_people_change_is_recorded_once_and_not_what_they_read(
    proto: str, among: set[str], not_among: set[str]
) -> None:
    assert recorded(proto) >= among
    assert not recorded(proto) & not_among
