"""What an account was charged, line by line, and whether the books are right."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime

from saucer.billing.domain import Account, Audit, MonthlyStatement, Statement, Transfer, month, month_of
from saucer.billing.store import accounts as accounts_store
from saucer.billing.store import holds as holds_store
from saucer.billing.store import records as records_store
from saucer.billing.store import transfers as store
from saucer.lib.auth import current
from saucer.lib.errors import InvalidArgumentError, NotFoundError
from saucer.lib.postgres import Connection, Database

# Of one answer, so that it fits what a gRPC client takes by default (4 MiB): a line has about 200 bytes. A start that
# is charged each hour has as many in 13 months.
PAGE_LINES = 10_000


class Statements:
    """The ledger, read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self,
        account_id: str,
        *,
        work_id: str | None,
        after: tuple[datetime, str] | None,
        after_version: int | None = None,
        limit: int,
    ) -> "tuple[list[Statement], bool]":
        """A page of starts, newest first, and whether more follows.

        Args:
            after: when the last start seen was made, and its hold's id.
            after_version: of the account, of the last line seen where more of that start's follow.

        Raises NotFoundError for another account.
        """
        current().own("account", account_id, account_id)
        async with self._database.reading() as connection:
            await _account(connection, account_id)
            found = await holds_store.list_holds(
                connection,
                account_id,
                work_id=work_id,
                after=after,
                # That start once more.
                inclusive=after_version is not None,
                limit=limit + 1,
            )
            holds = found[:limit]
            ids = [hold.hold_id for hold in holds]
            transfers = await store.transfers_of(connection, ids, after_version=after_version, limit=PAGE_LINES + 1)
            borne: Mapping[str, int] = {}
            if after_version is not None:
                borne = await store.borne_before(connection, ids[:1], after_version + 1)
        # The place of the first start whose lines do not fit.
        full = ids.index(str(transfers.pop().hold_id)) if len(transfers) > PAGE_LINES else len(ids)
        lines: dict[str, list[Transfer]] = defaultdict(list)
        for transfer in transfers:
            lines[str(transfer.hold_id)].append(transfer)
        # It is left to the next page; but one that has a page for itself is cut.
        statements = [
            Statement(hold, tuple(lines[hold.hold_id]), borne.get(hold.hold_id, 0), more=full == 0)
            for hold in holds[: max(full, 1)]
        ]
        return statements, full < len(found)

    async def of_month(
        self, account_id: str, month_name: str, *, after_version: int | None, limit: int
    ) -> MonthlyStatement:
        """A page of what was booked for an account in a month of its time zone, with the balances before and after.

        Args:
            month_name: like 2026-11; empty: the present one.
            after_version: of the account, of the last line seen; None: from the month's first line.

        Raises InvalidArgumentError for no such month, NotFoundError.
        """
        current().own("account", account_id, account_id)
        async with (
            self._database.reading() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            account = await _account(connection, account_id)
            now = await self._database.clock.now(connection)
            try:
                period = month(month_name or month_of(now, account.time_zone), account.time_zone)
            except ValueError as error:
                raise InvalidArgumentError("MONTH_INVALID", "month: a month is written like 2026-11.") from error
            opening = await store.balance_before(connection, account_id, period, version=after_version)
            found = await store.transfers_in(
                connection, account_id, period, after_version=after_version or 0, limit=limit + 1
            )
            transfers = found[:limit]
            hold_ids = sorted({transfer.hold_id for transfer in transfers if transfer.hold_id})
            holds = {hold.hold_id: hold for hold in await holds_store.get_holds(connection, hold_ids)}
            first_version = transfers[0].account_version if transfers else 0
            borne = await store.borne_before(connection, hold_ids, first_version)
            last = transfers[-1] if transfers else None
            closing = (last.available_micros, last.frozen_micros) if last else opening
            charged_micros = await store.charged_in(connection, account_id, period.name)
            more = len(found) > limit
            return MonthlyStatement(
                account, period, *opening, tuple(transfers), holds, borne, *closing, charged_micros, more
            )

    async def audit(self) -> Audit:
        """Every invariant, in one snapshot."""
        async with (
            self._database.reading() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            return await records_store.audit(connection)


async def _account(connection: Connection, account_id: str) -> Account:
    account = await accounts_store.get_account(connection, account_id)
    if account is None:
        raise NotFoundError("account", account_id)
    return account
