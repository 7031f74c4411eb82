"""Which event calls which use case. An account is met once and its store proven once, however often it is said."""

from typing import cast

import structlog
from google.protobuf.message import Message

from saucer.billing.v1 import events_pb2 as billing_events
from saucer.dataset.service import Datasets
from saucer.lib.cloudevent import CloudEvent
from saucer.lib.consumer import Handles
from saucer.lib.errors import UnavailableError
from saucer.lib.ids import new_id

log = structlog.get_logger()


def handlers(datasets: Datasets) -> list[Handles]:
    """Every event that dataset consumes."""

    async def account_created(event: CloudEvent, message: Message) -> None:
        account_id = cast(billing_events.AccountCreated, message).account.account_id
        await datasets.stores.meet(account_id)
        try:
            await datasets.stores.prove(account_id, new_id())
        except UnavailableError as error:
            # Not for delivery again, which ends after a minute: a round tries until it works.
            log.warning("store_not_proven_yet", account_id=account_id, error=str(error))

    async def quotas_changed(event: CloudEvent, message: Message) -> None:
        quotas = cast(billing_events.AccountQuotasChanged, message).quotas
        storage_bytes = quotas.storage_bytes if quotas.HasField("storage_bytes") else None
        await datasets.stores.set_quota(quotas.account_id, storage_bytes, quotas.revision)

    return [
        Handles(billing_events.AccountCreated, account_created),
        Handles(billing_events.AccountQuotasChanged, quotas_changed),
    ]
