"""Transfers: written by one statement, read as lines of statements."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from saucer.billing.domain import Account, Period, TopUp, Transfer, month_of
from saucer.billing.ledger import Movement, TransferKind
from saucer.lib.postgres import Connection

_TRANSFER = (
    "t.transfer_id, t.kind, t.account_version, t.hold_id, t.amount_micros, t.charged_ms, t.available_micros, "
    "t.frozen_micros, t.reference, t.created_at, r.reason, r.author"
)


@dataclass(frozen=True)
class Booking:
    """A transfer that is to be booked, with the account's balance and version after it."""

    transfer_id: str
    movement: Movement
    account_version: int
    available_micros: int
    frozen_micros: int
    hold_id: str | None
    charged_ms: int
    reference: str | None
    record_id: str | None


async def write(connection: Connection, former: Account, account: Account, bookings: Sequence[Booking]) -> None:
    """Writes an account as it has become, with the transfers that made it so: one statement.

    Args:
        former: as it was read; the caller has locked it.
        account: after the last of `bookings`, which are of its `booked_at`.
    """
    written = await connection.fetchval(
        """
        WITH moved AS (
            UPDATE account SET available_micros = $4, frozen_micros = $5, version = $6, state = $7, warned_hours = $8,
                               state_changes = $9, booked_at = $10
            WHERE account_id = $1 AND version = $2 AND state_changes = $3 RETURNING account_id
        ), transferred AS (
            INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, charged_ms,
                                  available_micros, frozen_micros, reference, record_id, created_at)
            SELECT t.transfer_id, t.kind, moved.account_id, t.account_version, t.hold_id, t.amount_micros,
                   t.charged_ms, t.available_micros, t.frozen_micros, t.reference, t.record_id, $10
            FROM moved, unnest($13::uuid[], $14::text[], $15::bigint[], $16::text[], $17::bigint[], $18::bigint[],
                               $19::bigint[], $20::bigint[], $21::text[], $22::uuid[])
                 AS t (transfer_id, kind, account_version, hold_id, amount_micros, charged_ms, available_micros,
                       frozen_micros, reference, record_id)
        ), charged AS (
            INSERT INTO month_charge (account_id, month, charged_micros)
            SELECT account_id, $11, $12 FROM moved WHERE $12::bigint <> 0
            ON CONFLICT (account_id, month)
            DO UPDATE SET charged_micros = month_charge.charged_micros + excluded.charged_micros
        )
        SELECT count(*) FROM moved
        """,
        account.account_id,
        former.version,
        former.state_changes,
        account.available_micros,
        account.frozen_micros,
        account.version,
        account.state,
        account.warned_hours,
        account.state_changes,
        account.booked_at,
        month_of(account.booked_at, account.time_zone),
        sum(booking.movement.charged_micros for booking in bookings),
        [booking.transfer_id for booking in bookings],
        [booking.movement.kind for booking in bookings],
        [booking.account_version for booking in bookings],
        [booking.hold_id for booking in bookings],
        [booking.movement.amount_micros for booking in bookings],
        [booking.charged_ms for booking in bookings],
        [booking.available_micros for booking in bookings],
        [booking.frozen_micros for booking in bookings],
        [booking.reference for booking in bookings],
        [booking.record_id for booking in bookings],
    )
    assert written == 1, "the account is locked"


async def charged_in(connection: Connection, account_id: str, month: str) -> int:
    """Settled and posted in a calendar month, less what was refunded in it."""
    return int(
        await connection.fetchval(
            "SELECT coalesce((SELECT charged_micros FROM month_charge WHERE account_id = $1 AND month = $2), 0)",
            account_id,
            month,
        )
    )


async def top_up_of_reference(connection: Connection, reference: str) -> TopUp | None:
    """What a payment system's reference was used for."""
    row = await connection.fetchrow(
        """
        SELECT account_id, reference AS external_reference, amount_micros, available_micros, created_at,
               account_version
        FROM transfer WHERE kind = 'TOP_UP' AND reference = $1
        """,
        reference,
    )
    return TopUp(**{**row, "account_id": str(row["account_id"])}) if row else None


async def transfers_of(
    connection: Connection, hold_ids: Sequence[str], *, after_version: int | None, limit: int
) -> list[Transfer]:
    """What was booked for these holds: hold by hold as given, each in order; of the first after one of its account's
    versions."""
    # Hold after hold, so that no more are looked at than the last one's beyond the limit.
    rows = await connection.fetch(
        f"""
        SELECT {_TRANSFER}
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (hold_id, place)
        CROSS JOIN LATERAL (
            SELECT * FROM transfer
            WHERE hold_id = wanted.hold_id AND account_version > CASE WHEN place = 1 THEN $2::bigint ELSE 0 END
            ORDER BY account_version LIMIT $3
        ) AS t
        LEFT JOIN record r USING (record_id)
        ORDER BY place, t.account_version LIMIT $3
        """,  # noqa: S608 - column names
        list(hold_ids),
        after_version or 0,
        limit,
    )
    return [_transfer(row) for row in rows]


async def transfers_in(
    connection: Connection, account_id: str, period: Period, *, after_version: int, limit: int
) -> list[Transfer]:
    """What was booked for an account in a period, after one of its versions, in order."""
    rows = await connection.fetch(
        f"""
        SELECT {_TRANSFER} FROM transfer t LEFT JOIN record r USING (record_id)
        WHERE t.account_id = $1 AND t.created_at >= $2 AND t.created_at < $3 AND t.account_version > $4
        ORDER BY t.account_version LIMIT $5
        """,  # noqa: S608 - column names
        account_id,
        period.start,
        period.end,
        after_version,
        limit,
    )
    return [_transfer(row) for row in rows]


async def balance_before(
    connection: Connection, account_id: str, period: Period, *, version: int | None
) -> tuple[int, int]:
    """Available and frozen after an account's version; of None, before the first transfer of the period."""
    row = await connection.fetchrow(
        """
        SELECT available_micros, frozen_micros FROM transfer
        WHERE account_id = $1 AND (account_version = $3 OR $3::bigint IS NULL AND created_at < $2)
        ORDER BY account_version DESC LIMIT 1
        """,
        account_id,
        period.start,
        version,
    )
    return (row["available_micros"], row["frozen_micros"]) if row else (0, 0)


async def borne_before(connection: Connection, hold_ids: Sequence[str], account_version: int) -> dict[str, int]:
    """What was settled, posted and lost of each hold before a version of its account, in micros; left out: nothing."""
    rows = await connection.fetch(
        """
        SELECT hold_id, sum(amount_micros)::bigint AS borne_micros FROM transfer
        WHERE hold_id = ANY($1) AND account_version < $2 AND kind IN ('SETTLEMENT', 'POSTING', 'LOSS') GROUP BY hold_id
        """,
        list(hold_ids),
        account_version,
    )
    return {row["hold_id"]: row["borne_micros"] for row in rows}


async def refunded(connection: Connection, hold_id: str) -> int:
    """Given back of what a start paid."""
    return int(
        await connection.fetchval(
            "SELECT coalesce(sum(amount_micros), 0) FROM transfer WHERE hold_id = $1 AND kind = 'REFUND'", hold_id
        )
    )


def _transfer(row: asyncpg.Record) -> Transfer:
    return Transfer(**{**row, "transfer_id": str(row["transfer_id"]), "kind": TransferKind(row["kind"])})
