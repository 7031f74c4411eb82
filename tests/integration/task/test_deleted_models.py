"""Nothing new begins with a model that was deleted; what had begun with it may go on."""

from collections.abc import Awaitable

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.test_predict_task import predicting, trained
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


async def stopped(world: World, jetstream: JetStreamContext, form: task_pb2.TaskForm, editor: Metadata) -> str:
    task = await world.create(form, editor)
    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_STOPPED_BY_USER)
    await tell(jetstream, training_events.RunEnded(run=ended), task)
    await until(lambda: at_rest(world, task.task_id))
    return task.task_id


async def at_rest(world: World, task_id: str) -> bool:
    return (await world.get(task_id)).state in (task_pb2.TASK_STATE_STOPPED, task_pb2.TASK_STATE_FAILED)


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
    weights = training_pb2.ModelFile(name="weights.pth", key="system/w.pth", sha256="1" * 64)
    predicts = await stopped(world, jetstream, predicting(world.form(account_id, "predicts"), model_id), editor)
    begins = world.form(account_id, "begins")
    other = await world.create(world.form(account_id, "other"), editor)
    base = training_pb2.Model(
        model_id=new_id(),
        account_id=account_id,
        scene="cup-and-plate",
        classes=["cup", "plate"],
        input_size=192,
        files=[weights],
    )
    ended = run_of(other, 9, config=other.config, end_reason=training_pb2.END_REASON_COMPLETED)
    await tell(jetstream, training_events.RunEnded(run=ended, model=base), other)
    await world.reaches(other.task_id, task_pb2.TASK_STATE_EVALUATING)
    begins.base_model_id = base.model_id
    trains = await stopped(world, jetstream, begins, editor)
    for deleted in (model_id, base.model_id):
        await tell(jetstream, training_events.ModelDeleted(model=training_pb2.Model(model_id=deleted)), other)
    again = world.form(account_id, "again")
    again.base_model_id = base.model_id
    await until(lambda: is_refused(world, again, editor))

    async def restart(task_id: str, *, from_scratch: bool) -> str:
        request = task_pb2.RestartTaskRequest(request_id=new_id(), task_id=task_id, from_scratch=from_scratch)
        return await refusal(world.tasks.RestartTask(request, metadata=editor))

    assert await restart(predicts, from_scratch=False) == "MODEL_DELETED"
    assert await restart(trains, from_scratch=True) == "MODEL_DELETED"
    assert await restart(trains, from_scratch=False) == ""
