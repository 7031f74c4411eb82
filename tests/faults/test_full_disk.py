"""The disk is full, once under PostgreSQL and once under NATS, at each step of the path.

Typed errors where nothing can be stored; after room is made everything goes on, charged once, and the ledger is clean.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import grpc
import pytest

from saucer.billing.v1 import billing_pb2
from saucer.dataset.v1 import dataset_pb2
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.grpc_client import from_rpc
from saucer.lib.ids import new_id
from saucer.local.stack import REGION_ID, SPEC_ID
from saucer.publishing.v1 import publishing_pb2
from saucer.task.v1 import task_pb2
from saucer.training.v1 import training_pb2
from tests.integration.local.test_backup import connected
from tests.support.bill import replay, starts
from tests.support.disk import full
from tests.support.saucer_client import HOLD_MICROS, Account, Saucer, persist, tar_of

CALLS = 3000
# Workers are left so long with a training that cannot store what they say.
SILENT_S = 2.0
WAL_MESSAGE = "SELECT pg_logical_emit_message(true, 'filling', repeat('x', 1000000))"


async def accepts(uri: str) -> bool:
    """Whether PostgreSQL is there, if need be once it has recovered: that may find room by dropping its old log."""
    while True:
        try:
            connection = await asyncpg.connect(uri)
        except asyncpg.CannotConnectNowError:
            await asyncio.sleep(0.05)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        else:
            connection.terminate()
            return True


async def fill_log(uri: str) -> None:
    """Until something fails."""
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection = await asyncpg.connect(uri)
        try:
            while True:
                await connection.execute(WAL_MESSAGE)
        finally:
            connection.terminate()


@asynccontextmanager
async def full_under_postgres(saucer: Saucer) -> AsyncIterator[None]:
    """Not even the rest of PostgreSQL's log has room, so that it ends; later it is started, as a supervisor would."""
    postgres = saucer.stack.postgres
    with full(postgres.data_dir):
        while await accepts(postgres.admin_uri):
            await fill_log(postgres.admin_uri)
        yield
    await postgres.stop()
    await postgres.start()


@asynccontextmanager
async def full_under_nats(saucer: Saucer) -> AsyncIterator[None]:
    """JetStream gives up at a full disk, until its server is started again: see OutboxOld in deploy/RUNBOOK.md."""
    with full(saucer.stack.nats.data_dir):
        yield
    await saucer.stack.nats.stop()
    await saucer.stack.nats.start()


@pytest.fixture
def fillable(saucer: Saucer) -> Saucer:
    for server in (saucer.stack.postgres, saucer.stack.nats):
        if not server.data_dir.is_mount():
            pytest.skip("only root, with the right to mount, can make a disk that is full")
    return saucer


async def refused(call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call()
    error = from_rpc(raised.value)
    assert (error.code, error.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")


def task_request(saucer: Saucer, dataset_version_id: str) -> task_pb2.CreateTaskRequest:
    return task_pb2.CreateTaskRequest(request_id=new_id(), form=saucer.form(dataset_version_id, epochs=3))


def deployment_request(model_id: str) -> publishing_pb2.CreateDeploymentRequest:
    return publishing_pb2.CreateDeploymentRequest(
        request_id=new_id(),
        display_name=f"d-{new_id()}",
        model_id=model_id,
        region_id=REGION_ID,
        spec_id=SPEC_ID,
        replicas=1,
        billing_mode=billing_pb2.BILLING_MODE_POSTPAID,
    )


async def charged_once(saucer: Saucer, account: Account, work_ids: set[str]) -> None:
    """The bill is what the events say, one hold for each start; nothing is frozen, and the ledger is clean."""
    await saucer.nothing_frozen(account)
    async with connected(saucer.stack.nats.uri) as jetstream:
        read = starts(await replay(jetstream, f"saucer.*.v1.*.{account.account_id}.>"))
    assert set(read) == {f"{work_id}-1" for work_id in work_ids}
    statements = await saucer.statements(account)
    assert {entry.hold.hold_id: entry.hold.charge_micros for entry in statements} == {
        hold_id: start.charge_micros for hold_id, start in read.items()
    }
    assert await saucer.balance(account) == (2 * HOLD_MICROS - sum(each.charge_micros for each in read.values()), 0)
    audit = await saucer.audit()
    assert audit.clean, audit.findings


async def test_money_is_moved_or_refused_while_the_disk_under_postgres_fills(fillable: Saucer) -> None:
    account = await fillable.account(0)
    postgres = fillable.stack.postgres
    accepted, refusal = 0, None
    with full(postgres.data_dir):
        while refusal is None and accepted < CALLS:
            request = billing_pb2.TopUpAccountRequest(
                account_id=account.account_id, external_reference=f"full-{accepted}", amount_micros=1
            )
            try:
                await fillable.billing.TopUpAccount(request, metadata=fillable.administrator)
                accepted += 1
            except grpc.aio.AioRpcError as error:
                refusal = from_rpc(error)
    assert refusal is not None, "the disk was never full"
    assert refusal.reason == "DATABASE_UNAVAILABLE"
    await postgres.stop()
    await postgres.start()
    available, _ = await fillable.balance(account)
    # The call that was refused may have been committed just before its answer was lost.
    assert available in (accepted, accepted + 1)


async def test_the_whole_path_while_the_disk_under_postgres_is_full(fillable: Saucer, shapes_folder: Path) -> None:
    saucer = fillable
    account = await saucer.account(2 * HOLD_MICROS)
    metadata = account.metadata
    archive = await asyncio.to_thread(tar_of, shapes_folder)
    upload = dataset_pb2.CreateUploadRequest(request_id=new_id(), size_bytes=len(archive))
    get_account = billing_pb2.GetAccountRequest(account_id=account.account_id)
    async with full_under_postgres(saucer):
        await refused(lambda: saucer.dataset.CreateUpload(upload, metadata=metadata))
        await refused(lambda: saucer.billing.GetAccount(get_account, metadata=metadata))
    imported = await saucer.import_folder(account, shapes_folder)
    assert imported.state == dataset_pb2.IMPORT_STATE_SUCCEEDED, imported

    request = task_request(saucer, imported.dataset_version_id)
    async with full_under_postgres(saucer):
        await refused(lambda: saucer.task.CreateTask(request, metadata=metadata))
    created = await persist(lambda: saucer.task.CreateTask(request, metadata=metadata))
    await saucer.run_reaches(account, created.task_id, lambda run: run.iteration >= 5)
    async with full_under_postgres(saucer):
        await refused(
            lambda: saucer.training.ListRuns(training_pb2.ListRunsRequest(task_id=created.task_id), metadata=metadata)
        )
        await asyncio.sleep(SILENT_S)
    task = await saucer.task_ends(account, created.task_id)
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED, task

    deploy = deployment_request(task.model_id)
    evaluation = evaluation_pb2.GetEvaluationRequest(evaluation_id=task.evaluation_id)
    async with full_under_postgres(saucer):
        await refused(lambda: saucer.evaluation.GetEvaluation(evaluation, metadata=metadata))
        await refused(lambda: saucer.publishing.CreateDeployment(deploy, metadata=metadata))
    deployment = await persist(
        lambda: saucer.publishing.CreateDeployment(deploy, metadata=metadata), also="MODEL_NOT_EVALUATED"
    )
    active = {publishing_pb2.DEPLOYMENT_STATE_ACTIVE}
    await saucer.deployment_reaches(account, deployment.deployment_id, active)
    stop = publishing_pb2.StopDeploymentRequest(request_id=new_id(), deployment_id=deployment.deployment_id)
    async with full_under_postgres(saucer):
        await refused(lambda: saucer.publishing.StopDeployment(stop, metadata=metadata))
    await saucer.deployment_reaches(account, deployment.deployment_id, active)
    stopped = await saucer.stop_deployment(account, deployment.deployment_id)
    assert stopped.state == publishing_pb2.DEPLOYMENT_STATE_STOPPED
    await charged_once(saucer, account, {task.task_id, deployment.deployment_id})


async def test_the_whole_path_while_the_disk_under_nats_is_full(fillable: Saucer, shapes_folder: Path) -> None:
    """No call is refused: events wait in the outboxes, and what follows from them waits with them."""
    saucer = fillable
    account = await saucer.account(2 * HOLD_MICROS)
    proven = dataset_pb2.CreateUploadRequest(request_id=new_id(), size_bytes=1)
    await persist(lambda: saucer.dataset.CreateUpload(proven, metadata=account.metadata), also="STORE_NOT_PROVEN")
    async with full_under_nats(saucer):
        imported = await saucer.import_folder(account, shapes_folder)
        assert imported.state == dataset_pb2.IMPORT_STATE_SUCCEEDED, imported
        request = task_request(saucer, imported.dataset_version_id)
        created = await saucer.task.CreateTask(request, metadata=account.metadata)
        assert created.state == task_pb2.TASK_STATE_QUEUED
        assert await saucer.run_of(account, created.task_id) is None
    await saucer.run_reaches(account, created.task_id, lambda run: run.iteration >= 5)
    async with full_under_nats(saucer):
        await saucer.run_reaches(account, created.task_id, lambda run: run.state == training_pb2.RUN_STATE_ENDED)
        assert (await saucer.get_task(account, created.task_id)).state == task_pb2.TASK_STATE_TRAINING
    task = await saucer.task_ends(account, created.task_id)
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED, task

    async with full_under_nats(saucer):
        deployment = await saucer.deploy(account, task.model_id)
        assert deployment.state == publishing_pb2.DEPLOYMENT_STATE_ACTIVE, deployment
        stopped = await saucer.stop_deployment(account, deployment.deployment_id)
        assert stopped.state == publishing_pb2.DEPLOYMENT_STATE_STOPPED
        _, frozen = await saucer.balance(account)
        assert frozen == HOLD_MICROS, "billing has not heard of the end"
    await charged_once(saucer, account, {task.task_id, deployment.deployment_id})
