"""Nothing new begins with a model that was deleted; what had begun with it may go on."""

from collections.abc import Awaitable

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.test_predict_task import predicting, trained
from tests.integration.task.test_prepaid import group_of, prepaid
from tests.integration.task.world import HOLD_MICROS, World, run_of, tell
from tests.support.events import until
from tests.support.services import Metadata


async def refusal(call: Awaitable[task_pb2.Task]) -> str:
    """The reason; empty: it was not refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc(error).reason
    return ""


async def stopped(
    world: World, jetstream: JetStreamContext, form: task_pb2.TaskForm, editor: Metadata, *, iteration: int = 0
) -> str:
    task = await world.create(form, editor)
    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_STOPPED_BY_USER, iteration=iteration)
    await tell(jetstream, training_events.RunEnded(run=ended), task)
    await until(lambda: at_rest(world, task.task_id))
    return task.task_id


async def at_rest(world: World, task_id: str) -> bool:
    return (await world.get(task_id)).state in (task_pb2.TASK_STATE_STOPPED, task_pb2.TASK_STATE_FAILED)


async def network(world: World, jetstream: JetStreamContext, account_id: str, editor: Metadata) -> str:
    """A model that a training can begin with."""
    task = await world.create(world.form(account_id, "network"), editor)
    model = training_pb2.Model(
        model_id=new_id(),
        account_id=account_id,
        scene="cup-and-plate",
        classes=["cup", "plate"],
        input_size=192,
        files=[training_pb2.ModelFile(name="weights.pth", key="system/w.pth", sha256="1" * 64)],
    )
    ended = run_of(task, 9, config=task.config, end_reason=training_pb2.END_REASON_COMPLETED)
    await tell(jetstream, training_events.RunEnded(run=ended, model=model), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_EVALUATING)
    return model.model_id


@pytest.mark.parametrize("comes_first", [False, True])
async def test_no_task_predicts_with_a_deleted_model_or_begins_with_it(
    world: World, jetstream: JetStreamContext, comes_first: bool
) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    if comes_first:
        task = await world.create(world.form(account_id, "trained"), editor)
        model = training_pb2.Model(model_id=new_id(), account_id=account_id, scene="object-detection", input_size=128)
        await tell(jetstream, training_events.ModelDeleted(model=model), task)
        ended = run_of(task, 2, end_reason=training_pb2.END_REASON_COMPLETED)
        await tell(jetstream, training_events.RunEnded(run=ended, model=model), task)
        await world.reaches(task.task_id, task_pb2.TASK_STATE_EVALUATING)
        model_id = model.model_id
    else:
        model_id = await trained(world, jetstream, account_id, editor)
        task = await world.create(world.form(account_id, "another"), editor)
        await tell(jetstream, training_events.ModelDeleted(model=training_pb2.Model(model_id=model_id)), task)
    predicts = predicting(world.form(account_id, "predicts"), model_id)
    begins = world.form(account_id, "begins")
    begins.base_model_id = model_id
    await until(lambda: is_refused(world, predicts, editor))
    assert await refusal(world.create(begins, editor)) == "MODEL_DELETED"


async def is_refused(world: World, form: task_pb2.TaskForm, editor: Metadata) -> bool:
    request = task_pb2.QuoteTaskRequest(form=form)
    try:
        await world.tasks.QuoteTask(request, metadata=editor)
    except grpc.aio.AioRpcError as error:
        return from_rpc(error).reason == "MODEL_DELETED"
    return False


async def test_a_restart_is_refused_that_would_need_a_deleted_model_and_one_that_resumes_is_not(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    model_id = await trained(world, jetstream, account_id, editor, ["cup", "plate"])
    predicts = await stopped(world, jetstream, predicting(world.form(account_id, "predicts"), model_id), editor)
    base_id = await network(world, jetstream, account_id, editor)
    begins, learns = world.form(account_id, "begins"), world.form(account_id, "learns")
    begins.base_model_id = learns.base_model_id = base_id
    begun = await stopped(world, jetstream, begins, editor)
    learnt = await stopped(world, jetstream, learns, editor, iteration=20)
    other = await world.create(world.form(account_id, "other"), editor)
    for deleted in (model_id, base_id):
        await tell(jetstream, training_events.ModelDeleted(model=training_pb2.Model(model_id=deleted)), other)
    again = world.form(account_id, "again")
    again.base_model_id = base_id
    await until(lambda: is_refused(world, again, editor))

    async def restart(task_id: str, *, from_scratch: bool) -> str:
        request = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=task_id, from_scratch=from_scratch)
        return await refusal(world.tasks.RestartTask(request, metadata=editor))

    assert await restart(predicts, from_scratch=False) == "MODEL_DELETED"
    assert await restart(begun, from_scratch=True) == "MODEL_DELETED"
    assert await restart(begun, from_scratch=False) == "MODEL_DELETED", "without a checkpoint it begins anew"
    assert await restart(learnt, from_scratch=True) == "MODEL_DELETED"
    assert await restart(learnt, from_scratch=False) == ""


# What tells that a worker began the second start: its first event, or, where that comes too late to count, its last.
@pytest.mark.parametrize("begun_by", [None, "RunStarted", "RunEnded"])
async def test_a_start_from_scratch_that_no_worker_began_does_not_hide_what_the_one_before_has_learnt(
    world: World, jetstream: JetStreamContext, begun_by: str | None
) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    form = world.form(account_id, "learns")
    form.base_model_id = await network(world, jetstream, account_id, editor)
    task_id = await stopped(world, jetstream, form, editor, iteration=20)
    again = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=task_id, from_scratch=True)
    second = await world.tasks.RestartTask(again, metadata=editor)
    begun = {"start_time": second.create_time} if begun_by else {}
    if begun_by == "RunStarted":
        await tell(jetstream, training_events.RunStarted(run=run_of(second, 2, **begun)), second)
    ended = run_of(second, 9, end_reason=training_pb2.END_REASON_STOPPED_BY_USER, **begun)
    await tell(jetstream, training_events.RunEnded(run=ended), second)
    await until(lambda: at_rest(world, task_id))
    other = await world.create(world.form(account_id, "other"), editor)
    deleted = training_pb2.Model(model_id=form.base_model_id)
    await tell(jetstream, training_events.ModelDeleted(model=deleted), other)
    form.display_name = "another"
    await until(lambda: is_refused(world, form, editor))

    async def restart(*, from_scratch: bool) -> str:
        request = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=task_id, from_scratch=from_scratch)
        return await refusal(world.tasks.RestartTask(request, metadata=editor))

    assert await restart(from_scratch=True) == "MODEL_DELETED"
    # A run that a worker began is the one to resume from, and this one has no checkpoint.
    assert await restart(from_scratch=False) == ("MODEL_DELETED" if begun_by else "")


async def test_a_restart_of_a_refused_start_needs_the_model_that_it_is_to_begin_with(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    begins = world.form(account_id, "begins")
    begins.base_model_id = await network(world, jetstream, account_id, editor)

    async def released() -> bool:
        return await world.frozen(account_id) == 0

    await until(released)
    other = await world.create(world.form(account_id, "other"), editor)
    assert await refusal(world.create(begins, editor)) == "INSUFFICIENT_BALANCE"
    (refused,) = (await world.tasks.ListTasks(task_pb2.ListTasksRequest(page_size=1), metadata=editor)).tasks
    deleted = training_pb2.Model(model_id=begins.base_model_id)
    await tell(jetstream, training_events.ModelDeleted(model=deleted), other)
    again = world.form(account_id, "again")
    again.base_model_id = begins.base_model_id
    await until(lambda: is_refused(world, again, editor))
    request = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=refused.task_id)
    assert await refusal(world.tasks.RestartTask(request, metadata=editor)) == "MODEL_DELETED"


async def test_what_waits_for_capacity_to_begin_with_a_deleted_model_fails_and_nothing_else_does(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    group_id = await group_of(world, account_id)
    model_id = await trained(world, jetstream, account_id, editor)
    running = await world.create(prepaid(world, account_id, group_id, "running"), editor)
    waits = await world.create(prepaid(world, account_id, group_id, "waits"), editor)
    predicts = await world.create(predicting(prepaid(world, account_id, group_id, "predicts"), model_id), editor)
    assert (waits.state, predicts.state) == (task_pb2.TASK_STATE_WAITING, task_pb2.TASK_STATE_WAITING)

    await tell(jetstream, training_events.ModelDeleted(model=training_pb2.Model(model_id=model_id)), running)

    ended = await world.reaches(predicts.task_id, task_pb2.TASK_STATE_FAILED)
    assert f"The model {model_id} was deleted" in ended.error_message
    assert (await world.get(waits.task_id)).state == task_pb2.TASK_STATE_WAITING
    await tell(jetstream, training_events.RunEnded(run=run_of(running, 9)), running)
    await world.reaches(waits.task_id, task_pb2.TASK_STATE_QUEUED)


async def test_a_restart_that_waits_for_capacity_fails_with_its_base_model_unless_it_has_learnt_already(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(9 * HOLD_MICROS)
    group_id = await group_of(world, account_id)
    base_id = await network(world, jetstream, account_id, editor)
    begins, learns = world.form(account_id, "begins"), world.form(account_id, "learns")
    begins.base_model_id = learns.base_model_id = base_id
    begun = await stopped(world, jetstream, begins, editor)
    learnt = await stopped(world, jetstream, learns, editor, iteration=20)
    running = await world.create(prepaid(world, account_id, group_id, "running"), editor)
    for task_id in (begun, learnt):
        request = task_pb2.RestartTaskRequest(
            request_id=new_id(),
            task_id=task_id,
            billing_mode=billing_pb2.BILLING_MODE_PREPAID,
            resource_group_id=group_id,
        )
        waits = await world.tasks.RestartTask(request, metadata=editor)
        assert waits.state == task_pb2.TASK_STATE_WAITING
    await tell(jetstream, training_events.ModelDeleted(model=training_pb2.Model(model_id=base_id)), running)
    ended = await world.reaches(begun, task_pb2.TASK_STATE_FAILED)
    assert f"The model {base_id} was deleted" in ended.error_message
    assert (await world.get(learnt)).state == task_pb2.TASK_STATE_WAITING
