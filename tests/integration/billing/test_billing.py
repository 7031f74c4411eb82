"""Billing as it runs: gRPC in, events in and out, real PostgreSQL and NATS."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from nats.js import JetStreamContext

from saucer.billing.main import wire
from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib.auth import Role
from saucer.lib.cloudevent import CloudEvent, from_json
from saucer.lib.config import ServiceSettings
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.lib.v1 import dead_events_pb2, dead_events_pb2_grpc
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.support.events import event, publish, read_events, until
from tests.support.services import Running, ServiceRunner, Tokens

PRICE_MICROS = 3_600_000
HOLD_MICROS = 2 * PRICE_MICROS


class Client:
    """Calls billing as everybody who may."""

    def __init__(self, running: Running, tokens: Tokens) -> None:
        self.stub = billing_pb2_grpc.BillingServiceStub(running.channel)
        self.dead_events = dead_events_pb2_grpc.DeadEventServiceStub(running.channel)
        self.administrator = tokens.metadata(Role.ADMINISTRATOR)
        self.service = tokens.metadata(Role.SERVICE)

    async def offer(self) -> None:
        await self.stub.CreateRegion(
            billing_pb2.CreateRegionRequest(
                request_id=new_id(), region_id="local", display_name="Here", reason="a test"
            ),
            metadata=self.administrator,
        )
        await self.stub.CreateSpec(
            billing_pb2.CreateSpecRequest(
                request_id=new_id(),
                region_id="local",
                spec_id="cpu-2",
                display_name="2 cores",
                cpu_cores=2,
                max_count=4,
                price_per_hour_micros=PRICE_MICROS,
                currency="EUR",
                reason="a test",
            ),
            metadata=self.administrator,
        )

    async def account(self, balance_micros: int) -> str:
        account = await self.stub.CreateAccount(
            billing_pb2.CreateAccountRequest(request_id=new_id(), display_name="A", currency="EUR", reason="a test"),
            metadata=self.administrator,
        )
        if balance_micros:
            await self.top_up(account.account_id, balance_micros, new_id())
        return account.account_id

    async def top_up(self, account_id: str, amount_micros: int, reference: str) -> billing_pb2.TopUp:
        return await self.stub.TopUpAccount(
            billing_pb2.TopUpAccountRequest(
                account_id=account_id, external_reference=reference, amount_micros=amount_micros
            ),
            metadata=self.administrator,
        )

    async def set_price(self, price_per_hour_micros: int, request_id: str) -> billing_pb2.Spec:
        return await self.stub.SetPrice(
            billing_pb2.SetPriceRequest(
                request_id=request_id,
                region_id="local",
                spec_id="cpu-2",
                price_per_hour_micros=price_per_hour_micros,
                reason="the market",
            ),
            metadata=self.administrator,
        )

    async def balance(self, account_id: str) -> tuple[int, int]:
        account = await self.stub.GetAccount(
            billing_pb2.GetAccountRequest(account_id=account_id), metadata=self.administrator
        )
        return account.available_micros, account.frozen_micros

    async def hold(self, account_id: str, work_id: str, start_number: int = 1, count: int = 1) -> billing_pb2.Hold:
        return await self.stub.CreateHold(
            billing_pb2.CreateHoldRequest(
                hold_id=f"{work_id}-{start_number}",
                account_id=account_id,
                work_kind=billing_pb2.WORK_KIND_TASK,
                work_id=work_id,
                start_number=start_number,
                region_id="local",
                spec_id="cpu-2",
                count=count,
            ),
            metadata=self.service,
        )

    async def statement(self, account_id: str, work_id: str) -> billing_pb2.Statement:
        response = await self.stub.ListStatements(
            billing_pb2.ListStatementsRequest(account_id=account_id, work_id=work_id), metadata=self.administrator
        )
        (statement,) = response.statements
        return statement

    async def dead_event(self) -> dead_events_pb2.DeadEvent | None:
        request = dead_events_pb2.ListDeadEventsRequest()
        response = await self.dead_events.ListDeadEvents(request, metadata=self.administrator)
        return next(iter(response.dead_events), None)

    async def retry(self, event_id: str) -> None:
        request = dead_events_pb2.RetryDeadEventRequest(event_id=event_id)
        await self.dead_events.RetryDeadEvent(request, metadata=self.administrator)

    async def audit(self) -> billing_pb2.Audit:
        return await self.stub.AuditLedger(billing_pb2.AuditLedgerRequest(), metadata=self.administrator)


@pytest.fixture
async def billing(run_service: ServiceRunner, tokens: Tokens) -> AsyncIterator[Client]:
    async with run_service("billing", ServiceSettings, wire) as running:
        client = Client(running, tokens)
        await client.offer()
        yield client
        audit = await client.audit()
        assert audit.clean, audit.findings
        assert audit.ledger_sum_micros == 0


def run_event(kind: Callable[..., Message], account_id: str, work_id: str, charged_ms: int) -> CloudEvent:
    run = training_pb2.Run(
        run_id=new_id(), account_id=account_id, task_id=work_id, hold_id=f"{work_id}-1", charged_ms=charged_ms
    )
    return event(kind(run=run), "training", account_id, work_id, run.run_id)


async def test_a_hold_freezes_exactly_two_hours_and_a_retry_gets_the_same(billing: Client) -> None:
    account_id, work_id = await billing.account(HOLD_MICROS), new_id()
    first = await billing.hold(account_id, work_id)
    again = await billing.hold(account_id, work_id)
    assert first == again
    assert first.amount_micros == HOLD_MICROS
    assert await billing.balance(account_id) == (0, HOLD_MICROS)


async def test_a_balance_one_micro_short_is_refused_and_freezes_nothing(billing: Client) -> None:
    account_id, work_id = await billing.account(HOLD_MICROS - 1), new_id()
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await billing.hold(account_id, work_id)
        error = from_rpc(refusal.value)
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (error.reason, error.metadata["missing_micros"]) == ("INSUFFICIENT_BALANCE", "1")
    assert await billing.balance(account_id) == (HOLD_MICROS - 1, 0)


async def test_a_hold_id_used_for_something_else_is_a_conflict(billing: Client) -> None:
    account_id, work_id = await billing.account(4 * HOLD_MICROS), new_id()
    await billing.hold(account_id, work_id)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await billing.hold(account_id, work_id, count=2)
    assert refusal.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_of_many_starts_racing_for_the_last_balance_one_wins(billing: Client) -> None:
    account_id = await billing.account(HOLD_MICROS)
    answers = await asyncio.gather(*(billing.hold(account_id, new_id()) for _ in range(16)), return_exceptions=True)
    assert sum(isinstance(answer, billing_pb2.Hold) for answer in answers) == 1
    assert await billing.balance(account_id) == (0, HOLD_MICROS)


async def test_the_same_hold_asked_for_at_once_freezes_once(billing: Client) -> None:
    account_id, work_id = await billing.account(3 * HOLD_MICROS), new_id()
    answers = await asyncio.gather(*(billing.hold(account_id, work_id) for _ in range(8)))
    assert len({answer.create_time.ToNanoseconds() for answer in answers}) == 1
    assert await billing.balance(account_id) == (2 * HOLD_MICROS, HOLD_MICROS)


async def test_a_top_up_with_the_same_reference_counts_once(billing: Client) -> None:
    account_id = await billing.account(0)
    await billing.top_up(account_id, 5, "bank-1" + account_id)
    await billing.top_up(account_id, 5, "bank-1" + account_id)
    assert await billing.balance(account_id) == (5, 0)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await billing.top_up(account_id, 6, "bank-1" + account_id)
    assert refusal.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_price_that_comes_back_counts_again_and_each_call_says_which_it_is(billing: Client) -> None:
    for price in (PRICE_MICROS + 1, PRICE_MICROS, PRICE_MICROS + 1, PRICE_MICROS):
        assert (await billing.set_price(price, new_id())).price_per_hour_micros == price
    # Without an id the second of two equal calls could not be told from the first one's retry.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await billing.set_price(PRICE_MICROS + 1, "")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (spec,) = (await billing.stub.ListSpecs(billing_pb2.ListSpecsRequest(), metadata=billing.administrator)).specs
    assert spec.price_per_hour_micros == PRICE_MICROS


async def test_what_an_administrator_does_without_a_reason_is_refused(billing: Client) -> None:
    spec: dict[str, Any] = {"region_id": "local", "spec_id": "cpu-4", "price_per_hour_micros": 1}
    calls: list[tuple[Any, Any]] = [
        (billing.stub.CreateAccount, billing_pb2.CreateAccountRequest(display_name="A", currency="EUR")),
        (billing.stub.CreateRegion, billing_pb2.CreateRegionRequest(region_id="far", display_name="Far")),
        (
            billing.stub.CreateSpec,
            billing_pb2.CreateSpecRequest(display_name="A", currency="EUR", cpu_cores=1, max_count=1, **spec),
        ),
        (billing.stub.SetPrice, billing_pb2.SetPriceRequest(**spec)),
    ]
    for call, request in calls:
        request.request_id = new_id()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request, metadata=billing.administrator)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(refused.value.details()).startswith("reason:")


async def test_the_end_of_a_run_posts_its_charge_and_releases_the_rest(
    billing: Client, jetstream: JetStreamContext
) -> None:
    account_id, work_id = await billing.account(HOLD_MICROS), new_id()
    await billing.hold(account_id, work_id)
    for kind, charged_ms in (
        (training_events.RunStarted, 0),
        (training_events.RunProgressed, 61_500),
        (training_events.RunEnded, 90_999),
        (training_events.RunEnded, 90_999),
        (training_events.RunProgressed, 61_500),
    ):
        await publish(jetstream, run_event(kind, account_id, work_id, charged_ms))
    await until(lambda: resolved(billing, account_id, work_id))
    statement = await billing.statement(account_id, work_id)
    assert statement.hold.charge_micros == PRICE_MICROS * 90 // 3600
    assert [line.amount_micros for line in statement.lines] == [HOLD_MICROS, 90_000, HOLD_MICROS - 90_000]
    assert await billing.balance(account_id) == (HOLD_MICROS - 90_000, 0)


async def test_a_metered_hour_is_settled_and_the_hold_stays_whole(billing: Client, jetstream: JetStreamContext) -> None:
    account_id, work_id = await billing.account(HOLD_MICROS + PRICE_MICROS), new_id()
    await billing.hold(account_id, work_id)
    await publish(jetstream, run_event(training_events.RunProgressed, account_id, work_id, 3_600_000))
    await until(lambda: settled(billing, account_id, work_id, PRICE_MICROS))
    assert await billing.balance(account_id) == (0, HOLD_MICROS)


async def test_work_that_is_unpaid_up_to_the_reserve_is_ordered_to_stop_for_arrears(
    billing: Client, jetstream: JetStreamContext
) -> None:
    account_id, work_id = await billing.account(HOLD_MICROS), new_id()
    await billing.hold(account_id, work_id)
    for charged_ms in (3_600_000, 6_600_000):
        await publish(jetstream, run_event(training_events.RunProgressed, account_id, work_id, charged_ms))
    (order,) = await read_events(jetstream, f"saucer.billing.v1.StopOrdered.{account_id}.>", count=1)
    body = from_json(order.data, billing_events.StopOrdered())
    assert body.stop_at_charged_ms == 6_600_000
    statement = await billing.statement(account_id, work_id)
    assert statement.hold.charge_status == billing_pb2.CHARGE_STATUS_STOPPED_FOR_ARREARS


async def test_used_beyond_hold_and_balance_the_hold_still_closes_and_the_platform_books_the_loss(
    billing: Client, jetstream: JetStreamContext
) -> None:
    account_id, work_id = await billing.account(HOLD_MICROS + 100), new_id()
    await billing.hold(account_id, work_id)
    await publish(jetstream, run_event(training_events.RunEnded, account_id, work_id, 3 * 3_600_000))
    await until(lambda: resolved(billing, account_id, work_id))
    hold = (await billing.statement(account_id, work_id)).hold
    assert (hold.posted_micros, hold.settled_micros, hold.lost_micros) == (
        HOLD_MICROS,
        100,
        PRICE_MICROS - 100,
    )
    assert await billing.balance(account_id) == (0, 0)


async def test_an_event_for_a_hold_that_is_not_there_is_kept_and_can_be_retried(
    billing: Client, jetstream: JetStreamContext
) -> None:
    account_id, work_id = await billing.account(HOLD_MICROS), new_id()
    lost = run_event(training_events.RunEnded, account_id, work_id, 5_000)
    await publish(jetstream, lost)
    dead = await until(billing.dead_event)
    assert dead.event_id == lost.event_id
    await billing.hold(account_id, work_id)
    await billing.retry(dead.event_id)
    await until(lambda: resolved(billing, account_id, work_id))
    assert await billing.dead_event() is None


async def resolved(billing: Client, account_id: str, work_id: str) -> bool:
    return (await billing.statement(account_id, work_id)).hold.state == billing_pb2.HOLD_STATE_RESOLVED


async def settled(billing: Client, account_id: str, work_id: str, amount_micros: int) -> bool:
    return (await billing.statement(account_id, work_id)).hold.settled_micros == amount_micros
