"""Accounts."""

from collections.abc import Sequence

import asyncpg

from saucer.billing.domain import Account, AccountState
from saucer.lib.postgres import Connection

_ACCOUNT = (
    "account_id, display_name, currency, time_zone, state, available_micros, frozen_micros, version, state_changes, "
    "warned_hours, booked_at, created_at"
)


async def time_zones(connection: Connection) -> frozenset[str]:
    """The names of those that PostgreSQL knows."""
    return frozenset(row["name"] for row in await connection.fetch("SELECT name FROM pg_timezone_names"))


async def insert_account(connection: Connection, account: Account, request_id: str) -> bool:
    """False if the request id was used before."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO account (account_id, request_id, display_name, currency, time_zone, state, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (request_id) DO NOTHING RETURNING true
            """,
            account.account_id,
            request_id,
            account.display_name,
            account.currency,
            account.time_zone,
            account.state,
            account.created_at,
        )
    )


async def account_of_request(connection: Connection, request_id: str) -> Account:
    """The account that a request id made."""
    row = await connection.fetchrow(f"SELECT {_ACCOUNT} FROM account WHERE request_id = $1", request_id)  # noqa: S608 - column names
    assert row is not None
    return _account(row)


async def get_account(connection: Connection, account_id: str, *, lock: bool = False) -> Account | None:
    """An account; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_ACCOUNT} FROM account WHERE account_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        account_id,
    )
    return _account(row) if row else None


async def rate_micros(connection: Connection, account_id: str, except_hold_ids: Sequence[str]) -> int:
    """What all that is being charged to an account costs in an hour, but for some holds."""
    return int(
        await connection.fetchval(
            """
            SELECT coalesce(sum(price_per_hour_micros * count), 0) FROM hold
            WHERE account_id = $1 AND state = 'GRANTED' AND charge_status = 'BILLING' AND hold_id <> ALL($2)
            """,
            account_id,
            list(except_hold_ids),
        )
    )


async def suspended_at_work(connection: Connection) -> list[str]:
    """Suspended accounts with work that nobody has ordered to stop."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT account_id FROM hold JOIN account USING (account_id)
        WHERE hold.state IN ('GRANTED', 'WAITING') AND NOT hold.stop_ordered AND account.state = 'SUSPENDED'
        """
    )
    return [str(row["account_id"]) for row in rows]


async def list_accounts(connection: Connection, *, after: str | None, limit: int) -> list[Account]:
    """By id."""
    rows = await connection.fetch(
        f"SELECT {_ACCOUNT} FROM account WHERE $1::uuid IS NULL OR account_id > $1 "  # noqa: S608 - column names
        "ORDER BY account_id LIMIT $2",
        after,
        limit,
    )
    return [_account(row) for row in rows]


def _account(row: asyncpg.Record) -> Account:
    return Account(**{**row, "account_id": str(row["account_id"]), "state": AccountState(row["state"])})
