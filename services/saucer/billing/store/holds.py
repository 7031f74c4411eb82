"""Holds: asked for by one statement, moved by another."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from saucer.billing.domain import ChargeStatus, Hold, HoldRequest, HoldState, Refusal, Spec, WorkKind
from saucer.lib.postgres import Connection

# The version of the account is, of a granted hold, in its transfer.
_HOLD = (
    "hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency, "
    "price_per_hour_micros, amount_micros, missing_micros, state, refusal, used, charge_status, stop_ordered, "
    "charged_ms, settled_micros, posted_micros, released_micros, lost_micros, created_at, resolved_at, revision, "
    "group_id, granted_at, "
    "coalesce(nullif(account_version, 0), (SELECT t.account_version FROM transfer t "
    "WHERE t.hold_id = hold.hold_id AND t.kind = 'HOLD'), 0) AS account_version"
)


async def get_hold(connection: Connection, hold_id: str, *, lock: bool = False) -> Hold | None:
    """A hold; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_HOLD} FROM hold WHERE hold_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        hold_id,
    )
    return _hold(row) if row else None


async def account_of(connection: Connection, hold_id: str) -> str | None:
    """Whose a hold is; that never changes."""
    account_id = await connection.fetchval("SELECT account_id FROM hold WHERE hold_id = $1", hold_id)
    return str(account_id) if account_id else None


async def get_holds(connection: Connection, hold_ids: Sequence[str]) -> list[Hold]:
    """Those of these ids that exist, in any order."""
    rows = await connection.fetch(f"SELECT {_HOLD} FROM hold WHERE hold_id = ANY($1)", list(hold_ids))  # noqa: S608 - column names
    return [_hold(row) for row in rows]


async def open_holds(connection: Connection, account_id: str) -> list[Hold]:
    """Those of an account that are granted or wait, in any order."""
    rows = await connection.fetch(
        f"SELECT {_HOLD} FROM hold WHERE account_id = $1 AND state IN ('GRANTED', 'WAITING')",  # noqa: S608 - column names
        account_id,
    )
    return [_hold(row) for row in rows]


# What locks several holds takes the oldest first, always, so that no two transactions wait for each other.


async def lock_holds(connection: Connection, hold_ids: Sequence[str]) -> list[Hold]:
    """Those of these ids that exist, locked."""
    return await _lock(connection, "hold_id = ANY($1)", list(hold_ids))


async def lock_open(connection: Connection, account_id: str) -> list[Hold]:
    """Those of an account that are granted or wait, locked."""
    return await _lock(connection, "account_id = $1 AND state IN ('GRANTED', 'WAITING')", account_id)


async def lock_open_of_group(connection: Connection, group_id: str) -> list[Hold]:
    """Those of a group that are granted or wait, locked."""
    return await _lock(connection, "group_id = $1 AND state IN ('GRANTED', 'WAITING')", group_id)


async def lock_waiting(connection: Connection, group_id: str, limit: int) -> list[Hold]:
    """The first of those that wait for a group's capacity, locked."""
    return await _lock(connection, "group_id = $1 AND state = 'WAITING'", group_id, limit=limit)


async def lock_starts(connection: Connection, work_id: str, start_number: int) -> list[Hold]:
    """Of a work, those of this start and the ones before it that are still open, locked."""
    condition = "work_id = $1 AND (start_number = $2 OR start_number < $2 AND state IN ('GRANTED', 'WAITING'))"
    return await _lock(connection, condition, work_id, start_number)


async def _lock(connection: Connection, condition: str, *values: object, limit: int | None = None) -> list[Hold]:
    rows = await connection.fetch(
        f"SELECT {_HOLD} FROM hold WHERE {condition} ORDER BY created_at, hold_id "  # noqa: S608 - written above
        f"LIMIT ${len(values) + 1} FOR UPDATE",
        *values,
        limit,
    )
    return [_hold(row) for row in rows]


async def list_holds(
    connection: Connection,
    account_id: str,
    *,
    work_id: str | None,
    after: tuple[datetime, str] | None,
    inclusive: bool = False,
    limit: int,
) -> list[Hold]:
    """Newest first; after a moment and hold id, or from that hold on."""
    rows = await connection.fetch(
        f"""
        SELECT {_HOLD} FROM hold
        WHERE account_id = $1 AND ($2::uuid IS NULL OR work_id = $2)
          AND ($3::timestamptz IS NULL OR (created_at, hold_id) {"<=" if inclusive else "<"} ($3, $4::text))
        ORDER BY created_at DESC, hold_id DESC LIMIT $5
        """,  # noqa: S608 - column names
        account_id,
        work_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_hold(row) for row in rows]


# See schema/008_grant_holds.sql.
HOLD_STATEMENT = (
    "SELECT new_id, refused_for, missing, of_version "
    "FROM grant_holds($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
)


@dataclass(frozen=True)
class Asked:
    """A hold that is asked for, with what is decided before its account is looked at."""

    request: HoldRequest
    # At its price of now.
    spec: Spec
    amount_micros: int
    transfer_id: str
    over_budget: bool = False


async def insert_holds(connection: Connection, account_id: str, asked: Sequence[Asked], now: datetime) -> list[Hold]:
    """Freezes the amounts of one account's holds in their order, or writes their refusals: one statement.

    Args:
        asked: each hold id once, in ascending order of the ids.

    Returns:
        Those that were new, in any order; none for an account that is not there.
    """
    rows = await connection.fetch(
        HOLD_STATEMENT,
        account_id,
        now,
        [one.request.hold_id for one in asked],
        [one.request.work_kind for one in asked],
        [one.request.work_id for one in asked],
        [one.request.start_number for one in asked],
        [one.request.region_id for one in asked],
        [one.request.spec_id for one in asked],
        [one.request.count for one in asked],
        [one.spec.currency for one in asked],
        [one.spec.price_per_hour_micros for one in asked],
        [one.amount_micros for one in asked],
        [one.transfer_id for one in asked],
        [one.over_budget for one in asked],
    )
    by_id = {one.request.hold_id: one for one in asked}
    return [_answered(by_id[row["new_id"]], row, now) for row in rows]


async def insert_hold_of_group(
    connection: Connection, request: HoldRequest, currency: str, refusal: Refusal | None, now: datetime
) -> Hold:
    """WAITING for capacity, or refused. Raises asyncpg.UniqueViolationError if the id is there.

    The caller has locked the group. It comes after those that wait, though this transaction may have read the clock
    earlier: their order is that of `created_at`.
    """
    row = await connection.fetchrow(
        f"""
        INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                          group_id, price_per_hour_micros, amount_micros, state, refusal, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, 0, $11, $12,
                greatest($13, (SELECT max(created_at) + interval '1 microsecond' FROM hold
                               WHERE group_id = $10 AND state = 'WAITING')))
        RETURNING {_HOLD}
        """,  # noqa: S608 - column names
        *_asked_columns(request, currency),
        request.group_id,
        HoldState.REFUSED if refusal else HoldState.WAITING,
        refusal,
        now,
    )
    assert row is not None
    return _hold(row)


async def bury_hold(connection: Connection, request: HoldRequest, currency: str, now: datetime) -> bool:
    """Leaves a tombstone: this id can never be granted. False if the hold exists, which changes nothing.

    What was asked for stands in it, so that the same start is told so; a group only if it could have given capacity.
    """
    buried = await connection.fetchval(
        """
        INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                          group_id, price_per_hour_micros, amount_micros, state, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,
                (SELECT group_id FROM resource_group
                 WHERE group_id = $10 AND account_id = $2 AND region_id = $6 AND spec_id = $7),
                0, 0, 'BURIED', $11)
        ON CONFLICT DO NOTHING RETURNING true
        """,
        *_asked_columns(request, currency),
        request.group_id,
        now,
    )
    return bool(buried)


def _asked_columns(request: HoldRequest, currency: str) -> tuple[object, ...]:
    return (
        request.hold_id,
        request.account_id,
        request.work_kind,
        request.work_id,
        request.start_number,
        request.region_id,
        request.spec_id,
        request.count,
        currency,
    )


async def update_holds(connection: Connection, holds: Sequence[tuple[int, Hold]]) -> None:
    """Writes what meters, grants and closings have moved, by one statement.

    Args:
        holds: each with the revision that it was read at; the caller has locked them.
    """
    written = await connection.fetch(
        """
        UPDATE hold SET state = h.state, charge_status = h.charge_status, stop_ordered = h.stop_ordered,
                        charged_ms = h.charged_ms, settled_micros = h.settled_micros, posted_micros = h.posted_micros,
                        released_micros = h.released_micros, lost_micros = h.lost_micros, used = h.used,
                        resolved_at = h.resolved_at, granted_at = h.granted_at, revision = h.revision
        FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::boolean[], $7::bigint[],
                    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::boolean[], $13::timestamptz[],
                    $14::timestamptz[])
             AS h (hold_id, former, revision, state, charge_status, stop_ordered, charged_ms, settled_micros,
                   posted_micros, released_micros, lost_micros, used, resolved_at, granted_at)
        WHERE hold.hold_id = h.hold_id AND hold.revision = h.former RETURNING hold.hold_id
        """,
        [hold.hold_id for _, hold in holds],
        [former for former, _ in holds],
        [hold.revision for _, hold in holds],
        [hold.state for _, hold in holds],
        [hold.charge_status for _, hold in holds],
        [hold.stop_ordered for _, hold in holds],
        [hold.charged_ms for _, hold in holds],
        [hold.settled_micros for _, hold in holds],
        [hold.posted_micros for _, hold in holds],
        [hold.released_micros for _, hold in holds],
        [hold.lost_micros for _, hold in holds],
        [hold.used for _, hold in holds],
        [hold.resolved_at for _, hold in holds],
        [hold.granted_at for _, hold in holds],
    )
    assert len(written) == len(holds), "the rows are locked"


async def unused_holds(connection: Connection, before: datetime, limit: int) -> list[str]:
    """Ids of open holds that nothing has used or been counted for, granted before a time; oldest first."""
    rows = await connection.fetch(
        """
        SELECT hold_id FROM hold
        WHERE state = 'GRANTED' AND NOT used AND charged_ms = 0 AND granted_at < $1 ORDER BY granted_at LIMIT $2
        """,
        before,
        limit,
    )
    return [row["hold_id"] for row in rows]


def _answered(asked: Asked, row: asyncpg.Record, now: datetime) -> Hold:
    """The hold as the statement has just written it."""
    request, refusal = asked.request, Refusal(row["refused_for"]) if row["refused_for"] else None
    return Hold(
        hold_id=request.hold_id,
        account_id=request.account_id,
        work_kind=request.work_kind,
        work_id=request.work_id,
        start_number=request.start_number,
        region_id=request.region_id,
        spec_id=request.spec_id,
        count=request.count,
        currency=asked.spec.currency,
        price_per_hour_micros=asked.spec.price_per_hour_micros,
        amount_micros=asked.amount_micros,
        missing_micros=row["missing"] or 0,
        state=HoldState.REFUSED if refusal else HoldState.GRANTED,
        refusal=refusal,
        used=False,
        charge_status=ChargeStatus.NOT_BILLING,
        stop_ordered=False,
        charged_ms=0,
        settled_micros=0,
        posted_micros=0,
        released_micros=0,
        lost_micros=0,
        created_at=now,
        resolved_at=None,
        revision=1,
        group_id=None,
        granted_at=None if refusal else now,
        account_version=row["of_version"],
    )


def _hold(row: asyncpg.Record) -> Hold:
    return Hold(
        **{
            **row,
            "account_id": str(row["account_id"]),
            "work_id": str(row["work_id"]),
            "work_kind": WorkKind(row["work_kind"]),
            "state": HoldState(row["state"]),
            "refusal": Refusal(row["refusal"]) if row["refusal"] else None,
            "charge_status": ChargeStatus(row["charge_status"]),
            "group_id": str(row["group_id"]) if row["group_id"] else None,
        }
    )
