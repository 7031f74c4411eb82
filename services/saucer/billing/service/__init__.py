"""The use cases of billing, by what they are about, and the only place that opens its transactions."""

from datetime import timedelta

import structlog

from saucer.billing.service.accounts import Accounts
from saucer.billing.service.budgets import Budgets
from saucer.billing.service.groups import Groups
from saucer.billing.service.holds import Holds
from saucer.billing.service.offers import Offers
from saucer.billing.service.quotas import AccountQuotas
from saucer.billing.service.records import Correction, Records
from saucer.billing.service.statements import Statements
from saucer.billing.store import holds as holds_store
from saucer.lib.postgres import Database

__all__ = ["Billing", "Correction"]

# A hold whose use (TaskQueued, DeploymentQueued) billing has not consumed by then goes back: its owner gives up after a
# quarter of an hour, the rest is for events that are late.
UNUSED_LIMIT = timedelta(hours=1)
SWEEP_S = 5.0
SWEEP_BATCH = 100

log = structlog.get_logger()


class Billing:
    """Accounts, prices, holds and the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.accounts = Accounts(database)
        self.offers = Offers(database)
        self.groups = Groups(database)
        self.budgets = Budgets(database)
        self.holds = Holds(database, self.groups, self.budgets)
        self.quotas = AccountQuotas(database)
        self.statements = Statements(database)
        self.records = Records(database)

    async def sweep_once(self) -> bool:
        """Gives back what nobody used in time, sees to suspended accounts and to groups; whether there may be more.

        Several replicas may make a round at once.
        """
        async with self._database.transaction() as tx:
            unused = await holds_store.unused_holds(tx.connection, tx.now - UNUSED_LIMIT, SWEEP_BATCH)
        for hold_id in unused:
            await self.holds.expire(hold_id)
        await self.accounts.sweep_once()
        await self.groups.sweep_once()
        return len(unused) == SWEEP_BATCH
