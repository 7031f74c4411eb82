"""`saucer …` against a real billing and a real gateway."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext

from saucer.billing.main import wire as wire_billing
from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.gateway.main import GatewaySettings
from saucer.gateway.main import wire as wire_gateway
from saucer.lib.auth import Role
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.config import ServiceSettings
from saucer.lib.ids import new_id
from saucer.lib.run import Process
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.support.cli import Cli
from tests.support.events import event, publish, until
from tests.support.services import KEY_ID, Running, ServiceRunner, Tokens, free_address

BECAUSE = ("--reason", "a test")


@dataclass(frozen=True)
class Saucer:
    """Types commands in a thread, so that the services of this loop can answer."""

    cli: Cli
    billing: Running
    tokens: Tokens

    async def run(self, function: Callable[..., Any], *arguments: str, **more: Any) -> Any:
        return await asyncio.to_thread(function, *arguments, **more)

    async def text(self, *arguments: str, **more: Any) -> str:
        return str(await self.run(self.cli, *arguments, **more))

    async def json(self, *arguments: str, **more: Any) -> Any:
        return await self.run(self.cli.json, *arguments, **more)

    async def fails(self, *arguments: str, **more: Any) -> str:
        return str(await self.run(self.cli.fails, *arguments, **more))

    async def account(self) -> str:
        return str((await self.json("account", "create", "--name", "A", *BECAUSE))["accountId"])


@pytest.fixture
async def saucer(run_service: ServiceRunner, tokens: Tokens, tmp_path: Path) -> AsyncIterator[Saucer]:
    async with run_service("billing", ServiceSettings, wire_billing) as billing:
        process = Process("gateway")
        async with process.stack:
            settings = GatewaySettings(
                listen="127.0.0.1:0",
                http_listen=free_address(),
                nats_url=run_service.nats_url,
                public_keys_file=tokens.public_keys_file,
                billing_address=billing.address,
                dataset_address=billing.address,
                task_address=billing.address,
                training_address=billing.address,
                evaluation_address=billing.address,
                publishing_address=billing.address,
            )
            await wire_gateway(process, settings)
            assert process.address is not None
            cli = Cli.write(
                tmp_path / "profile.json",
                {"billing": billing.address, "gateway": process.address, "task": free_address()},
                token=tokens.mint(Role.ADMINISTRATOR),
                private_key_file=str(tokens.folder / "private.pem"),
                key_id=KEY_ID,
            )
            yield Saucer(cli, billing, tokens)


async def offer(saucer: Saucer) -> None:
    await saucer.text("region", "create", "local", *BECAUSE)
    await saucer.text("spec", "create", "local", "cpu-2", "--cpu-cores", "2", "--price", "3.60", *BECAUSE)


async def test_accounts_are_created_topped_up_listed_and_shown(saucer: Saucer) -> None:
    account_id = await saucer.account()
    added = await saucer.json("account", "topup", account_id, "12.50", "--reference", "payment-1")
    again = await saucer.json("account", "topup", account_id, "12.50", "--reference", "payment-1")
    assert added["availableMicros"] == again["availableMicros"] == "12500000"
    shown = await saucer.text("account", "show", account_id)
    assert "12.50 EUR" in shown
    assert account_id in await saucer.text("account", "list")
    assert account_id in {item["accountId"] for item in await saucer.json("account", "list")}


async def test_the_same_request_id_makes_one_account(saucer: Saucer) -> None:
    request_id = new_id()
    made = [
        await saucer.json("account", "create", "--name", "A", *BECAUSE, "--request-id", request_id) for _ in range(2)
    ]
    assert made[0] == made[1]


async def test_options_may_stand_before_the_verb(saucer: Saucer) -> None:
    assert json.loads(await saucer.text("--json", "account", "list")) == []


async def test_a_listing_goes_over_its_pages_and_stops_at_the_limit(
    saucer: Saucer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saucer.cli.app.PAGE_SIZE", 2)
    for _ in range(5):
        await saucer.account()
    assert len(await saucer.json("account", "list")) == 5
    assert len(await saucer.json("account", "list", "--limit", "3")) == 3


async def test_specs_are_offered_priced_and_listed(saucer: Saucer) -> None:
    await offer(saucer)
    await saucer.text("spec", "price", "local", "cpu-2", "4", *BECAUSE)
    (spec,) = await saucer.json("spec", "list", "--region", "local")
    assert spec["pricePerHourMicros"] == "4000000"
    assert "4.00 EUR" in await saucer.text("spec", "list")
    assert await saucer.json("region", "list") == [{"regionId": "local", "displayName": "local"}]
    assert (await saucer.json("spec", "withdraw", "local", "cpu-2", *BECAUSE))["withdrawn"] is True
    assert await saucer.json("spec", "list") == []
    assert "withdrawn" in await saucer.text("spec", "list", "--all")
    assert (await saucer.json("spec", "offer", "local", "cpu-2", *BECAUSE))["withdrawn"] is False


async def test_a_statement_explains_what_a_start_cost(saucer: Saucer, jetstream: JetStreamContext) -> None:
    await offer(saucer)
    account_id, work_id = await saucer.account(), new_id()
    await saucer.text("account", "topup", account_id, "100")
    stub = billing_pb2_grpc.BillingServiceStub(saucer.billing.channel)
    hold = billing_pb2.CreateHoldRequest(
        hold_id=f"{work_id}-1",
        account_id=account_id,
        work_kind=billing_pb2.WORK_KIND_TASK,
        work_id=work_id,
        start_number=1,
        region_id="local",
        spec_id="cpu-2",
        count=1,
    )
    await stub.CreateHold(hold, metadata=saucer.tokens.metadata(Role.SERVICE))
    run = training_pb2.Run(
        run_id=new_id(), account_id=account_id, task_id=work_id, hold_id=hold.hold_id, charged_ms=90_000
    )
    await publish(jetstream, event(training_events.RunEnded(run=run), "training", account_id, work_id, run.run_id))

    async def resolved() -> bool:
        (statement,) = await saucer.json("account", "statement", account_id, "--work", work_id)
        return bool(statement["hold"]["state"] == "HOLD_STATE_RESOLVED")

    await until(resolved)
    viewer = saucer.tokens.mint(Role.VIEWER, account_id)
    text = await saucer.text("account", "statement", token=viewer)
    assert "3.60 EUR an hour × 1 × 90 s ÷ 3600 s = 0.09 EUR" in text
    assert "resolved" in text
    assert "clean" in json.dumps(await saucer.json("billing", "audit"))
    assert "broken invariants   0" in await saucer.text("billing", "audit")

    await saucer.text("account", "refund", hold.hold_id, "0.04", "--reason", "goodwill")
    await saucer.text("account", "adjust", "--reason", "a typing error", "--", account_id, "-1")
    month = await saucer.json("account", "month", token=viewer)
    kinds = [line["kind"].removeprefix("STATEMENT_LINE_KIND_") for line in month["lines"]]
    assert kinds == ["TOP_UP", "HOLD", "POSTING", "RELEASE", "REFUND", "DEBIT"]
    assert (month["chargedMicros"], month["closingAvailableMicros"]) == ("50000", "98950000")
    rows = list(csv.DictReader(io.StringIO(await saucer.text("account", "month", "--csv", token=viewer))))
    assert [row["available_micros"] for row in rows] == [line["availableMicros"] for line in month["lines"]]
    assert "98.95 EUR" in await saucer.text("account", "month", token=viewer)
    text = await saucer.text("billing", "records")
    assert "goodwill" in text
    assert "a typing error" in text


async def test_a_suspended_account_can_be_resumed(saucer: Saucer) -> None:
    account_id = await saucer.account()
    suspended = await saucer.json("account", "suspend", account_id, "--reason", "unpaid invoice")
    resumed = await saucer.json("account", "resume", account_id, "--reason", "paid")
    assert [account["state"] for account in (suspended, resumed)] == [
        "ACCOUNT_STATE_SUSPENDED",
        "ACCOUNT_STATE_ACTIVE",
    ]
    records = await saucer.json("billing", "records", "--account", account_id)
    assert {record["action"] for record in records} == {"CREATE", "SUSPEND", "RESUME"}


async def test_failures_are_sentences_and_end_with_1(saucer: Saucer) -> None:
    missing = new_id()
    assert f"There is no account {missing}" in await saucer.fails("account", "show", missing)
    assert "--account" in await saucer.fails("account", "show")
    assert "TOKEN_INVALID" in await saucer.fails("account", "list", token="x")
    viewer = saucer.tokens.mint(Role.VIEWER, await saucer.account())
    assert "ROLE_NOT_ALLOWED" in await saucer.fails("account", "list", token=viewer)
    fields = await saucer.fails("account", "create", "--name", "", "--currency", "euros", *BECAUSE)
    assert "display_name" in fields
    assert "currency" in fields
    assert "is it running" in await saucer.fails("task", "show", missing)
    assert "--request-id" in await saucer.fails("task", "stop", missing)
    assert "names no address of dataset" in await saucer.fails("dataset", "list", "--account", missing)


async def test_a_wrong_command_line_ends_with_2(saucer: Saucer) -> None:
    await saucer.fails("account", "topup", new_id(), "much", code=2)
    await saucer.fails("account", "show", "no-id", code=2)
    await saucer.fails("account", "fly", code=2)


async def test_a_token_made_here_is_believed_there(saucer: Saucer) -> None:
    account_id = await saucer.account()
    made = await saucer.json("token", "create", "--role", "owner", "--account", account_id, "--days", "1")
    shown = await saucer.json("account", "show", token=made["token"])
    assert shown["accountId"] == account_id
    assert "no account" in await saucer.fails("token", "create", "--role", "worker", "--account", account_id, code=2)
    assert "--account" in await saucer.fails("token", "create", "--role", "viewer")


async def test_events_are_tailed_by_account_work_and_sequence(saucer: Saucer, jetstream: JetStreamContext) -> None:
    account_id, work_id = new_id(), new_id()
    sent: list[CloudEvent] = [
        event(billing_events.AccountToppedUp(), "billing", account_id, work, account_id) for work in (None, work_id)
    ]
    for made in sent:
        await publish(jetstream, made)
    viewer = saucer.tokens.mint(Role.VIEWER, account_id)
    tail = ("events", "tail", "--until-now")
    found = await saucer.run(saucer.cli.lines, *tail, token=viewer)
    assert [item["id"] for item in found] == [made.event_id for made in sent]
    assert found[0]["data"] == {}
    after = await saucer.run(saucer.cli.lines, *tail, "--after", str(found[0]["sequence"]), token=viewer)
    assert [item["id"] for item in after] == [sent[1].event_id]
    assert f"work {work_id}" in await saucer.text(*tail, "--work", work_id, token=viewer)
    assert await saucer.text(*tail, token=saucer.tokens.mint(Role.VIEWER, new_id())) == ""


async def test_dead_events_are_shown_and_retried(saucer: Saucer, jetstream: JetStreamContext) -> None:
    account_id = new_id()
    broken = event(training_events.RunEnded(), "training", account_id, new_id(), new_id())
    await publish(jetstream, CloudEvent(**{**broken.__dict__, "data": b"{"}))

    async def dead() -> Any:
        return await saucer.json("events", "dead", "--service", "billing")

    (found,) = await until(dead)
    assert found["eventId"] == broken.event_id
    assert broken.event_id in await saucer.text("events", "dead", "--service", "billing")
    assert "STILL_REFUSED" in await saucer.fails("events", "retry", "billing", broken.event_id)


async def test_who_did_what_is_listed_newest_first_and_by_author(saucer: Saucer) -> None:
    account = await saucer.json("account", "create", "--name", "watched", *BECAUSE)
    await saucer.text("account", "suspend", account["accountId"], "--reason", "a test")
    about = ("calls", "list", "--service", "billing", "--account", account["accountId"])
    found = await saucer.json(*about)
    assert [(call["method"].rpartition("/")[2], call["outcome"]) for call in found] == [
        ("SuspendAccount", "OK"),
        ("CreateAccount", "OK"),
    ]
    assert await saucer.json(*about, "--author", "nobody") == []
    assert "SuspendAccount" in await saucer.text(*about)
