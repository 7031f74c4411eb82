"""The estimate before a start learns from what earlier runs took on its spec."""

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.billing.v1 import billing_pb2
from saucer.lib.clock import to_duration, to_timestamp
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.task.v1 import task_pb2
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.task.test_predict_task import predicting, trained
from tests.integration.task.world import HOLD_MICROS, World, run_of, tell
from tests.support.events import until
from tests.unit.task.examples import NOW

TRAINED_MS, OVERHEAD_MS = 500_000, 40_000


async def test_more_gpus_than_a_machine_has_are_refused_and_a_batch_that_they_cannot_share_is_said(
    world: World,
) -> None:
    account_id, editor = await world.account(2 * HOLD_MICROS)
    form = world.form(account_id)
    form.count = 2
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.create(form, editor)
    assert from_rpc(refused.value).reason == "COUNT_TOO_LARGE"
    listed = await world.tasks.ListTasks(task_pb2.ListTasksRequest(), metadata=editor)
    assert not listed.tasks
    spec = billing_pb2.CreateSpecRequest(
        request_id=new_id(),
        region_id="local",
        spec_id="gpu-2",
        display_name="2 GPUs",
        gpus=1,
        cpu_cores=8,
        max_count=2,
        price_per_hour_micros=1_000,
        currency="EUR",
        reason="a test",
    )
    await world.billing.CreateSpec(spec, metadata=world.administrator)
    form.spec_id = "gpu-2"
    quote = await world.tasks.QuoteTask(task_pb2.QuoteTaskRequest(form=form), metadata=editor)
    assert quote.config.batch_size % 2 == 0
    assert not quote.warnings
    form.batch_size = 5
    quote = await world.tasks.QuoteTask(task_pb2.QuoteTaskRequest(form=form), metadata=editor)
    assert list(quote.warnings) == ["A batch of 5 cannot be shared evenly by 2 GPUs; each takes 3."]


async def test_the_second_run_of_a_kind_is_estimated_by_the_first(world: World, jetstream: JetStreamContext) -> None:
    account_id, editor = await world.account(2 * HOLD_MICROS)
    form = world.form(account_id)
    task = await world.create(form, editor)
    iterations = task.config.epochs * -(-60 // task.config.batch_size)
    run = run_of(
        task,
        9,
        attempt=1,
        config=task.config,
        iteration=iterations,
        iterations=iterations,
        elapsed=to_duration(TRAINED_MS),
        charged_ms=TRAINED_MS + OVERHEAD_MS,
        end_reason=training_pb2.END_REASON_COMPLETED,
        end_time=to_timestamp(NOW),
        region_id=form.region_id,
        spec_id=form.spec_id,
        count=1,
        dataset_version_id=form.dataset_version_id,
        model_id=new_id(),
    )
    model = training_pb2.Model(model_id=run.model_id, account_id=account_id, task_id=task.task_id)
    form.display_name = "again"

    async def estimated_ms() -> int:
        quote = await world.tasks.QuoteTask(task_pb2.QuoteTaskRequest(form=form), metadata=editor)
        return quote.estimated_duration.ToMilliseconds()

    before_ms = await estimated_ms()
    assert before_ms != TRAINED_MS + OVERHEAD_MS
    for _ in range(2):  # told twice, it counts once
        await tell(jetstream, training_events.RunEnded(run=run, model=model), task)

    async def learnt() -> bool:
        return await estimated_ms() != before_ms

    await until(learnt)
    assert await estimated_ms() == pytest.approx(TRAINED_MS + OVERHEAD_MS, abs=1)
    form.epochs = 2 * task.config.epochs
    assert await estimated_ms() == pytest.approx(2 * TRAINED_MS + OVERHEAD_MS, abs=1)


async def test_the_second_prediction_of_a_kind_is_estimated_by_the_first(
    world: World, jetstream: JetStreamContext
) -> None:
    account_id, editor = await world.account(2 * HOLD_MICROS)
    model_id = await trained(world, jetstream, account_id, editor)
    form = predicting(world.form(account_id, "first"), model_id)
    task = await world.create(form, editor)
    # Half the images of the data, as one from before that had fewer.
    run = run_of(
        task,
        9,
        attempt=1,
        config=task.config,
        iteration=60,
        iterations=60,
        elapsed=to_duration(TRAINED_MS),
        charged_ms=TRAINED_MS + OVERHEAD_MS,
        end_reason=training_pb2.END_REASON_COMPLETED,
        end_time=to_timestamp(NOW),
        region_id=form.region_id,
        spec_id=form.spec_id,
        count=1,
        dataset_version_id=form.dataset_version_id,
        model_id=model_id,
    )
    form.display_name = "again"

    async def estimated_ms() -> int:
        quote = await world.tasks.QuoteTask(task_pb2.QuoteTaskRequest(form=form), metadata=editor)
        return quote.estimated_duration.ToMilliseconds()

    before_ms = await estimated_ms()
    ended = training_events.RunEnded(run=run, prediction=training_pb2.Prediction(model_id=model_id))
    await tell(jetstream, ended, task)

    async def learnt() -> bool:
        return await estimated_ms() != before_ms

    await until(learnt)
    assert await estimated_ms() == pytest.approx(2 * TRAINED_MS + OVERHEAD_MS, abs=1)
    training = world.form(account_id, "training")
    quote = await world.tasks.QuoteTask(task_pb2.QuoteTaskRequest(form=training), metadata=editor)
    assert quote.estimated_duration.ToMilliseconds() < TRAINED_MS, "no training is like a prediction"
