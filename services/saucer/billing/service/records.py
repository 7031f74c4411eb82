"""What administrators did, why and in whose name: each call once for its request id."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from saucer.billing.domain import Record
from saucer.billing.store import records as store
from saucer.lib.auth import current
from saucer.lib.errors import AlreadyExistsError
from saucer.lib.ids import derived_id
from saucer.lib.postgres import Database, Transaction


@dataclass(frozen=True)
class Correction:
    """An administrator's call: its id, and why it is made. Its author is the bearer of the token."""

    request_id: str
    reason: str


async def record(
    tx: Transaction,
    correction: Correction,
    action: str,
    subject: str,
    account_id: str | None,
    detail: Mapping[str, object],
) -> Record | None:
    """Writes who does what and why; None if the same call has done it already.

    It takes a share of the account's lock: whoever locks account or holds, too, does so before.

    Raises AlreadyExistsError: the request id was used for something else.
    """
    new = Record(
        record_id=derived_id("record", correction.request_id),
        request_id=correction.request_id,
        action=action,
        subject=subject,
        account_id=account_id,
        author=current().subject,
        reason=correction.reason,
        detail=json.dumps(detail),
        created_at=tx.now,
    )
    if await store.insert_record(tx.connection, new):
        return new
    await is_recorded(tx, correction, action, subject, detail)
    return None


async def is_recorded(
    tx: Transaction, correction: Correction, action: str, subject: str, detail: Mapping[str, object]
) -> bool:
    """Whether the same call has been made already; for calls that change nothing, and are not recorded, if what they
    ask for is there.

    Raises AlreadyExistsError: the request id was used for something else.
    """
    former = await store.record_of_request(tx.connection, correction.request_id)
    if former is None:
        return False
    if (former.action, former.subject, former.reason, json.loads(former.detail)) != (
        action,
        subject,
        correction.reason,
        detail,
    ):
        raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for something else.")
    return True


class Records:
    """The record, read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, *, account_id: str | None, after: tuple[datetime, str] | None, limit: int) -> "list[Record]":
        """Who did what, newest first."""
        async with self._database.reading() as connection:
            return await store.list_records(connection, account_id=account_id, after=after, limit=limit)
