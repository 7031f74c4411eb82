"""Tasks that take capacity of a resource group, with the real billing."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.billing.v1 import events_pb2 as billing_events
from saucer.lib.clock import to_timestamp
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.world import World, run_of, tell
from tests.support.events import event, publish, with_later_reason
from tests.support.services import Metadata


async def group_of(world: World, account_id: str) -> str:
    request = billing_pb2.CreateResourceGroupRequest(
        request_id=new_id(),
        account_id=account_id,
        display_name="One machine",
        region_id="local",
        spec_id="cpu-2",
        capacity=1,
        end_time=to_timestamp(datetime.now(UTC) + timedelta(days=1)),
        reason="paid by invoice",
    )
    return (await world.billing.CreateResourceGroup(request, metadata=world.administrator)).resource_group_id


def prepaid(world: World, account_id: str, group_id: str, name: str) -> task_pb2.TaskForm:
    form = world.form(account_id, name)
    form.billing_mode = billing_pb2.BILLING_MODE_PREPAID
    form.resource_group_id = group_id
    return form


async def refused(world: World, form: task_pb2.TaskForm, editor: Metadata) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.create(form, editor)
    return from_rpc(refusal.value).reason


async def test_the_second_task_waits_for_the_first_and_neither_costs_anything(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(0)
    group_id = await group_of(world, account_id)
    first = await world.create(prepaid(world, account_id, group_id, "first"), editor)
    second = await world.create(prepaid(world, account_id, group_id, "second"), editor)
    assert first.state == task_pb2.TASK_STATE_QUEUED
    assert second.state == task_pb2.TASK_STATE_WAITING
    await tell(jetstream, training_events.RunStarted(run=run_of(first, 2, attempt=1)), first)
    running = await world.reaches(first.task_id, task_pb2.TASK_STATE_TRAINING)
    assert running.charge_status == billing_pb2.CHARGE_STATUS_NOT_BILLING
    ended = run_of(first, 9, end_reason=training_pb2.END_REASON_FAILED, charged_ms=90_500)
    await tell(jetstream, training_events.RunEnded(run=ended), first)
    granted = await world.reaches(second.task_id, task_pb2.TASK_STATE_QUEUED)
    assert (granted.hold_micros, granted.price_per_hour_micros) == (0, 0)
    assert (await world.get(first.task_id)).cost_micros == 0
    assert await world.frozen(account_id) == 0


async def test_one_that_waits_is_stopped_at_once_and_its_place_is_free(world: World) -> None:
    account_id, editor = await world.account(0)
    group_id = await group_of(world, account_id)
    tasks = [await world.create(prepaid(world, account_id, group_id, name), editor) for name in ("a", "b", "c")]
    for task in tasks[:2]:
        stop = task_pb2.StopTaskRequest(request_id=new_id(), task_id=task.task_id)
        await world.tasks.StopTask(stop, metadata=editor)
    stopped = await world.reaches(tasks[1].task_id, task_pb2.TASK_STATE_STOPPED)
    assert stopped.end_reason == training_pb2.END_REASON_STOPPED_BY_USER
    # The first has a run that nobody here stops.
    assert (await world.get(tasks[2].task_id)).state == task_pb2.TASK_STATE_WAITING


async def one_that_waits(world: World) -> task_pb2.Task:
    account_id, editor = await world.account(0)
    group_id = await group_of(world, account_id)
    _, waiting = [await world.create(prepaid(world, account_id, group_id, name), editor) for name in ("a", "b")]
    return waiting


def stop_ordered(task: task_pb2.Task, reason: billing_events.StopReason.ValueType) -> billing_events.StopOrdered:
    hold = billing_pb2.Hold(
        hold_id=task.hold_id,
        account_id=task.account_id,
        work_kind=billing_pb2.WORK_KIND_TASK,
        work_id=task.task_id,
        start_number=1,
    )
    return billing_events.StopOrdered(hold=hold, reason=reason)


async def test_one_that_was_stopped_before_and_waits_again_is_stopped_at_once_too(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(0)
    group_id = await group_of(world, account_id)

    async def stop(task_id: str) -> task_pb2.Task:
        request = task_pb2.StopTaskRequest(request_id=new_id(), task_id=task_id)
        return await world.tasks.StopTask(request, metadata=editor)

    first = await world.create(prepaid(world, account_id, group_id, "first"), editor)
    await stop(first.task_id)
    ended = run_of(first, 9, end_reason=training_pb2.END_REASON_STOPPED_BY_USER)
    await tell(jetstream, training_events.RunEnded(run=ended), first)
    await world.reaches(first.task_id, task_pb2.TASK_STATE_STOPPED)
    second = await world.create(prepaid(world, account_id, group_id, "second"), editor)
    await world.reaches(second.task_id, task_pb2.TASK_STATE_QUEUED)
    request = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=first.task_id)
    again = await world.tasks.RestartTask(request, metadata=editor)
    assert (again.state, again.stop_requested) == (task_pb2.TASK_STATE_WAITING, False)
    assert (await stop(first.task_id)).state == task_pb2.TASK_STATE_STOPPED


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (billing_events.STOP_REASON_GROUP_ENDED, training_pb2.END_REASON_GROUP_ENDED),
        (billing_events.STOP_REASON_ACCOUNT_SUSPENDED, training_pb2.END_REASON_ACCOUNT_SUSPENDED),
        (billing_events.STOP_REASON_BUDGET_REACHED, training_pb2.END_REASON_BUDGET_REACHED),
    ],
)
async def test_one_that_waits_ends_with_its_group_its_account_or_its_budget(
    world: World,
    jetstream: JetStreamContext,
    order: billing_events.StopReason.ValueType,
    reason: training_pb2.EndReason.ValueType,
) -> None:
    waiting = await one_that_waits(world)
    await tell(jetstream, stop_ordered(waiting, order), waiting)
    ended = await world.reaches(waiting.task_id, task_pb2.TASK_STATE_STOPPED)
    assert ended.end_reason == reason


async def test_one_that_waits_ends_for_a_reason_of_a_later_billing_as_well(
    world: World, jetstream: JetStreamContext
) -> None:
    waiting = await one_that_waits(world)
    message = stop_ordered(waiting, billing_events.STOP_REASON_ARREARS)
    order = event(message, "billing", waiting.account_id, waiting.task_id, waiting.hold_id)
    await publish(jetstream, with_later_reason(order))
    ended = await world.reaches(waiting.task_id, task_pb2.TASK_STATE_STOPPED)
    assert ended.end_reason == training_pb2.END_REASON_ARREARS


async def test_a_restart_may_name_another_billing_mode(world: World) -> None:
    account_id, editor = await world.account(0)
    group_id = await group_of(world, account_id)
    assert await refused(world, world.form(account_id, "poor"), editor) == "INSUFFICIENT_BALANCE"
    listed = await world.tasks.ListTasks(task_pb2.ListTasksRequest(), metadata=editor)
    restart = task_pb2.RestartTaskRequest(
        request_id=new_id(),
        task_id=listed.tasks[0].task_id,
        billing_mode=billing_pb2.BILLING_MODE_PREPAID,
        resource_group_id=group_id,
    )
    again = await world.tasks.RestartTask(restart, metadata=editor)
    assert (again.state, again.form.resource_group_id) == (task_pb2.TASK_STATE_QUEUED, group_id)


async def test_a_group_that_there_is_not_or_that_is_not_asked_for_is_refused_by_name(world: World) -> None:
    account_id, editor = await world.account(0)
    form = world.form(account_id)
    form.billing_mode = billing_pb2.BILLING_MODE_PREPAID
    assert await refused(world, form, editor) == "RESOURCE_GROUP_REQUIRED"
    form.resource_group_id = new_id()
    assert await refused(world, form, editor) == "HOLD_REFUSED"
    form = world.form(account_id)
    form.resource_group_id = new_id()
    assert await refused(world, form, editor) == "RESOURCE_GROUP_UNEXPECTED"


async def test_a_quote_of_prepaid_work_costs_nothing(world: World) -> None:
    account_id, editor = await world.account(0)
    group_id = await group_of(world, account_id)
    request = task_pb2.QuoteTaskRequest(form=prepaid(world, account_id, group_id, "q"))
    quote = await world.tasks.QuoteTask(request, metadata=editor)
    assert (quote.price_per_hour_micros, quote.hold_micros, quote.highest_cost_micros) == (0, 0, 0)


async def test_a_tasks_budget_is_set_with_its_form(world: World) -> None:
    account_id, editor = await world.account(10**9)
    form = world.form(account_id)
    form.budget_micros = 5_000_000
    task = await world.create(form, editor)
    listed = await world.billing.ListBudgets(
        billing_pb2.ListBudgetsRequest(account_id=account_id), metadata=world.administrator
    )
    assert [(budget.work_id, budget.amount_micros) for budget in listed.budgets] == [(task.task_id, 5_000_000)]
