"""A client of a whole Saucer, as the end-to-end tests use it: accounts with money, data, tasks, deployments."""

import asyncio
import io
import tarfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc

from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.evaluation.v1 import evaluation_pb2_grpc
from saucer.lib.auth import Role
from saucer.lib.clock import to_timestamp
from saucer.lib.ids import new_id
from saucer.local.stack import PRICE_PER_HOUR_MICROS, REGION_ID, SPEC_ID, Stack
from saucer.publishing.v1 import publishing_pb2, publishing_pb2_grpc
from saucer.task.v1 import task_pb2, task_pb2_grpc
from saucer.training.v1 import training_pb2, training_pb2_grpc
from tests.support.collector import Collector
from tests.support.services import Metadata, Tokens

HOLD_MICROS = 2 * PRICE_PER_HOUR_MICROS
CHUNK_BYTES = 1024 * 1024
POLL_S = 0.2
TASK_AT_REST = {
    task_pb2.TASK_STATE_SUCCEEDED,
    task_pb2.TASK_STATE_STOPPED,
    task_pb2.TASK_STATE_FAILED,
    task_pb2.TASK_STATE_REFUSED,
}
DEPLOYMENT_AT_REST = {
    publishing_pb2.DEPLOYMENT_STATE_STOPPED,
    publishing_pb2.DEPLOYMENT_STATE_FAILED,
    publishing_pb2.DEPLOYMENT_STATE_REFUSED,
}
T = TypeVar("T")


@dataclass(frozen=True)
class Account:
    """An account with the token of its owner."""

    account_id: str
    token: str

    @property
    def metadata(self) -> Metadata:
        return (("authorization", f"Bearer {self.token}"),)


class Saucer:
    """Calls every service of a stack."""

    def __init__(self, stack: Stack, collector: Collector | None = None) -> None:
        self.stack = stack
        self.collector = collector or Collector()
        self.tokens = Tokens(stack.layout.private_key.parent, public_name="public.json", key_id="local")
        self.administrator = self.tokens.metadata(Role.ADMINISTRATOR)
        self.channels = {
            name: grpc.aio.insecure_channel(process.address, options=[("grpc.max_reconnect_backoff_ms", 500)])
            for name, process in stack.processes.items()
            if process.address is not None
        }
        self.billing = billing_pb2_grpc.BillingServiceStub(self.channels["billing"])
        self.dataset = dataset_pb2_grpc.DatasetServiceStub(self.channels["dataset"])
        self.task = task_pb2_grpc.TaskServiceStub(self.channels["task"])
        self.training = training_pb2_grpc.TrainingServiceStub(self.channels["training"])
        self.evaluation = evaluation_pb2_grpc.EvaluationServiceStub(self.channels["evaluation"])
        self.publishing = publishing_pb2_grpc.PublishingServiceStub(self.channels["publishing"])

    async def close(self) -> None:
        for channel in self.channels.values():
            await channel.close()

    async def account(self, balance_micros: int) -> Account:
        request = billing_pb2.CreateAccountRequest(
            request_id=new_id(), display_name="A", currency="EUR", reason="a test"
        )
        account = await persist(lambda: self.billing.CreateAccount(request, metadata=self.administrator))
        if balance_micros:
            await self.top_up(account.account_id, balance_micros)
        return Account(account.account_id, self.tokens.mint(Role.OWNER, account.account_id))

    async def top_up(self, account_id: str, amount_micros: int) -> None:
        request = billing_pb2.TopUpAccountRequest(
            account_id=account_id, external_reference=new_id(), amount_micros=amount_micros
        )
        await persist(lambda: self.billing.TopUpAccount(request, metadata=self.administrator))

    async def balance(self, account: Account) -> tuple[int, int]:
        """Available and frozen."""
        request = billing_pb2.GetAccountRequest(account_id=account.account_id)
        found = await persist(lambda: self.billing.GetAccount(request, metadata=account.metadata))
        return found.available_micros, found.frozen_micros

    async def statements(self, account: Account) -> list[billing_pb2.Statement]:
        request = billing_pb2.ListStatementsRequest(account_id=account.account_id)
        response = await persist(lambda: self.billing.ListStatements(request, metadata=account.metadata))
        return list(response.statements)

    async def audit(self) -> billing_pb2.Audit:
        request = billing_pb2.AuditLedgerRequest()
        return await persist(lambda: self.billing.AuditLedger(request, metadata=self.administrator))

    async def leftovers(self, account: Account, folder: Path) -> tuple[str, str]:
        """Ids of an upload and of an import of the account."""
        upload = await self._upload(account, await asyncio.to_thread(tar_of, folder))
        request = dataset_pb2.ImportDatasetRequest(
            request_id=new_id(), display_name="again", upload_id=upload.upload_id
        )
        started = await self.dataset.ImportDataset(request, metadata=account.metadata)
        return upload.upload_id, started.import_id

    async def group(self, account: Account) -> str:
        """Id of prepaid capacity of the account."""
        request = billing_pb2.CreateResourceGroupRequest(
            request_id=new_id(),
            account_id=account.account_id,
            display_name="Capacity",
            region_id=REGION_ID,
            spec_id=SPEC_ID,
            capacity=1,
            end_time=to_timestamp(datetime.now(UTC) + timedelta(days=1)),
            reason="a test",
        )
        made = await self.billing.CreateResourceGroup(request, metadata=self.administrator)
        return made.resource_group_id

    async def draft(self, account: Account, dataset_version_id: str) -> str:
        """Id of a draft of the version."""
        request = dataset_pb2.CreateDraftRequest(
            request_id=new_id(), dataset_version_id=dataset_version_id, display_name="draft"
        )
        return (await self.dataset.CreateDraft(request, metadata=account.metadata)).draft_id

    async def import_folder(self, account: Account, folder: Path) -> dataset_pb2.Import:
        """Uploads a folder as a tar and imports it; the import at its end."""
        archive = await asyncio.to_thread(tar_of, folder)
        upload = await self._upload(account, archive)
        request = dataset_pb2.ImportDatasetRequest(
            request_id=new_id(), display_name=folder.name, upload_id=upload.upload_id
        )
        started = await persist(lambda: self.dataset.ImportDataset(request, metadata=account.metadata))

        async def ended() -> dataset_pb2.Import | None:
            got = await self.dataset.GetImport(
                dataset_pb2.GetImportRequest(import_id=started.import_id), metadata=account.metadata
            )
            at_rest = {dataset_pb2.IMPORT_STATE_SUCCEEDED, dataset_pb2.IMPORT_STATE_FAILED}
            return got if got.state in at_rest else None

        return await reached(ended, timeout_s=60)

    async def _upload(self, account: Account, archive: bytes) -> dataset_pb2.Upload:
        create = dataset_pb2.CreateUploadRequest(request_id=new_id(), size_bytes=len(archive))
        # The account's place in the store is proven by an event that follows its creation.
        upload = await persist(
            lambda: self.dataset.CreateUpload(create, metadata=account.metadata), also="STORE_NOT_PROVEN"
        )
        for offset in range(0, len(archive), CHUNK_BYTES):
            chunk = archive[offset : offset + CHUNK_BYTES]
            upload = await self._write(account, upload.upload_id, offset, chunk)
        return upload

    async def _write(self, account: Account, upload_id: str, offset: int, chunk: bytes) -> dataset_pb2.Upload:
        request = dataset_pb2.WriteUploadRequest(upload_id=upload_id, offset_bytes=offset, data=chunk)
        return await persist(lambda: self.dataset.WriteUpload(request, metadata=account.metadata))

    def form(self, dataset_version_id: str, **changes: Any) -> task_pb2.TaskForm:
        """A task of the test-size recipe: about half a minute on two cores."""
        values: dict[str, Any] = {
            "display_name": f"t-{new_id()}",
            "scene": "object-detection",
            "dataset_version_id": dataset_version_id,
            "region_id": REGION_ID,
            "spec_id": SPEC_ID,
            "count": 1,
            "billing_mode": billing_pb2.BILLING_MODE_POSTPAID,
            "input_size": 128,
            "batch_size": 8,
        }
        return task_pb2.TaskForm(**(values | changes))

    async def create_task(self, account: Account, form: task_pb2.TaskForm) -> task_pb2.Task:
        request = task_pb2.CreateTaskRequest(request_id=new_id(), form=form)
        return await persist(lambda: self.task.CreateTask(request, metadata=account.metadata))

    async def get_task(self, account: Account, task_id: str) -> task_pb2.Task:
        request = task_pb2.GetTaskRequest(task_id=task_id)
        return await persist(lambda: self.task.GetTask(request, metadata=account.metadata))

    async def stop_task(self, account: Account, task_id: str) -> None:
        request = task_pb2.StopTaskRequest(request_id=new_id(), task_id=task_id)
        await persist(lambda: self.task.StopTask(request, metadata=account.metadata))

    async def task_ends(self, account: Account, task_id: str, *, timeout_s: float = 240) -> task_pb2.Task:
        async def ended() -> task_pb2.Task | None:
            task = await self.get_task(account, task_id)
            return task if task.state in TASK_AT_REST else None

        return await reached(ended, timeout_s=timeout_s)

    async def run_of(self, account: Account, task_id: str) -> training_pb2.Run | None:
        request = training_pb2.ListRunsRequest(task_id=task_id)
        response = await persist(lambda: self.training.ListRuns(request, metadata=account.metadata))
        return response.runs[0] if response.runs else None

    async def run_reaches(
        self,
        account: Account,
        task_id: str,
        condition: Callable[[training_pb2.Run], bool],
        *,
        timeout_s: float = 120,
    ) -> training_pb2.Run:
        async def there() -> training_pb2.Run | None:
            run = await self.run_of(account, task_id)
            return run if run is not None and condition(run) else None

        return await reached(there, timeout_s=timeout_s)

    async def deploy(self, account: Account, model_id: str) -> publishing_pb2.Deployment:
        """Deploys and waits until it serves or rests."""
        request = publishing_pb2.CreateDeploymentRequest(
            request_id=new_id(),
            display_name=f"d-{new_id()}",
            model_id=model_id,
            region_id=REGION_ID,
            spec_id=SPEC_ID,
            replicas=1,
            billing_mode=billing_pb2.BILLING_MODE_POSTPAID,
        )
        created = await persist(
            lambda: self.publishing.CreateDeployment(request, metadata=account.metadata), also="MODEL_NOT_EVALUATED"
        )
        at = {publishing_pb2.DEPLOYMENT_STATE_ACTIVE, *DEPLOYMENT_AT_REST}
        return await self.deployment_reaches(account, created.deployment_id, at)

    async def deployment_reaches(
        self, account: Account, deployment_id: str, states: set[Any], *, timeout_s: float = 60
    ) -> publishing_pb2.Deployment:
        request = publishing_pb2.GetDeploymentRequest(deployment_id=deployment_id)

        async def there() -> publishing_pb2.Deployment | None:
            found = await persist(lambda: self.publishing.GetDeployment(request, metadata=account.metadata))
            return found if found.state in states else None

        return await reached(there, timeout_s=timeout_s)

    async def stop_deployment(self, account: Account, deployment_id: str) -> publishing_pb2.Deployment:
        request = publishing_pb2.StopDeploymentRequest(request_id=new_id(), deployment_id=deployment_id)
        await persist(lambda: self.publishing.StopDeployment(request, metadata=account.metadata))
        return await self.deployment_reaches(account, deployment_id, DEPLOYMENT_AT_REST)

    async def nothing_frozen(self, account: Account) -> None:
        async def settled() -> bool:
            return (await self.balance(account))[1] == 0

        await reached(settled, timeout_s=30)


def tar_of(folder: Path) -> bytes:
    """The folder's files, as an archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


async def persist(call: Callable[[], Awaitable[T]], *, also: str = "", timeout_s: float = 60) -> T:
    """Repeats a call while its service is away, as a client should, and while it answers the reason `also`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            away = error.code() is grpc.StatusCode.UNAVAILABLE
            awaited = bool(also) and also.encode() in dict(error.trailing_metadata() or ()).get(
                "grpc-status-details-bin", b""
            )
            if not (away or awaited) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(POLL_S)


async def reached(condition: Callable[[], Awaitable[T | None]], *, timeout_s: float) -> T:
    """The first true answer. Fails if none comes in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = await condition()
        if answer:
            return answer
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"It was not reached within {timeout_s} s.")
