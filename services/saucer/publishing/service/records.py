"""Update records: who changed what, when."""

from saucer.lib.errors import AlreadyExistsError
from saucer.lib.postgres import Connection, Transaction
from saucer.publishing.domain import Deployment, UpdateAction, UpdateRecord
from saucer.publishing.store import versions as version_store

# The author of what publishing does by itself.
SAUCER = "saucer"


async def is_retry(connection: Connection, deployment_id: str, action: UpdateAction, request_id: str) -> bool:
    """Whether a call with this request id has made this change before, or found nothing to change: it is not made
    again, however late the retry; of what changed nothing, within version_store.UNCHANGED_KEEP.

    Raises AlreadyExistsError: REQUEST_ID_USED, for another change.
    """
    made = await version_store.action_of(connection, deployment_id, request_id)
    if made is not None and made is not action:
        raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another change of it.")
    return made is not None


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
        0, action, author, number, number if to_version is None else to_version, percent, detail, tx.now, request_id
    )
    await version_store.insert_record(tx.connection, deployment.deployment_id, made)
