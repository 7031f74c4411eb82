"""What tests of task need: the real billing, a dataset service that knows versions, accounts with money."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from google.protobuf.message import Message
from nats.js import JetStreamContext

from saucer.billing.main import wire as wire_billing
from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.lib.auth import Role, Verifier
from saucer.lib.config import ServiceSettings
from saucer.lib.errors import NotFoundError
from saucer.lib.grpc_server import Context, Server, Servicer
from saucer.lib.ids import new_id
from saucer.task.main import TaskSettings
from saucer.task.main import wire as wire_task
from saucer.task.v1 import task_pb2, task_pb2_grpc
from saucer.training.v1 import training_pb2
from tests.support.events import event, publish, until
from tests.support.services import Metadata, ServiceRunner, Tokens

PRICE_MICROS = 3_600_000
HOLD_MICROS = 2 * PRICE_MICROS


class OneVersion(dataset_pb2_grpc.DatasetServiceServicer):
    """Has every dataset version, as its owner's."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        self.boxes_per_split = 180

    async def GetDatasetVersion(  # noqa: N802
        self, request: dataset_pb2.GetDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        if request.dataset_version_id not in self.owners:
            raise NotFoundError("dataset_version", request.dataset_version_id)
        boxes = self.boxes_per_split
        splits = [
            dataset_pb2.SplitStatistics(split=name, images=60, boxes=boxes) for name in ("train", "validation", "test")
        ]
        return dataset_pb2.DatasetVersion(
            dataset_version_id=request.dataset_version_id,
            account_id=self.owners[request.dataset_version_id],
            manifest_key="system/m.json",
            manifest_sha256="0" * 64,
            image_prefix="system/images",
            classes=["cup", "plate"] if boxes else [],
            statistics=dataset_pb2.DatasetStatistics(
                images=180,
                unlabelled_images=0 if boxes else 180,
                splits=splits,
                median_width=640,
                median_height=480,
                median_box_share=0.05,
            ),
        )


class World:
    """Task, billing, one dataset version, and accounts with money."""

    def __init__(self, task: grpc.aio.Channel, billing: grpc.aio.Channel, data: OneVersion, tokens: Tokens) -> None:
        self.tasks = task_pb2_grpc.TaskServiceStub(task)
        self.billing = billing_pb2_grpc.BillingServiceStub(billing)
        self.data = data
        self.tokens = tokens
        self.administrator = tokens.metadata(Role.ADMINISTRATOR)

    async def offer(self) -> None:
        region = billing_pb2.CreateRegionRequest(
            request_id=new_id(), region_id="local", display_name="Here", reason="a test"
        )
        await self.billing.CreateRegion(region, metadata=self.administrator)
        spec = billing_pb2.CreateSpecRequest(
            request_id=new_id(),
            region_id="local",
            spec_id="cpu-2",
            display_name="2 cores",
            cpu_cores=2,
            max_count=1,
            price_per_hour_micros=PRICE_MICROS,
            currency="EUR",
            reason="a test",
        )
        await self.billing.CreateSpec(spec, metadata=self.administrator)

    async def account(self, balance_micros: int) -> tuple[str, Metadata]:
        request = billing_pb2.CreateAccountRequest(
            request_id=new_id(), display_name="A", currency="EUR", reason="a test"
        )
        account = await self.billing.CreateAccount(request, metadata=self.administrator)
        if balance_micros:
            await self.top_up(account.account_id, balance_micros)
        return account.account_id, self.tokens.metadata(Role.EDITOR, account.account_id)

    async def top_up(self, account_id: str, amount_micros: int) -> None:
        request = billing_pb2.TopUpAccountRequest(
            account_id=account_id, external_reference=new_id(), amount_micros=amount_micros
        )
        await self.billing.TopUpAccount(request, metadata=self.administrator)

    async def frozen(self, account_id: str) -> int:
        request = billing_pb2.GetAccountRequest(account_id=account_id)
        return (await self.billing.GetAccount(request, metadata=self.administrator)).frozen_micros

    def form(self, account_id: str, name: str = "cups") -> task_pb2.TaskForm:
        version = new_id()
        self.data.owners[version] = account_id
        return task_pb2.TaskForm(
            display_name=name,
            scene="cup-and-plate",
            dataset_version_id=version,
            region_id="local",
            spec_id="cpu-2",
            count=1,
            billing_mode=billing_pb2.BILLING_MODE_POSTPAID,
        )

    async def create(self, form: task_pb2.TaskForm, metadata: Metadata, request_id: str = "") -> task_pb2.Task:
        request = task_pb2.CreateTaskRequest(request_id=request_id or new_id(), form=form)
        return await self.tasks.CreateTask(request, metadata=metadata)

    async def get(self, task_id: str) -> task_pb2.Task:
        return await self.tasks.GetTask(task_pb2.GetTaskRequest(task_id=task_id), metadata=self.administrator)

    async def reaches(self, task_id: str, state: int) -> task_pb2.Task:
        async def there() -> task_pb2.Task | None:
            task = await self.get(task_id)
            return task if task.state == state else None

        return await until(there)


@asynccontextmanager
async def playing(run_service: ServiceRunner, **task_settings: str) -> AsyncIterator[World]:
    """Task as it runs, with the real billing, and a dataset service that knows every version it was told of."""
    data = OneVersion()  # type: ignore[abstract] # the calls it lacks answer UNIMPLEMENTED
    async with AsyncExitStack() as stack:
        dataset = Server(
            "127.0.0.1:0",
            Verifier(run_service.tokens.public_keys_file),
            [
                Servicer(
                    data,
                    dataset_pb2_grpc.add_DatasetServiceServicer_to_server,
                    dataset_pb2.DESCRIPTOR.services_by_name["DatasetService"],
                )
            ],
        )
        await dataset.start()
        stack.push_async_callback(dataset.stop)
        billing = await stack.enter_async_context(run_service("billing", ServiceSettings, wire_billing))
        settings = {"dataset_address": dataset.address, "billing_address": billing.address, **task_settings}
        task = await stack.enter_async_context(run_service("task", TaskSettings, wire_task, **settings))
        world = World(task.channel, billing.channel, data, run_service.tokens)
        await world.offer()
        yield world


def run_of(task: task_pb2.Task, revision: int, **fields: object) -> training_pb2.Run:
    return training_pb2.Run(
        run_id=new_id(),
        account_id=task.account_id,
        task_id=task.task_id,
        start_number=task.start_number,
        hold_id=task.hold_id,
        revision=revision,
        **fields,  # type: ignore[arg-type] # whatever a test sets
    )


async def tell(jetstream: JetStreamContext, message: Message, task: task_pb2.Task) -> None:
    service = message.DESCRIPTOR.full_name.split(".")[1]
    await publish(jetstream, event(message, service, task.account_id, task.task_id, new_id()))
