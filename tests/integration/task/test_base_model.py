"""A training that begins with the account's own earlier model."""

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.world import HOLD_MICROS, World, run_of, tell


async def test_the_run_is_given_the_weights_of_the_earlier_model(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(3 * HOLD_MICROS)
    form = world.form(account_id)
    form.starting_point = "rtmdet-s-coco"
    task = await world.create(form, editor)
    key = f"system/{account_id}/runs/r/attempt-1/weights.pth"
    model = training_pb2.Model(
        model_id=new_id(),
        account_id=account_id,
        task_id=task.task_id,
        scene="cup-and-plate",
        classes=["cup", "plate"],
        input_size=192,
        files=[training_pb2.ModelFile(name="weights.pth", key=key, sha256="1" * 64)],
    )
    run = run_of(task, 9, config=task.config, end_reason=training_pb2.END_REASON_COMPLETED, model_id=model.model_id)
    await tell(jetstream, training_events.RunEnded(run=run, model=model), task)
    await world.reaches(task.task_id, task_pb2.TASK_STATE_EVALUATING)

    again = world.form(account_id, "again")
    again.base_model_id = model.model_id
    second = await world.create(again, editor)
    assert second.form.base_model_id == model.model_id
    assert (second.config.weights_key, second.config.weights_sha256) == (key, "1" * 64)
    assert second.config.starting_point == "rtmdet-s-coco"
    (why,) = (note.reason for note in second.derived_values if note.field == "starting_point")
    assert "the model that it starts from" in why


async def test_another_accounts_model_is_not_there(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(HOLD_MICROS)
    form = world.form(account_id)
    form.base_model_id = new_id()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.create(form, editor)
    assert from_rpc(refused.value).reason == "MODEL_NOT_FOUND"
    offered = await world.tasks.ListStartingPoints(task_pb2.ListStartingPointsRequest(), metadata=editor)
    assert [point.name for point in offered.starting_points if not point.fetched] == ["imagenet-lite0", "scratch"]
