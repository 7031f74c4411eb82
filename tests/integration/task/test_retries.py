"""A call that is retried, however late, acts once."""

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.lib.clock import to_duration
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.world import HOLD_MICROS, PRICE_MICROS, World, run_of, tell
from tests.support.services import Metadata


class Caller:
    """Restarts and stops one task, under request ids of the test's own."""

    def __init__(self, world: World, editor: Metadata, task_id: str) -> None:
        self._world = world
        self._editor = editor
        self._task_id = task_id

    async def stop(self, request_id: str) -> task_pb2.Task:
        request = task_pb2.StopTaskRequest(request_id=request_id, task_id=self._task_id)
        return await self._world.tasks.StopTask(request, metadata=self._editor)

    async def restart(self, request_id: str) -> task_pb2.Task:
        request = task_pb2.RestartTaskRequest(request_id=request_id, task_id=self._task_id)
        return await self._world.tasks.RestartTask(request, metadata=self._editor)


async def reason_of(call: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call  # type: ignore[misc]
    return from_rpc(refused.value).reason


async def end(world: World, jetstream: JetStreamContext, task: task_pb2.Task) -> task_pb2.Task:
    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_STOPPED_BY_USER)
    await tell(jetstream, training_events.RunEnded(run=ended), task)
    return await world.reaches(task.task_id, task_pb2.TASK_STATE_STOPPED)


async def test_a_late_retry_of_a_stop_or_a_restart_acts_no_more(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    caller = Caller(world, editor, task.task_id)
    first_stop, first_restart, second_restart = new_id(), new_id(), new_id()

    assert (await caller.stop(first_stop)).stop_requested
    await end(world, jetstream, task)
    stop_at_rest = new_id()
    assert (await caller.stop(stop_at_rest)).state == task_pb2.TASK_STATE_STOPPED
    second = await caller.restart(first_restart)
    for former in (first_stop, stop_at_rest):
        late = await caller.stop(former)
        assert (late.state, late.stop_requested) == (task_pb2.TASK_STATE_QUEUED, False)

    await end(world, jetstream, second)
    third = await caller.restart(second_restart)
    await end(world, jetstream, third)
    late = await caller.restart(first_restart)
    assert (late.state, late.start_number) == (task_pb2.TASK_STATE_STOPPED, third.start_number)
    again = await caller.restart(second_restart)
    assert (again.state, again.start_number) == (task_pb2.TASK_STATE_STOPPED, third.start_number)


async def test_a_request_id_of_another_change_is_refused(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    caller, request_id = Caller(world, editor, task.task_id), new_id()
    await caller.stop(request_id)
    await end(world, jetstream, task)
    assert await reason_of(caller.restart(request_id)) == "REQUEST_ID_USED"
    restarted = new_id()
    await caller.restart(restarted)
    assert await reason_of(caller.stop(restarted)) == "REQUEST_ID_USED"


async def test_the_retry_of_a_restart_that_was_refused_its_hold_is_refused_alike(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    caller = Caller(world, editor, task.task_id)
    await tell(
        jetstream,
        training_events.RunStarted(run=run_of(task, 1, attempt=1)),
        task,
    )
    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_STOPPED_BY_USER, charged_ms=3_600_000)
    await tell(jetstream, training_events.RunEnded(run=ended), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_STOPPED)
    request_id = new_id()
    for _ in range(2):
        assert await reason_of(caller.restart(request_id)) == "INSUFFICIENT_BALANCE"
    assert (await world.get(task.task_id)).state == task_pb2.TASK_STATE_STOPPED


async def test_a_group_that_is_named_alone_is_refused_without_prepaid(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    await end(world, jetstream, task)
    request = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=task.task_id, resource_group_id=new_id())
    assert await reason_of(world.tasks.RestartTask(request, metadata=editor)) == "RESOURCE_GROUP_UNEXPECTED"
    assert (await world.get(task.task_id)).state == task_pb2.TASK_STATE_STOPPED


async def test_a_refused_restart_leaves_what_the_task_was_given_and_what_it_cost(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    task = await world.create(world.form(account_id), editor)
    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_FAILED, charged_ms=3_600_000, error_message="broken")
    await tell(jetstream, training_events.RunEnded(run=ended), task)
    before = await world.reaches(task.task_id, task_pb2.TASK_STATE_FAILED)
    assert before.cost_micros == PRICE_MICROS
    request = task_pb2.RestartTaskRequest(
        request_id=new_id(),
        task_id=task.task_id,
        from_scratch=True,
        max_duration=to_duration(60_000),
        billing_mode=billing_pb2.BILLING_MODE_PREPAID,
        resource_group_id=new_id(),
    )
    assert await reason_of(world.tasks.RestartTask(request, metadata=editor)) == "HOLD_REFUSED"
    after = await world.get(task.task_id)
    for field in ("state", "form", "config", "run_id", "charged_ms", "cost_micros", "end_reason", "end_time"):
        assert getattr(after, field) == getattr(before, field), field
    again = await Caller(world, editor, task.task_id).restart(new_id())
    assert (again.state, again.form) == (task_pb2.TASK_STATE_QUEUED, before.form)
