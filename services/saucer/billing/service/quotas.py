"""Quotas: what an account may have at once. Billing keeps and tells them; who owns the things enforces them."""

from dataclasses import asdict

from saucer.billing.domain import Quotas
from saucer.billing.messages import quotas_message
from saucer.billing.service.records import Correction, record
from saucer.billing.store import accounts as accounts_store
from saucer.billing.store import quotas as store
from saucer.billing.v1 import events_pb2
from saucer.lib.auth import current
from saucer.lib.errors import NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Connection, Database


class AccountQuotas:
    """The limits that an administrator sets an account."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, account_id: str) -> Quotas:
        """Raises NotFoundError."""
        current().own("account", account_id, account_id)
        async with self._database.reading() as connection:
            await _known(connection, account_id)
            return await store.get_quotas(connection, account_id)

    async def set(self, quotas: Quotas, correction: Correction) -> Quotas:
        """All of them anew. Raises NotFoundError, AlreadyExistsError."""
        account_id = quotas.account_id
        async with self._database.transaction() as tx:
            await _known(tx.connection, account_id)
            limits = {name: value for name, value in asdict(quotas).items() if name not in ("account_id", "revision")}
            if await record(tx, correction, "SET_QUOTAS", account_id, account_id, limits) is None:
                return await store.get_quotas(tx.connection, account_id)
            put = await store.put_quotas(tx.connection, quotas)
            await enqueue(
                tx,
                derived_id("AccountQuotasChanged", account_id, put.revision),
                events_pb2.AccountQuotasChanged(quotas=quotas_message(put)),
                account_id=account_id,
                work_id=None,
                resource_id=account_id,
            )
            return put


async def _known(connection: Connection, account_id: str) -> None:
    if await accounts_store.get_account(connection, account_id) is None:
        raise NotFoundError("account", account_id)
