"""What task asks of other services: is this data there, is there money. Everything else comes as an event."""

from dataclasses import dataclass

import grpc

from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from saucer.lib.grpc_client import TokenFile, call
from saucer.task.defaults import Data, Machine
from saucer.task.domain import Form, Task


@dataclass(frozen=True)
class Quote:
    """What a start would freeze now, and what it would run on."""

    price_per_hour_micros: int
    hold_micros: int
    available_micros: int
    missing_micros: int
    currency: str
    machine: Machine


@dataclass(frozen=True)
class Hold:
    """Frozen money, or capacity of a resource group: that costs nothing, and may have to be waited for."""

    amount_micros: int
    price_per_hour_micros: int
    currency: str
    waiting: bool


class Peers:
    """Dataset and billing. Every call raises what the other side raised, UnavailableError if it does not answer."""

    def __init__(self, dataset: grpc.aio.Channel, billing: grpc.aio.Channel, token: TokenFile) -> None:
        self._dataset = dataset_pb2_grpc.DatasetServiceStub(dataset)
        self._billing = billing_pb2_grpc.BillingServiceStub(billing)
        self._token = token

    async def data(self, dataset_version_id: str) -> tuple[str, Data]:
        """The account that a dataset version belongs to, and the version."""
        request = dataset_pb2.GetDatasetVersionRequest(dataset_version_id=dataset_version_id)
        version = await call(self._dataset.GetDatasetVersion, request, self._token)
        statistics = version.statistics
        whole_images = version.label_kind == dataset_pb2.LABEL_KIND_CLASSES
        images = {split.split: split.images for split in statistics.splits}
        labels = {
            split.split: split.images - split.unlabelled_images if whole_images else split.boxes
            for split in statistics.splits
        }
        return version.account_id, Data(
            dataset_version_id=version.dataset_version_id,
            manifest_key=version.manifest_key,
            manifest_sha256=version.manifest_sha256,
            image_prefix=version.image_prefix,
            classes=tuple(version.classes),
            training_images=images.get("train", 0),
            validation_images=images.get("validation", 0),
            test_images=images.get("test", 0),
            training_labels=labels.get("train", 0),
            validation_labels=labels.get("validation", 0),
            labels=sum(labels.values()),
            median_width=statistics.median_width,
            median_height=statistics.median_height,
            median_box_share=statistics.median_box_share,
            labels_whole_images=whole_images,
        )

    async def quote(self, account_id: str, form: Form) -> Quote:
        """Price, hold and balance of now."""
        request = billing_pb2.GetQuoteRequest(
            account_id=account_id,
            region_id=form.region_id,
            spec_id=form.spec_id,
            count=form.count,
            resource_group_id=form.resource_group_id,
        )
        quote = await call(self._billing.GetQuote, request, self._token)
        return Quote(
            quote.price_per_hour_micros,
            quote.hold_micros,
            quote.available_micros,
            quote.missing_micros,
            quote.currency,
            Machine(quote.gpus, quote.cpu_cores),
        )

    async def hold(self, task: Task) -> Hold:
        """Freezes two hours for the present start, or takes capacity; the same start gets the same hold."""
        request = billing_pb2.CreateHoldRequest(
            hold_id=task.hold_id,
            account_id=task.account_id,
            work_kind=billing_pb2.WORK_KIND_TASK,
            work_id=task.task_id,
            start_number=task.start_number,
            region_id=task.form.region_id,
            spec_id=task.form.spec_id,
            count=task.form.count,
            resource_group_id=task.form.resource_group_id,
            budget_micros=task.form.budget_micros,
        )
        return read_hold(await call(self._billing.CreateHold, request, self._token))


def read_hold(hold: billing_pb2.Hold) -> Hold:
    """As billing answers, or tells in an event."""
    waiting = hold.state == billing_pb2.HOLD_STATE_WAITING
    return Hold(hold.amount_micros, hold.price_per_hour_micros, hold.currency, waiting)
