"""deploy/BACKUP.md, done to a whole Saucer: PostgreSQL and objects are copied while it works; another goes on from it.

NATS is not copied: it begins empty, and is filled again from the outboxes.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from saucer.evaluation.v1 import evaluation_pb2
from saucer.local.stack import Stack
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from tests.e2e.test_path import first_image, the_bill_is_what_the_events_say
from tests.integration.local.test_backup import copy_of, take_over
from tests.support.child import THREADS
from tests.support.saucer_client import Saucer, persist
from tests.support.stack import PROJECT, Trained

ACTIVE = {publishing_pb2.DEPLOYMENT_STATE_ACTIVE}


async def copy(stack: Stack, home: Path) -> None:
    """In the order of the page: PostgreSQL, then the objects that its rows name; keys are kept apart."""
    server = await copy_of(stack.postgres, home / "postgres")
    await asyncio.to_thread(shutil.copytree, stack.layout.objects, home / "objects")
    await asyncio.to_thread(shutil.copytree, stack.layout.private_key.parent, home / "keys")
    take_over(server, stack.postgres)


@asynccontextmanager
async def restored(home: Path) -> AsyncIterator[Saucer]:
    stack = Stack(home, PROJECT, fast=True, worker_threads=THREADS)
    await stack.start()
    client = Saucer(stack)
    yield client
    await client.close()
    await stack.stop()


async def test_a_restored_copy_of_the_whole_goes_on_with_what_it_did(
    saucer: Saucer, trained: Trained, servers_dir: Path
) -> None:
    account, task = trained.data.account, trained.task
    deployment = await saucer.deploy(account, task.model_id)
    running = await saucer.create_task(account, saucer.form(trained.data.dataset_version_id, epochs=5))
    before = await saucer.run_reaches(account, running.task_id, lambda run: run.iteration >= 12)
    home = servers_dir / "restored"
    await copy(saucer.stack, home)
    # After the copy, and so unknown to it.
    await saucer.stop_task(account, running.task_id)
    await saucer.stop_deployment(account, deployment.deployment_id)
    await saucer.task_ends(account, running.task_id)

    async with restored(home) as second:
        read = evaluation_pb2.GetEvaluationRequest(evaluation_id=task.evaluation_id)
        evaluation = await second.evaluation.GetEvaluation(read, metadata=account.metadata)
        assert evaluation == await saucer.evaluation.GetEvaluation(read, metadata=account.metadata)
        await second.deployment_reaches(account, deployment.deployment_id, ACTIVE)
        predict = publishing_pb2.PredictRequest(
            deployment_id=deployment.deployment_id, image=first_image(trained.data.folder)
        )
        # Its Triton is a new one: the first check finds the model gone, and brings it back.
        answer = await persist(lambda: second.publishing.Predict(predict, metadata=account.metadata), also="NOT_ACTIVE")
        assert answer.detections
        resumed = await second.task_ends(account, running.task_id)
        assert (resumed.state, resumed.attempt) == (task_pb2.TASK_STATE_SUCCEEDED, before.attempt + 1), resumed
        await second.stop_deployment(account, deployment.deployment_id)
        await second.nothing_frozen(account)
        await the_bill_is_what_the_events_say(second, trained.data)
