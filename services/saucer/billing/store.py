"""The SQL of billing. Money moves in one statement each: holds, a settlement, the parts of a resolution."""

import json
from collections.abc import Sequence
from datetime import datetime

import asyncpg

from saucer.billing.domain import (
    Account,
    AccountState,
    Audit,
    ChargeStatus,
    Finding,
    Hold,
    HoldRequest,
    HoldState,
    Period,
    Record,
    Refusal,
    Spec,
    TopUp,
    Transfer,
    WorkKind,
)
from saucer.billing.ledger import MOVES, Book, Movement, TransferKind
from saucer.lib.postgres import Connection

_ACCOUNT = (
    "account_id, display_name, currency, time_zone, state, available_micros, frozen_micros, version, state_changes, "
    "warned_hours, created_at"
)
_HOLD = (
    "hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency, "
    "price_per_hour_micros, amount_micros, missing_micros, state, refusal, used, charge_status, stop_ordered, "
    "charged_ms, settled_micros, posted_micros, released_micros, lost_micros, created_at, resolved_at, revision"
)
_TRANSFER = (
    "t.transfer_id, t.kind, t.account_version, t.hold_id, t.amount_micros, t.charged_ms, t.available_micros, "
    "t.frozen_micros, t.reference, t.created_at, r.reason, r.author"
)
_RECORD = "record_id, request_id, action, subject, account_id, author, reason, detail, created_at"
# Rows that the audit names of each broken invariant.
MAX_FINDINGS = 100


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
    row = await connection.fetchrow(f"SELECT {_ACCOUNT} FROM account WHERE request_id = $1", request_id)  # noqa: S608
    assert row is not None
    return _account(row)


async def get_account(connection: Connection, account_id: str, *, lock: bool = False) -> Account | None:
    """An account; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_ACCOUNT} FROM account WHERE account_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608
        account_id,
    )
    return _account(row) if row else None


async def rate_micros(connection: Connection, account_id: str) -> int:
    """What all that is being charged to an account costs in an hour."""
    return int(
        await connection.fetchval(
            """
            SELECT coalesce(sum(price_per_hour_micros * count), 0) FROM hold
            WHERE account_id = $1 AND state = 'GRANTED' AND charge_status = 'BILLING'
            """,
            account_id,
        )
    )


async def set_warned(connection: Connection, account_id: str, hours: int | None) -> Account:
    """Remembers what the account was warned of; None: of nothing any more."""
    row = await connection.fetchrow(
        f"""
        UPDATE account SET warned_hours = $2, state_changes = state_changes + 1 WHERE account_id = $1
        RETURNING {_ACCOUNT}
        """,  # noqa: S608
        account_id,
        hours,
    )
    assert row is not None, "the row is locked"
    return _account(row)


async def list_accounts(connection: Connection, *, after: str | None, limit: int) -> list[Account]:
    """By id."""
    rows = await connection.fetch(
        f"SELECT {_ACCOUNT} FROM account WHERE $1::uuid IS NULL OR account_id > $1 "  # noqa: S608
        "ORDER BY account_id LIMIT $2",
        after,
        limit,
    )
    return [_account(row) for row in rows]


def _account(row: asyncpg.Record) -> Account:
    return Account(**{**row, "account_id": str(row["account_id"]), "state": AccountState(row["state"])})


async def set_account_state(connection: Connection, account_id: str, state: AccountState) -> Account:
    """Suspends, or lifts it."""
    row = await connection.fetchrow(
        f"""
        UPDATE account SET state = $2, state_changes = state_changes + 1 WHERE account_id = $1 RETURNING {_ACCOUNT}
        """,  # noqa: S608
        account_id,
        state,
    )
    assert row is not None, "the row is locked"
    return _account(row)


async def insert_region(connection: Connection, region_id: str, display_name: str) -> None:
    """Changes nothing if it exists."""
    await connection.execute(
        "INSERT INTO region (region_id, display_name) VALUES ($1, $2) ON CONFLICT DO NOTHING", region_id, display_name
    )


async def region_exists(connection: Connection, region_id: str) -> bool:
    """Whether it does."""
    return bool(await connection.fetchval("SELECT true FROM region WHERE region_id = $1", region_id))


async def insert_spec(connection: Connection, spec: Spec) -> bool:
    """False if it exists."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO spec (region_id, spec_id, display_name, gpus, cpu_cores, max_count, currency)
            VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING true
            """,
            spec.region_id,
            spec.spec_id,
            spec.display_name,
            spec.gpus,
            spec.cpu_cores,
            spec.max_count,
            spec.currency,
        )
    )


async def insert_price(
    connection: Connection, region_id: str, spec_id: str, starts_at: datetime, price_per_hour_micros: int
) -> bool:
    """False if there is a price from that very time already."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO price (region_id, spec_id, starts_at, price_per_hour_micros) VALUES ($1, $2, $3, $4)
            ON CONFLICT DO NOTHING RETURNING true
            """,
            region_id,
            spec_id,
            starts_at,
            price_per_hour_micros,
        )
    )


async def list_specs(
    connection: Connection, now: datetime, *, region_id: str | None = None, spec_id: str | None = None
) -> list[Spec]:
    """Those with a price at `now`."""
    rows = await connection.fetch(
        """
        SELECT s.region_id, s.spec_id, s.display_name, s.gpus, s.cpu_cores, s.max_count, s.currency,
               p.price_per_hour_micros
        FROM spec s
        CROSS JOIN LATERAL (
            SELECT price_per_hour_micros FROM price
            WHERE price.region_id = s.region_id AND price.spec_id = s.spec_id AND starts_at <= $1
            ORDER BY starts_at DESC LIMIT 1
        ) p
        WHERE ($2::text IS NULL OR s.region_id = $2) AND ($3::text IS NULL OR s.spec_id = $3)
        ORDER BY s.region_id, s.spec_id
        """,
        now,
        region_id,
        spec_id,
    )
    return [Spec(**row) for row in rows]


async def get_hold(connection: Connection, hold_id: str, *, lock: bool = False) -> Hold | None:
    """A hold; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_HOLD} FROM hold WHERE hold_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608
        hold_id,
    )
    return _hold(row) if row else None


async def open_holds(connection: Connection, account_id: str) -> list[Hold]:
    """The granted ones of an account, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_HOLD} FROM hold WHERE account_id = $1 AND state = 'GRANTED' "  # noqa: S608
        "ORDER BY created_at, hold_id FOR UPDATE",
        account_id,
    )
    return [_hold(row) for row in rows]


async def list_holds(
    connection: Connection,
    account_id: str,
    *,
    work_id: str | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Hold]:
    """Newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_HOLD} FROM hold
        WHERE account_id = $1 AND ($2::uuid IS NULL OR work_id = $2)
          AND ($3::timestamptz IS NULL OR (created_at, hold_id) < ($3, $4::text))
        ORDER BY created_at DESC, hold_id DESC LIMIT $5
        """,  # noqa: S608
        account_id,
        work_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_hold(row) for row in rows]


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
        }
    )


# A column each of what is asked, with its type, in the order of the parameters from $3 on.
_ASKED = {
    "hold_id": "text",
    "work_kind": "text",
    "work_id": "uuid",
    "start_number": "integer",
    "region_id": "text",
    "spec_id": "text",
    "count": "integer",
    "currency": "text",
    "price_per_hour_micros": "bigint",
    "amount_micros": "bigint",
    "transfer_id": "uuid",
}
# Holds of one account, decided one after the other; $1 is the account, $2 now. `asked` leaves out ids that exist;
# `decided` walks through the rest with what is left of the balance, so that a refused one takes nothing from those
# behind it, and carries their columns along, so that nothing need be joined again. The account is locked first: what is
# read is what the last transfer left.
HOLD_STATEMENT = f"""
WITH RECURSIVE locked AS (
    SELECT currency, state, available_micros, frozen_micros, version FROM account WHERE account_id = $1 FOR UPDATE
), asked AS (
    SELECT a.*, row_number() OVER (ORDER BY place) AS position
    FROM unnest({", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(_ASKED.values(), 3))})
         WITH ORDINALITY AS a ({", ".join(_ASKED)}, place)
    -- As a value, so that the index answers; an anti-join may read the whole table.
    WHERE (SELECT hold.hold_id FROM hold WHERE hold.hold_id = a.hold_id) IS NULL
), decided AS (
    SELECT 0::bigint AS position, version, available_micros AS available, frozen_micros AS frozen,
           NULL::text AS refusal, state AS account_state, currency AS account_currency,
           {", ".join(f"NULL::{type_} AS {name}" for name, type_ in _ASKED.items())}
    FROM locked
    UNION ALL
    SELECT a.position, d.version + r.granted, d.available - r.granted * a.amount_micros,
           d.frozen + r.granted * a.amount_micros, r.refusal, d.account_state, d.account_currency,
           {", ".join(f"a.{name}" for name in _ASKED)}
    FROM decided d
    JOIN asked a ON a.position = d.position + 1
    CROSS JOIN LATERAL (
        SELECT refusal, (refusal IS NULL)::integer AS granted
        FROM (SELECT CASE WHEN d.account_state <> 'ACTIVE' THEN 'ACCOUNT_SUSPENDED'
                          WHEN d.account_currency <> a.currency THEN 'CURRENCY_MISMATCH'
                          WHEN d.available < a.amount_micros THEN 'INSUFFICIENT_BALANCE' END AS refusal) x
    ) r
), moved AS (
    UPDATE account SET available_micros = d.available, frozen_micros = d.frozen, version = d.version
    FROM (SELECT version, available, frozen FROM decided ORDER BY position DESC LIMIT 1) d
    WHERE account_id = $1 AND account.version <> d.version
), held AS (
    INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                      price_per_hour_micros, amount_micros, missing_micros, state, refusal, created_at)
    SELECT hold_id, $1, work_kind, work_id, start_number, region_id, spec_id, count, currency,
           price_per_hour_micros, amount_micros,
           CASE refusal WHEN 'INSUFFICIENT_BALANCE' THEN amount_micros - available ELSE 0 END,
           CASE WHEN refusal IS NULL THEN 'GRANTED' ELSE 'REFUSED' END, refusal, $2
    FROM decided WHERE position > 0
    RETURNING {_HOLD}
), transferred AS (
    INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, available_micros,
                          frozen_micros, created_at)
    SELECT transfer_id, 'HOLD', $1, version, hold_id, amount_micros, available, frozen, $2
    FROM decided WHERE position > 0 AND refusal IS NULL
), booked AS (
    INSERT INTO entry (transfer_id, book, account_id, amount_micros)
    SELECT transfer_id, side.book, $1, side.sign * amount_micros
    FROM decided, (VALUES ('AVAILABLE', -1), ('FROZEN', 1)) AS side (book, sign)
    WHERE position > 0 AND refusal IS NULL
)
SELECT {_HOLD} FROM held
"""  # noqa: S608 - column names, no values


async def insert_holds(
    connection: Connection, account_id: str, asked: Sequence[tuple[HoldRequest, Spec, int, str]], now: datetime
) -> list[Hold]:
    """Freezes the amounts of one account's holds in their order, or writes their refusals: one statement.

    Args:
        asked: request, spec at its price of now, amount in micros, id of the transfer; each hold id once.

    Returns:
        Those that were new, in any order; none for an account that is not there.

    Raises:
        asyncpg.UniqueViolationError: another transaction has made one of them meanwhile; nothing has changed.
    """
    requests = [request for request, _, _, _ in asked]
    specs = [spec for _, spec, _, _ in asked]
    rows = await connection.fetch(
        HOLD_STATEMENT,
        account_id,
        now,
        [request.hold_id for request in requests],
        [request.work_kind for request in requests],
        [request.work_id for request in requests],
        [request.start_number for request in requests],
        [request.region_id for request in requests],
        [request.spec_id for request in requests],
        [request.count for request in requests],
        [spec.currency for spec in specs],
        [spec.price_per_hour_micros for spec in specs],
        [amount_micros for _, _, amount_micros, _ in asked],
        [transfer_id for _, _, _, transfer_id in asked],
    )
    return [_hold(row) for row in rows]


async def get_holds(connection: Connection, hold_ids: Sequence[str]) -> list[Hold]:
    """Those of these ids that exist, in any order."""
    rows = await connection.fetch(f"SELECT {_HOLD} FROM hold WHERE hold_id = ANY($1)", list(hold_ids))  # noqa: S608
    return [_hold(row) for row in rows]


async def bury_hold(connection: Connection, request: HoldRequest, currency: str, now: datetime) -> None:
    """Leaves a tombstone: this id can never be granted. Changes nothing if the hold exists."""
    await connection.execute(
        """
        INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency,
                          price_per_hour_micros, amount_micros, state, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, 'BURIED', $10) ON CONFLICT DO NOTHING
        """,
        request.hold_id,
        request.account_id,
        request.work_kind,
        request.work_id,
        request.start_number,
        request.region_id,
        request.spec_id,
        request.count,
        currency,
        now,
    )


async def update_hold(connection: Connection, hold: Hold) -> Hold:
    """Writes what a meter and a resolution move, at the next revision."""
    row = await connection.fetchrow(
        f"""
        UPDATE hold SET state = $2, charge_status = $3, stop_ordered = $4, charged_ms = $5, settled_micros = $6,
                        posted_micros = $7, released_micros = $8, lost_micros = $9, resolved_at = $10, used = $11,
                        revision = revision + 1
        WHERE hold_id = $1 AND revision = $12 RETURNING {_HOLD}
        """,  # noqa: S608
        hold.hold_id,
        hold.state,
        hold.charge_status,
        hold.stop_ordered,
        hold.charged_ms,
        hold.settled_micros,
        hold.posted_micros,
        hold.released_micros,
        hold.lost_micros,
        hold.resolved_at,
        hold.used,
        hold.revision,
    )
    assert row is not None, "the row is locked"
    return _hold(row)


async def book(
    connection: Connection,
    account_id: str,
    movement: Movement,
    transfer_id: str,
    now: datetime,
    *,
    hold: Hold | None = None,
    reference: str | None = None,
    record_id: str | None = None,
) -> Account:
    """Moves money: account, transfer and both entries in one statement. The account after it.

    Raises asyncpg.CheckViolationError if a balance would go below zero; nothing has changed then.
    """
    source, target = MOVES[movement.kind]
    row = await connection.fetchrow(
        f"""
        WITH moved AS (
            UPDATE account SET available_micros = available_micros + $2, frozen_micros = frozen_micros + $3,
                               version = version + 1
            WHERE account_id = $1 RETURNING {_ACCOUNT}
        ), transferred AS (
            INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, charged_ms,
                                  available_micros, frozen_micros, reference, record_id, created_at)
            SELECT $4, $5, $1, version, $6, $7, $8, available_micros, frozen_micros, $9, $13, $10 FROM moved
            RETURNING transfer_id
        ), booked AS (
            INSERT INTO entry (transfer_id, book, account_id, amount_micros)
            SELECT transferred.transfer_id, side.book, $1, side.amount_micros
            FROM transferred, (VALUES ($11, -$7::bigint), ($12, $7::bigint)) AS side (book, amount_micros)
        )
        SELECT {_ACCOUNT} FROM moved
        """,  # noqa: S608
        account_id,
        movement.change_of(Book.AVAILABLE),
        movement.change_of(Book.FROZEN),
        transfer_id,
        movement.kind,
        hold.hold_id if hold else None,
        movement.amount_micros,
        hold.charged_ms if hold else 0,
        reference,
        now,
        source,
        target,
        record_id,
    )
    assert row is not None, "the caller has looked the account up"
    return _account(row)


async def top_up_of_reference(connection: Connection, reference: str) -> TopUp | None:
    """What a payment system's reference was used for."""
    row = await connection.fetchrow(
        """
        SELECT account_id, reference AS external_reference, amount_micros, available_micros, created_at
        FROM transfer WHERE kind = 'TOP_UP' AND reference = $1
        """,
        reference,
    )
    return TopUp(**{**row, "account_id": str(row["account_id"])}) if row else None


async def transfers_of(connection: Connection, hold_ids: Sequence[str]) -> dict[str, list[Transfer]]:
    """Everything booked for these holds, in order."""
    rows = await connection.fetch(
        f"""
        SELECT {_TRANSFER} FROM transfer t LEFT JOIN record r USING (record_id)
        WHERE t.hold_id = ANY($1) ORDER BY t.hold_id, t.account_version
        """,  # noqa: S608
        list(hold_ids),
    )
    found: dict[str, list[Transfer]] = {hold_id: [] for hold_id in hold_ids}
    for row in rows:
        found[row["hold_id"]].append(_transfer(row))
    return found


async def transfers_in(
    connection: Connection, account_id: str, period: Period, *, after_version: int, limit: int
) -> list[Transfer]:
    """What was booked for an account in a period, after one of its versions, in order."""
    rows = await connection.fetch(
        f"""
        SELECT {_TRANSFER} FROM transfer t LEFT JOIN record r USING (record_id)
        WHERE t.account_id = $1 AND t.created_at >= $2 AND t.created_at < $3 AND t.account_version > $4
        ORDER BY t.account_version LIMIT $5
        """,  # noqa: S608
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


async def charged_in(connection: Connection, account_id: str, period: Period) -> int:
    """Settled and posted in a period, less what was refunded in it."""
    return int(
        await connection.fetchval(
            """
            SELECT coalesce(sum(CASE kind WHEN 'REFUND' THEN -amount_micros ELSE amount_micros END), 0) FROM transfer
            WHERE account_id = $1 AND created_at >= $2 AND created_at < $3
              AND kind IN ('SETTLEMENT', 'POSTING', 'REFUND')
            """,
            account_id,
            period.start,
            period.end,
        )
    )


async def refunded(connection: Connection, hold_id: str) -> int:
    """Given back of what a start paid."""
    return int(
        await connection.fetchval(
            "SELECT coalesce(sum(amount_micros), 0) FROM transfer WHERE hold_id = $1 AND kind = 'REFUND'", hold_id
        )
    )


def _transfer(row: asyncpg.Record) -> Transfer:
    return Transfer(**{**row, "transfer_id": str(row["transfer_id"]), "kind": TransferKind(row["kind"])})


async def insert_record(connection: Connection, record: Record) -> bool:
    """False if the request id was used before."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO record (record_id, request_id, action, subject, account_id, author, reason, detail, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (request_id) DO NOTHING RETURNING true
            """,
            record.record_id,
            record.request_id,
            record.action,
            record.subject,
            record.account_id,
            record.author,
            record.reason,
            record.detail,
            record.created_at,
        )
    )


async def record_of_request(connection: Connection, request_id: str) -> Record:
    """What a request id did."""
    row = await connection.fetchrow(f"SELECT {_RECORD} FROM record WHERE request_id = $1", request_id)  # noqa: S608
    assert row is not None
    return _record(row)


async def list_records(
    connection: Connection, *, account_id: str | None, after: tuple[datetime, str] | None, limit: int
) -> list[Record]:
    """Newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_RECORD} FROM record
        WHERE ($1::uuid IS NULL OR account_id = $1)
          AND ($2::timestamptz IS NULL OR (created_at, record_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, record_id DESC LIMIT $4
        """,  # noqa: S608
        account_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_record(row) for row in rows]


def _record(row: asyncpg.Record) -> Record:
    return Record(
        **{
            **row,
            "record_id": str(row["record_id"]),
            "account_id": str(row["account_id"]) if row["account_id"] else None,
        }
    )


async def unused_holds(connection: Connection, before: datetime, limit: int) -> list[str]:
    """Ids of open holds that nothing has used or been counted for, made before a time; oldest first."""
    rows = await connection.fetch(
        """
        SELECT hold_id FROM hold
        WHERE state = 'GRANTED' AND NOT used AND charged_ms = 0 AND created_at < $1 ORDER BY created_at LIMIT $2
        """,
        before,
        limit,
    )
    return [row["hold_id"] for row in rows]


async def open_former_holds(connection: Connection, work_id: str, start_number: int) -> list[str]:
    """Ids of open holds of a work's earlier starts."""
    rows = await connection.fetch(
        "SELECT hold_id FROM hold WHERE work_id = $1 AND start_number < $2 AND state = 'GRANTED'", work_id, start_number
    )
    return [row["hold_id"] for row in rows]


async def audit(connection: Connection) -> Audit:
    """Reads every view whose name begins with audit_, each of which must be empty."""
    views = await connection.fetch(
        "SELECT viewname FROM pg_views WHERE schemaname = current_schema() AND viewname LIKE 'audit\\_%' ORDER BY 1"
    )
    findings = []
    for view in views:
        rows = await connection.fetch(
            f"SELECT to_jsonb(v)::text AS row FROM {view['viewname']} v LIMIT $1",  # noqa: S608 - from the catalogue
            MAX_FINDINGS,
        )
        findings += [Finding(view["viewname"].removeprefix("audit_"), row["row"]) for row in rows]
    sums = await connection.fetchrow(
        """
        SELECT coalesce((SELECT sum(amount_micros) FROM entry), 0)::bigint AS ledger_sum_micros,
               coalesce((SELECT sum(frozen_micros) FROM account), 0)::bigint AS frozen_micros,
               (SELECT count(*) FROM account) AS accounts, (SELECT count(*) FROM entry) AS entries
        """
    )
    assert sums is not None
    if sums["ledger_sum_micros"] != 0:
        findings.append(Finding("ledger_sums_to_zero", json.dumps(dict(sums))))
    return Audit(tuple(findings), **sums)
