"""A task that evaluates a model on other data: the same flow, the same hold, no training."""

from collections.abc import Sequence

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.cloudevent import from_json
from saucer.lib.ids import new_id
from saucer.task.v1 import events_pb2 as task_events
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.world import HOLD_MICROS, World, run_of, tell
from tests.support.events import read_events
from tests.support.services import Metadata


async def trained(
    world: World,
    jetstream: JetStreamContext,
    account_id: str,
    editor: Metadata,
    classes: Sequence[str] = ("plate", "cup"),
) -> str:
    """A model of the account's."""
    task = await world.create(world.form(account_id, "trained"), editor)
    left = training_pb2.Model(
        model_id=new_id(), account_id=account_id, scene="object-detection", classes=classes, input_size=128
    )
    ended = run_of(task, 2, end_reason=training_pb2.END_REASON_COMPLETED)
    await tell(jetstream, training_events.RunEnded(run=ended, model=left), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_EVALUATING)
    return left.model_id


def predicting(form: task_pb2.TaskForm, model_id: str) -> task_pb2.TaskForm:
    form.kind, form.model_id = task_pb2.TASK_KIND_PREDICT, model_id
    return form


async def test_a_predict_task_goes_from_form_to_result(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(2 * HOLD_MICROS)
    model_id = await trained(world, jetstream, account_id, editor)
    task = await world.create(predicting(world.form(account_id, "again"), model_id), editor)
    assert (task.state, task.hold_micros) == (task_pb2.TASK_STATE_QUEUED, HOLD_MICROS)
    *_, queued = await read_events(jetstream, f"saucer.task.v1.TaskQueued.{account_id}.>", count=2)
    told = from_json(queued.data, task_events.TaskQueued()).task.config
    assert (told.model_id, list(told.classes), told.input_size) == (model_id, ["plate", "cup"], 128)
    assert told.manifest_key == "system/m.json"

    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_COMPLETED)
    prediction = training_pb2.Prediction(model_id=model_id)
    await tell(jetstream, training_events.RunEnded(run=ended, prediction=prediction), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_EVALUATING)
    evaluation = evaluation_pb2.Evaluation(
        evaluation_id=new_id(),
        task_id=task.task_id,
        run_id=ended.run_id,
        model_id=model_id,
        state=evaluation_pb2.EVALUATION_STATE_SUCCEEDED,
        map_50=0.7,
    )
    await tell(jetstream, evaluation_events.EvaluationEnded(evaluation=evaluation), task)
    done = await world.reaches(task.task_id, task_pb2.TASK_STATE_SUCCEEDED)
    assert (done.test_map_50, done.evaluation_id) == (0.7, evaluation.evaluation_id)


async def test_a_prediction_without_detections_is_a_failed_task(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(2 * HOLD_MICROS)
    model_id = await trained(world, jetstream, account_id, editor)
    task = await world.create(predicting(world.form(account_id, "short"), model_id), editor)
    ended = run_of(task, 9, end_reason=training_pb2.END_REASON_DURATION_REACHED)
    await tell(jetstream, training_events.RunEnded(run=ended), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_FAILED)


async def refused(world: World, form: task_pb2.TaskForm, editor: Metadata) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.create(form, editor)
    return refusal.value.code()


async def test_what_cannot_be_evaluated_is_refused_and_nothing_is_stored(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(3 * HOLD_MICROS)
    model_id = await trained(world, jetstream, account_id, editor)
    other_id, other = await world.account(HOLD_MICROS)
    assert await refused(world, predicting(world.form(other_id), model_id), other) is grpc.StatusCode.NOT_FOUND
    assert await refused(world, predicting(world.form(account_id), new_id()), editor) is grpc.StatusCode.NOT_FOUND
    without = predicting(world.form(account_id), "")
    assert await refused(world, without, editor) is grpc.StatusCode.INVALID_ARGUMENT
    training = world.form(account_id)
    training.model_id = model_id
    assert await refused(world, training, editor) is grpc.StatusCode.INVALID_ARGUMENT
    narrow = await trained(world, jetstream, other_id, other, classes=["plate"])
    unknown = predicting(world.form(other_id, "unknown"), narrow)
    assert await refused(world, unknown, other) is grpc.StatusCode.INVALID_ARGUMENT
    for metadata in (editor, other):
        kept = await world.tasks.ListTasks(task_pb2.ListTasksRequest(), metadata=metadata)
        assert [task.form.display_name for task in kept.tasks] == ["trained"]
