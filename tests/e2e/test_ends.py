"""Each way in which a run ends leaves its reason and a usable model."""

from saucer.billing.v1 import billing_pb2
from saucer.evaluation.v1 import evaluation_pb2
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2
from tests.support.saucer_client import Saucer
from tests.support.stack import Data

MANY_EPOCHS = 500


async def usable(saucer: Saucer, data: Data, task: task_pb2.Task) -> None:
    """The model has its files, was evaluated on the whole test split, and can be published."""
    request = training_pb2.GetModelRequest(model_id=task.model_id)
    model = await saucer.training.GetModel(request, metadata=data.account.metadata)
    assert {file.name for file in model.files} >= {"model.onnx", "model.json", "weights.pth", "detections_test.npz"}
    evaluation = await saucer.evaluation.GetEvaluation(
        evaluation_pb2.GetEvaluationRequest(evaluation_id=task.evaluation_id), metadata=data.account.metadata
    )
    assert evaluation.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED
    assert evaluation.images == 20
    assert task.charge_status == billing_pb2.CHARGE_STATUS_NOT_BILLING
    deployment = await saucer.deploy(data.account, task.model_id)
    assert deployment.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, deployment
    await saucer.stop_deployment(data.account, deployment.deployment_id)


async def test_expected_accuracy_ends_a_run_by_itself(saucer: Saucer, data: Data) -> None:
    form = saucer.form(data.dataset_version_id, epochs=MANY_EPOCHS, expected_accuracy=0.05)
    created = await saucer.create_task(data.account, form)
    task = await saucer.task_ends(data.account, created.task_id)
    assert task.end_reason == training_pb2.END_REASON_ACCURACY_REACHED
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED
    assert task.best_map_50 >= 0.05
    assert task.iteration < task.iterations
    await usable(saucer, data, task)


async def test_max_duration_ends_a_run_in_the_middle_of_an_epoch(saucer: Saucer, data: Data) -> None:
    form = saucer.form(data.dataset_version_id, epochs=MANY_EPOCHS)
    form.max_duration.FromSeconds(10)
    created = await saucer.create_task(data.account, form)
    task = await saucer.task_ends(data.account, created.task_id)
    assert task.end_reason == training_pb2.END_REASON_DURATION_REACHED
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED
    assert task.iteration < task.iterations
    assert 9 <= task.elapsed.ToTimedelta().total_seconds() <= 16
    await usable(saucer, data, task)


async def test_a_users_stop_ends_a_run_with_what_it_has_learnt(saucer: Saucer, data: Data) -> None:
    created = await saucer.create_task(data.account, saucer.form(data.dataset_version_id, epochs=MANY_EPOCHS))
    await saucer.run_reaches(data.account, created.task_id, lambda run: run.iteration >= 5)
    await saucer.stop_task(data.account, created.task_id)
    task = await saucer.task_ends(data.account, created.task_id)
    assert task.end_reason == training_pb2.END_REASON_STOPPED_BY_USER
    assert task.state == task_pb2.TASK_STATE_STOPPED
    await usable(saucer, data, task)
