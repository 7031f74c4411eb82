"""Update records: who changed what, when."""

from saucer.lib.postgres import Transaction
from saucer.publishing import version_store
from saucer.publishing.domain import Deployment, UpdateAction, UpdateRecord

# The author of what publishing does by itself.
SAUCER = "saucer"


async def record(
    tx: Transaction,
    deployment: Deployment,
    action: UpdateAction,
    *,
    author: str,
    to_version: int | None = None,
    percent: int = 0,
    request_id: str | None = None,
    detail: str = "",
) -> None:
    """Of a deployment as it was before the change; `to_version` None: its own."""
    number = deployment.version.number
    made = UpdateRecord(
        0, action, author, number, number if to_version is None else to_version, percent, detail, tx.now
    )
    await version_store.insert_record(tx.connection, deployment.deployment_id, made, request_id)
