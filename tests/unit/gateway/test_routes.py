"""Paths and verbs to methods."""

import re

import pytest

from saucer.billing.v1 import billing_pb2
from saucer.gateway.main import CONTRACTS
from saucer.gateway.routes import Match, compile_template, find, routes_of
from saucer.lib.v1 import dead_events_pb2

ROUTES = routes_of(CONTRACTS)


def called(verb: str, path: str) -> tuple[str, str, dict[str, str]]:
    match = find(ROUTES, verb, path)
    assert isinstance(match, Match), match
    return match.route.service, match.route.method.name, dict(match.values)


@pytest.mark.parametrize(
    ("verb", "path", "expected"),
    [
        ("POST", "/v1/accounts", ("billing", "CreateAccount", {})),
        ("GET", "/v1/accounts/a1", ("billing", "GetAccount", {"account_id": "a1"})),
        ("POST", "/v1/accounts/a1:topUp", ("billing", "TopUpAccount", {"account_id": "a1"})),
        (
            "POST",
            "/v1/regions/eu/specs/cpu-2:setPrice",
            ("billing", "SetPrice", {"region_id": "eu", "spec_id": "cpu-2"}),
        ),
        ("GET", "/v1/tasks/t1:watch", ("task", "WatchTask", {"task_id": "t1"})),
        ("GET", "/v1/tasks/t1", ("task", "GetTask", {"task_id": "t1"})),
        ("DELETE", "/v1/tasks/t1", ("task", "DeleteTask", {"task_id": "t1"})),
        ("POST", "/v1/tasks:quote", ("task", "QuoteTask", {})),
        ("GET", "/v1/runs/r1/metrics:stream", ("training", "StreamMetrics", {"run_id": "r1"})),
        (
            "GET",
            "/v1/models/m1/files/model.onnx",
            ("training", "DownloadModelFile", {"model_id": "m1", "name": "model.onnx"}),
        ),
        ("GET", "/v1/events:stream", ("gateway", "StreamEvents", {})),
        ("GET", "/v1/billing/deadEvents", ("billing", "ListDeadEvents", {})),
        ("POST", "/v1/task/deadEvents/e1:retry", ("task", "RetryDeadEvent", {"event_id": "e1"})),
    ],
)
def test_a_path_and_a_verb_choose_a_method(verb: str, path: str, expected: tuple[str, str, dict[str, str]]) -> None:
    assert called(verb, path) == expected


def test_a_value_is_decoded_once_and_may_hold_an_encoded_colon_or_slash() -> None:
    assert called("GET", "/v1/tasks/a%3Awatch%2Fb%2525")[2] == {"task_id": "a:watch/b%25"}


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/tasks/", "/v1/tasks/t1/x", "/v2/tasks", "/v1/tasks/t1:fly", "/v1/holds"]
)
def test_an_unknown_path_has_no_verbs(path: str) -> None:
    assert find(ROUTES, "GET", path) == frozenset()


def test_a_wrong_verb_is_told_the_right_ones() -> None:
    assert find(ROUTES, "PUT", "/v1/tasks/t1") == frozenset({"GET", "DELETE"})


def test_every_method_with_a_rule_is_routed_and_no_other() -> None:
    routed = {route.method.full_name for route in ROUTES}
    assert "saucer.billing.v1.BillingService.CreateHold" not in routed
    assert {method.full_name for method in CONTRACTS["task"][0].methods} <= routed


def test_a_contract_that_one_service_alone_serves_keeps_its_path() -> None:
    (listing, _) = routes_of({"billing": [dead_events_pb2.DESCRIPTOR.services_by_name["DeadEventService"]]})
    assert listing.template == "/v1/deadEvents"


def test_two_methods_on_one_path_stop_the_start() -> None:
    contract = billing_pb2.DESCRIPTOR.services_by_name["BillingService"]
    with pytest.raises(ValueError, match="both claim"):
        routes_of({"billing": [contract, contract]})


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("/v1/{name=shelves/*/books/*}", "/v1/shelves/1/books/2", ("shelves/1/books/2",)),
        ("/v1/{name=files/**}:copy", "/v1/files/a/b/c:copy", ("files/a/b/c",)),
        ("/v1/a.b/{x.y}", "/v1/a.b/1", ("1",)),
        ("/v1/a.b/{x.y}", "/v1/a-b/1", None),
        ("/v1/*/x", "/v1/anything/x", ()),
    ],
)
def test_templates_of_every_form(template: str, path: str, values: tuple[str, ...] | None) -> None:
    pattern, _ = compile_template(template)
    found: re.Match[str] | None = pattern.fullmatch(path)
    assert (found.groups() if found else None) == values
