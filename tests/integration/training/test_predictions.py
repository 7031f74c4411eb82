"""Runs that train nothing: a model that is there predicts a data set version."""

from datetime import timedelta

import pytest

from saucer.lib.cloudevent import from_json
from saucer.lib.errors import InvalidArgumentError
from saucer.lib.ids import new_id
from saucer.training.domain import BACK_OFF, FINISH_LIMIT, MAX_ATTEMPTS, EndReason, Run, RunStage, RunState
from saucer.training.v1 import events_pb2
from tests.support.training_lab import SECOND, Lab

DETECTIONS = ("detections_test.npz", "detections_validation.npz")


async def trained(lab: Lab) -> Run:
    """A run that left a model."""
    await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    return await worker.finish(files=await worker.files())


async def ended(lab: Lab, run_id: str) -> events_pb2.RunEnded:
    async with lab.database.reading() as connection:
        data = await connection.fetchval(
            "SELECT data FROM outbox WHERE resource = $1 AND type LIKE '%RunEnded'", run_id
        )
    return from_json(data.encode() if isinstance(data, str) else data, events_pb2.RunEnded())


async def test_a_prediction_has_the_models_files_and_tells_of_its_detections(lab: Lab) -> None:
    former = await trained(lab)
    run_id = await lab.queue(former.request.account_id, predicts_model_id=former.model_id)
    worker = await lab.worker()
    served = await lab.training.leases.served_files(worker.leased)
    assert {file.key for file in served} == {
        f"{former.artifact_prefix}/{name}" for name in ("model.onnx", "model.json")
    }
    await worker.beat(stage=RunStage.PREDICTING)
    run = await worker.finish(files=await worker.files(DETECTIONS))
    assert (run.state, run.end_reason, run.model_id) == (RunState.ENDED, EndReason.COMPLETED, former.model_id)
    told = await ended(lab, run_id)
    assert not told.HasField("model")
    assert told.prediction.model_id == former.model_id
    assert told.prediction.dataset_version_id == run.request.dataset_version_id
    assert {file.name for file in told.prediction.files} == set(DETECTIONS)
    copies = await lab.objects.keys(f"accounts/{run.request.account_id}/outputs/{run.request.task_id}")
    assert [key.rpartition("/")[2] for key in copies] == sorted(DETECTIONS)


async def test_another_accounts_model_is_served_to_nobody(lab: Lab) -> None:
    former = await trained(lab)
    await lab.queue(new_id(), predicts_model_id=former.model_id)
    assert await lab.training.leases.served_files((await lab.worker()).leased) == ()


async def test_predicting_is_no_finishing_where_there_is_nothing_else_to_do(lab: Lab) -> None:
    former = await trained(lab)
    await lab.queue(former.request.account_id, predicts_model_id=former.model_id)
    worker = await lab.worker()
    for image in range(int(FINISH_LIMIT / SECOND) // 60 + 2):
        run = await worker.beat(image, stage=RunStage.PREDICTING, share=image / 100)
        for _ in range(12):
            lab.clock.advance(timedelta(seconds=5))
            run = await worker.beat(image, stage=RunStage.PREDICTING, share=image / 100)
    assert run.state is RunState.RUNNING
    assert run.meter.finishing_ms == 0
    assert run.done > 0.1


async def test_files_of_a_training_are_refused_of_a_prediction(lab: Lab) -> None:
    former = await trained(lab)
    await lab.queue(former.request.account_id, predicts_model_id=former.model_id)
    worker = await lab.worker()
    await worker.beat(stage=RunStage.PREDICTING)
    with pytest.raises(InvalidArgumentError, match=r"detections_test.npz"):
        await worker.finish(files=await worker.files())


async def test_a_prediction_that_is_stopped_or_lost_too_often_ends_without_detections(lab: Lab) -> None:
    former = await trained(lab)
    stopped = await lab.queue(former.request.account_id, predicts_model_id=former.model_id)
    worker = await lab.worker()
    await worker.beat(stage=RunStage.PREDICTING)
    await lab.training.starts.order_stop((await lab.run(stopped)).request.hold_id, EndReason.STOPPED_BY_USER, 0)
    await worker.finish(EndReason.FAILED, released=True)
    lost = await lab.queue(former.request.account_id, predicts_model_id=former.model_id)
    for _ in range(MAX_ATTEMPTS):
        worker = await lab.worker()
        await worker.beat(stage=RunStage.PREDICTING)
        await worker.finish(EndReason.FAILED)
        lab.clock.advance(BACK_OFF[-1])
    for run_id, reason in ((stopped, EndReason.STOPPED_BY_USER), (lost, EndReason.FAILED)):
        run = await lab.run(run_id)
        assert (run.state, run.end_reason, run.model_id) == (RunState.ENDED, reason, None)
        assert not (await ended(lab, run_id)).HasField("prediction")


@pytest.mark.parametrize("told", ["The max duration ended it; allow more.", ""])
async def test_an_end_without_detections_is_told_with_the_workers_sentence_and_no_earlier_attempts(
    lab: Lab, told: str
) -> None:
    former = await trained(lab)
    run_id = await lab.queue(former.request.account_id, predicts_model_id=former.model_id)
    first = await lab.worker()
    await first.beat(stage=RunStage.PREDICTING)
    await first.finish(EndReason.FAILED)
    second = await lab.worker()
    await second.beat(stage=RunStage.PREDICTING)
    await second.finish(EndReason.DURATION_REACHED, error_message=told)
    assert (await ended(lab, run_id)).run.error_message == told
