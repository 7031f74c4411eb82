"""The verbs of money: what is sent, and what a script gets."""

# ruff: noqa: N802 - gRPC names methods as the protos do

import csv
import io
import json
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.cli.output import money
from tests.support.cli import Cli

# Fixed: parallel test processes must collect the same tests.
ACCOUNT, GROUP, TASK = (f"01a20aea-dd68-71ee-af64-{number:012d}" for number in range(3))


@dataclass
class Script(billing_pb2_grpc.BillingServiceServicer):
    """Keeps what it was sent, and answers with it."""

    requests: list[Any] = field(default_factory=list)
    # That ListStatements has.
    starts: int = 1
    # Of each of them, which are then read a line a page.
    lines: int = 1
    # Of each start.
    refunded_micros: int = 0
    lost_micros: int = 0

    def CreateResourceGroup(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return billing_pb2.ResourceGroup(resource_group_id=GROUP, display_name=request.display_name, capacity=2)

    def UpdateResourceGroup(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return billing_pb2.ResourceGroup(resource_group_id=GROUP, capacity=request.capacity)

    def ListResourceGroups(self, request: Any, context: Any) -> Any:
        groups = [billing_pb2.ResourceGroup(resource_group_id=GROUP, display_name="nights", capacity=2, waiting=3)]
        return billing_pb2.ListResourceGroupsResponse(resource_groups=groups)

    def SetBudget(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return billing_pb2.Budget(account_id=ACCOUNT, work_id=request.work_id, amount_micros=request.amount_micros)

    def ListBudgets(self, request: Any, context: Any) -> Any:
        budget = billing_pb2.Budget(amount_micros=50_000_000, booked_micros=1, reserve_micros=600_000, currency="EUR")
        return billing_pb2.ListBudgetsResponse(budgets=[budget])

    def SetPrice(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return billing_pb2.Spec(spec_id=request.spec_id, price_per_hour_micros=request.price_per_hour_micros)

    def ListStatements(self, request: Any, context: Any) -> Any:
        first = int(request.page_token or 0)
        if self.lines > 1:
            statement, following = _statement(first // self.lines + 1), first + 1
            statement.more_lines = following % self.lines > 0
            return billing_pb2.ListStatementsResponse(
                statements=[statement], next_page_token=str(following) if following < self.lines * self.starts else ""
            )
        last = min(first + (request.page_size or 50), self.starts)
        return billing_pb2.ListStatementsResponse(
            statements=[
                _statement(number + 1, refunded_micros=self.refunded_micros, lost_micros=self.lost_micros)
                for number in range(first, last)
            ],
            next_page_token=str(last) if last < self.starts else "",
        )

    def AuditLedger(self, request: Any, context: Any) -> Any:
        return billing_pb2.Audit(
            findings=[billing_pb2.AuditFinding(invariant=name, row="{}") for name in ("whole", "cut", "cut")],
            broken=[
                billing_pb2.BrokenInvariant(invariant="whole", rows=1),
                billing_pb2.BrokenInvariant(invariant="cut", rows=250),
            ],
        )

    def GetMonthlyStatement(self, request: Any, context: Any) -> Any:
        first = int(request.page_token or 0)
        last = min(first + (request.page_size or 50), self.starts)
        return billing_pb2.MonthlyStatement(
            month="2026-11",
            lines=[billing_pb2.StatementLine(amount_micros=1) for _ in range(first, last)],
            opening_available_micros=first,
            closing_available_micros=last,
            charged_micros=self.starts,
            next_page_token=str(last) if last < self.starts else "",
        )


def _statement(number: int, *, refunded_micros: int = 0, lost_micros: int = 0) -> billing_pb2.Statement:
    hold = billing_pb2.Hold(
        work_id=TASK, start_number=number, charge_micros=90_000, lost_micros=lost_micros, currency="EUR"
    )
    line = billing_pb2.StatementLine(
        kind=billing_pb2.STATEMENT_LINE_KIND_POSTING,
        amount_micros=90_000,
        charged_ms=90_999,
        hold_id=f"{TASK}-{number}",
        explanation="=1+1",
    )
    refund = billing_pb2.StatementLine(
        kind=billing_pb2.STATEMENT_LINE_KIND_REFUND, amount_micros=refunded_micros, hold_id=f"{TASK}-{number}"
    )
    return billing_pb2.Statement(hold=hold, lines=[line, refund] if refunded_micros else [line])


@pytest.fixture
def script() -> Script:
    return Script()  # type: ignore[abstract] # no test makes the other calls


@pytest.fixture
def cli(script: Script, tmp_path: Path) -> Iterator[Cli]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    billing_pb2_grpc.add_BillingServiceServicer_to_server(script, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    profile = tmp_path / "profile.json"
    yield Cli.write(profile, {"billing": address}, account_id=ACCOUNT, region_id="local", spec_id="cpu-2")
    server.stop(0)


def test_a_group_is_created_until_a_time_with_its_reason(cli: Cli, script: Script) -> None:
    options = ("--name", "nights", "--capacity", "2", "--until", "2027-01-01T00:00Z", "--reason", "paid by invoice")
    assert cli.json("group", "create", ACCOUNT, *options)["resourceGroupId"] == GROUP
    (request,) = script.requests
    assert request.end_time.ToJsonString() == "2027-01-01T00:00:00Z"
    assert not request.HasField("start_time")
    assert (request.account_id, request.spec_id, request.reason) == (ACCOUNT, "cpu-2", "paid by invoice")


def test_a_group_is_changed_only_where_it_is_said(cli: Cli, script: Script) -> None:
    cli("group", "update", GROUP, "--capacity", "4", "--reason", "more")
    (request,) = script.requests
    assert (request.capacity, request.HasField("end_time")) == (4, False)


def test_groups_are_listed_with_what_waits(cli: Cli) -> None:
    assert "nights" in cli("group", "list")


def test_a_budget_is_of_the_month_or_of_a_work(cli: Cli, script: Script) -> None:
    assert "each month" in cli("budget", "set", "50")
    cli("budget", "set", "12.50", "--work", TASK)
    assert [(request.work_id, request.amount_micros) for request in script.requests] == [
        ("", 50_000_000),
        (TASK, 12_500_000),
    ]
    assert "50.00 EUR" in cli("budget", "list")


def test_a_price_may_begin_later(cli: Cli, script: Script) -> None:
    cli("spec", "price", "local", "cpu-2", "4.20", "--from", "2027-01-01T12:00Z", "--reason", "electricity")
    (request,) = script.requests
    assert (request.start_time.ToJsonString(), request.reason) == ("2027-01-01T12:00:00Z", "electricity")


def test_a_statement_as_csv_has_a_row_for_each_line_and_as_text_the_sum_of_a_work(cli: Cli) -> None:
    rows = list(csv.DictReader(io.StringIO(cli("account", "statement", "--csv"))))
    assert [(row["kind"], row["amount_micros"], row["hold_id"]) for row in rows] == [("posting", "90000", f"{TASK}-1")]
    assert rows[0]["explanation"] == "'=1+1", "no formula for a spreadsheet"
    assert "In all, 1 starts: 0.09 EUR" in cli("account", "statement", "--work", TASK)


def test_the_sum_of_a_work_is_less_what_was_refunded_and_lost(cli: Cli, script: Script) -> None:
    script.starts, script.refunded_micros = 2, 60_000
    assert "In all, 2 starts: 0.06 EUR" in cli("account", "statement", "--work", TASK)
    script.lost_micros = 20_000
    assert "In all, 2 starts: 0.02 EUR" in cli("account", "statement", "--work", TASK)


@pytest.mark.parametrize("starts", [50, 51, 401])
def test_a_bill_has_all_starts_and_says_nothing_of_more(cli: Cli, script: Script, starts: int) -> None:
    script.starts = starts
    result = cli.result("account", "statement", "--csv")
    assert (len(list(csv.DictReader(io.StringIO(result.stdout)))), result.stderr) == (starts, "")
    assert len(cli.json("account", "statement")) == starts
    assert f"In all, {starts} starts: {money(starts * 90_000)} EUR" in cli("account", "statement", "--work", TASK)


def test_a_start_whose_lines_lie_on_several_pages_is_one_with_all_of_them(cli: Cli, script: Script) -> None:
    script.starts, script.lines = 3, 4
    statements = cli.json("account", "statement")
    assert [len(statement["lines"]) for statement in statements] == [4, 4, 4]
    assert not any(statement.get("moreLines") for statement in statements)
    assert len(list(csv.DictReader(io.StringIO(cli("account", "statement", "--csv"))))) == 12
    assert "In all, 3 starts: 0.27 EUR" in cli("account", "statement", "--work", TASK)
    cut = cli.result("account", "statement", "--limit", "2", "--json")
    assert [len(statement["lines"]) for statement in json.loads(cut.stdout)] == [4, 4]
    assert "There are more than these 2" in cut.stderr
    assert cli.result("account", "statement", "--limit", "3", "--csv").stderr == ""


def test_a_bill_that_is_cut_says_so_and_its_sum_is_of_what_is_shown(cli: Cli, script: Script) -> None:
    script.starts = 3
    for form in ("--csv", "--json"):
        assert "There are more than these 2" in cli.result("account", "statement", "--limit", "2", form).stderr
    cut = cli("account", "statement", "--work", TASK, "--limit", "2")
    assert "Of these, 2 starts: 0.18 EUR" in cut
    assert "In all" not in cut
    assert cli.result("account", "statement", "--limit", "3", "--csv").stderr == ""


@pytest.mark.parametrize(("limit", "lines"), [((), 401), (("--limit", "3"), 3), (("--limit", "401"), 401)])
def test_a_month_has_all_lines_or_says_that_there_are_more(
    cli: Cli, script: Script, limit: tuple[str, ...], lines: int
) -> None:
    script.starts = 401
    result = cli.result("account", "month", "--json", *limit)
    month = json.loads(result.stdout)
    assert (len(month["lines"]), month["openingAvailableMicros"]) == (lines, "0")
    assert (month["closingAvailableMicros"], month["chargedMicros"]) == (str(lines), "401")
    assert ("There are more than these" in result.stderr) == (lines < 401) == bool(month["nextPageToken"])


def test_an_audit_says_how_many_rows_it_does_not_name(cli: Cli) -> None:
    result = cli.result("billing", "audit")
    assert result.exit_code == 1
    assert "cut: 248 more rows, 250 in all." in result.stdout
    assert "whole:" not in result.stdout
