"""HTTP to request messages and back."""

import base64
import json
from contextlib import suppress
from urllib.parse import parse_qsl

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from saucer.billing.v1 import billing_pb2
from saucer.gateway.main import CONTRACTS
from saucer.gateway.mapping import HTTP_STATUS, error_json, fill, to_json
from saucer.gateway.routes import Match, find, routes_of
from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError
from saucer.lib.grpc_status import to_status
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2

ROUTES = routes_of(CONTRACTS)


def request(verb: str, path: str, query: str = "", body: bytes = b"") -> Message:
    match = find(ROUTES, verb, path)
    assert isinstance(match, Match)
    message: Message = GetMessageClass(match.route.method.input_type)()
    fill(message, match, parse_qsl(query, keep_blank_values=True), body)
    return message


def refused(verb: str, path: str, query: str = "", body: bytes = b"") -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        request(verb, path, query, body)
    return caught.value


def test_parameters_of_every_kind() -> None:
    message = request(
        "GET",
        "/v1/runs/r1/log",
        "keywords=lost&keywords=map&minLevel=LOG_LEVEL_WARNING&start_time=2026-01-02T03:04:05Z&newest_first=true&pageSize=7",
    )
    assert isinstance(message, training_pb2.ListLogLinesRequest)
    assert message.run_id == "r1"
    assert list(message.keywords) == ["lost", "map"]
    assert message.min_level == training_pb2.LOG_LEVEL_WARNING
    assert message.start_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert message.newest_first
    assert message.page_size == 7


def test_an_optional_number_and_repeated_enums() -> None:
    message = request("GET", "/v1/evaluations/e1/badCases", "threshold=0.25&kinds=FAULT_KIND_MISS&kinds=3")
    assert message == type(message)(evaluation_id="e1", threshold=0.25, kinds=[2, 3])


def test_a_body_with_a_nested_form_a_duration_and_the_path() -> None:
    body = {"requestId": "r", "task_id": "another", "maxDuration": "90.5s"}
    message = request("POST", "/v1/tasks/t1:restart", body=json.dumps(body).encode())
    assert isinstance(message, task_pb2.RestartTaskRequest)
    assert message.task_id == "t1"
    assert message.max_duration.ToMilliseconds() == 90_500


def test_bytes_travel_as_base64() -> None:
    body = json.dumps({"image": base64.b64encode(b"\xff\xd8\x00").decode()}).encode()
    message = request("POST", "/v1/deployments/d1:predict", body=body)
    assert message == publishing_pb2.PredictRequest(deployment_id="d1", image=b"\xff\xd8\x00")


def test_no_body_is_an_empty_one() -> None:
    assert request("POST", "/v1/tasks/t1:stop") == task_pb2.StopTaskRequest(task_id="t1")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("nothing=1", "PARAMETER_UNKNOWN"),
        ("page_size=1&page_size=2", "PARAMETER_REPEATED"),
        ("page_size=1&pageSize=1", "PARAMETER_REPEATED"),
        ("page_size=many", "FIELD_UNREADABLE"),
        ("page_size=99999999999", "FIELD_UNREADABLE"),
        ("min_level=LOUD", "FIELD_UNREADABLE"),
        ("newest_first=yes", "FIELD_UNREADABLE"),
        ("start_time=yesterday", "FIELD_UNREADABLE"),
        ("start_time.seconds=1", "PARAMETER_UNKNOWN"),
        ("page_size.x=1", "PARAMETER_UNKNOWN"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(query: str, reason: str) -> None:
    error = refused("GET", "/v1/runs/r1/log", query)
    assert error.reason == reason


@pytest.mark.parametrize(
    "body",
    [
        b"[1]",
        b"{",
        b'"text"',
        b'{"unknown": 1}',
        b'{"requestId": 1}',
        b"[" * 100_000,
        b"\xff",
        b'{"requestId": {"a": 1}}',
    ],
)
def test_a_body_that_cannot_be_read_is_refused(body: bytes) -> None:
    assert refused("POST", "/v1/tasks/t1:stop", body=body).reason in {"BODY_UNREADABLE", "FIELD_UNREADABLE"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["form", "requestId", "tags", "maxDuration", "request_id", "x"]), x)
        ),
    )
)
def test_any_json_either_fills_a_request_or_is_refused(value: object) -> None:
    body = json.dumps(value).encode()
    with suppress(InvalidArgumentError):
        assert request("POST", "/v1/tasks", body=body).IsInitialized()


def test_parameters_beside_a_whole_body_are_refused() -> None:
    assert refused("POST", "/v1/tasks/t1:stop", "request_id=1").reason == "PARAMETER_UNKNOWN"


def test_an_answer_shows_zeros_and_writes_large_integers_as_text() -> None:
    shown = json.loads(to_json(billing_pb2.Account(account_id="a", available_micros=2**53 + 1)))
    assert shown["availableMicros"] == "9007199254740993"
    assert shown["frozenMicros"] == "0"
    assert "createTime" not in shown


def test_an_error_carries_status_message_reason_and_metadata() -> None:
    error = FailedPreconditionError("INSUFFICIENT_BALANCE", "Short of money.", missing_micros=5)
    assert error_json(to_status("x", error)) == {
        "error": {
            "code": 400,
            "status": "FAILED_PRECONDITION",
            "message": "Short of money.",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "INSUFFICIENT_BALANCE",
                    "domain": "saucer",
                    "metadata": {"missing_micros": "5"},
                }
            ],
        }
    }


def test_a_detail_of_an_unknown_type_is_passed_on_as_bytes() -> None:
    status = status_pb2.Status(code=code_pb2.INTERNAL)
    status.details.add(type_url="type.googleapis.com/of.nobody", value=b"\x01")
    assert error_json(status)["error"]["details"] == [{"@type": "type.googleapis.com/of.nobody", "value": "AQ=="}]


def test_every_code_has_an_http_status() -> None:
    assert set(HTTP_STATUS) == set(code_pb2.Code.values())
