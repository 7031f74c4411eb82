"""Any process killed at any moment: nothing lost, nothing charged twice, no job stuck."""

import time
from pathlib import Path

import nats

from saucer.dataset.v1 import dataset_pb2
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2
from tests.support.bill import replay, starts
from tests.support.saucer_client import HOLD_MICROS, Saucer
from tests.support.stack import Data

LOST_ITERATIONS = 50


async def test_a_killed_worker_loses_its_run_and_the_next_attempt_resumes_from_the_checkpoint(
    saucer: Saucer, data: Data
) -> None:
    account = data.account
    created = await saucer.create_task(account, saucer.form(data.dataset_version_id, epochs=8))
    started = time.monotonic()
    reached = await saucer.run_reaches(account, created.task_id, lambda run: run.iteration >= 30)
    killed = time.monotonic()
    await saucer.stack.kill("worker-1")
    await saucer.run_reaches(account, created.task_id, lambda run: run.state == training_pb2.RUN_STATE_QUEUED)
    await saucer.stack.restart("worker-1")
    gap_s = time.monotonic() - killed
    second = await saucer.run_reaches(
        account, created.task_id, lambda run: run.attempt == 2 and run.state == training_pb2.RUN_STATE_RUNNING
    )
    task = await saucer.task_ends(account, created.task_id)
    wall_s = time.monotonic() - started

    assert task.end_reason == training_pb2.END_REASON_COMPLETED
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED
    assert task.attempt == 2
    assert task.charged_ms <= (wall_s - gap_s) * 1000, "the gap is not charged"
    resumed_at = min(
        point.iteration
        for point in (
            await saucer.training.ListMetrics(
                training_pb2.ListMetricsRequest(run_id=second.run_id, page_size=5000), metadata=account.metadata
            )
        ).points
        if point.time.ToNanoseconds() > second.start_time.ToNanoseconds() + int((killed - started + 1) * 1e9)
    )
    assert resumed_at > 1, "from its checkpoint, not anew"
    assert reached.iteration - resumed_at < LOST_ITERATIONS, "a kill loses no more"


async def test_on_one_path_each_service_is_killed_in_turn_and_the_path_completes(
    saucer: Saucer, shapes_folder: Path
) -> None:
    async def kill(name: str) -> None:
        await saucer.stack.kill(name)
        await saucer.stack.restart(name)

    account = await saucer.account(2 * HOLD_MICROS)
    await kill("billing")
    imported = await saucer.import_folder(account, shapes_folder)
    await kill("dataset")
    assert imported.state == dataset_pb2.IMPORT_STATE_SUCCEEDED
    created = await saucer.create_task(account, saucer.form(imported.dataset_version_id, epochs=8))
    await kill("task")
    await saucer.run_reaches(account, created.task_id, lambda run: run.iteration >= 5)
    await kill("training")
    await kill("billing")
    await saucer.run_reaches(account, created.task_id, lambda run: run.iteration >= 20)
    await kill("evaluation")
    await kill("gateway")
    task = await saucer.task_ends(account, created.task_id)
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED, task
    deployment = await saucer.deploy(account, task.model_id)
    assert deployment.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, deployment
    await kill("publishing")
    await saucer.deployment_reaches(account, deployment.deployment_id, {publishing_pb2.DEPLOYMENT_STATE_ACTIVE})
    stopped = await saucer.stop_deployment(account, deployment.deployment_id)
    assert stopped.state == publishing_pb2.DEPLOYMENT_STATE_STOPPED
    await saucer.nothing_frozen(account)

    client = await nats.connect(saucer.stack.nats.uri)
    read = starts(await replay(client.jetstream(), f"saucer.*.v1.*.{account.account_id}.>"))
    await client.close()
    assert set(read) == {f"{task.task_id}-1", f"{deployment.deployment_id}-1"}, "one hold for each start"
    statements = await saucer.statements(account)
    assert {entry.hold.hold_id: entry.hold.charge_micros for entry in statements} == {
        hold_id: start.charge_micros for hold_id, start in read.items()
    }
    available, _ = await saucer.balance(account)
    assert available == 2 * HOLD_MICROS - sum(start.charge_micros for start in read.values())
    assert (await saucer.audit()).clean


async def test_stopped_and_started_again_the_state_is_as_it_was_and_deployments_return(
    saucer: Saucer, data: Data
) -> None:
    request = task_pb2.ListTasksRequest(states=[task_pb2.TASK_STATE_SUCCEEDED], page_size=1)
    response = await saucer.task.ListTasks(request, metadata=data.account.metadata)
    (task,) = response.tasks
    deployment = await saucer.deploy(data.account, task.model_id)
    await saucer.stack.stop()
    await saucer.stack.start()
    returned = await saucer.deployment_reaches(
        data.account, deployment.deployment_id, {publishing_pb2.DEPLOYMENT_STATE_ACTIVE}
    )
    assert returned.start_number == deployment.start_number
    assert (await saucer.get_task(data.account, task.task_id)).revision == task.revision
    await saucer.stop_deployment(data.account, deployment.deployment_id)
    assert (await saucer.audit()).clean
