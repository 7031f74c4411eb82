"""The SQL of billing. Money moves in one statement each: a hold, a settlement, a resolution."""

import json
from collections.abc import Sequence
from datetime import datetime

import asyncpg

from saucer.billing.domain import (
    Account,
    Audit,
    ChargeStatus,
    Finding,
    Hold,
    HoldRequest,
    HoldState,
    Spec,
    TopUp,
    Transfer,
    WorkKind,
)
from saucer.billing.ledger import MOVES, Book, Movement, TransferKind
from saucer.lib.postgres import Connection

_ACCOUNT = "account_id, display_name, currency, time_zone, state, available_micros, frozen_micros, version, created_at"
_HOLD = (
    "hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count, currency, "
    "price_per_hour_micros, amount_micros, missing_micros, state, charge_status, stop_ordered, charged_ms, "
    "settled_micros, posted_micros, released_micros, lost_micros, created_at, resolved_at, revision"
)
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
    return Account(**{**row, "account_id": str(row["account_id"])})


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
            "charge_status": ChargeStatus(row["charge_status"]),
        }
    )


async def insert_hold(
    connection: Connection, request: HoldRequest, spec: Spec, amount_micros: int, transfer_id: str, now: datetime
) -> Hold:
    """Freezes the amount, or writes the refusal: account, hold, transfer and entries in one statement.

    Raises asyncpg.UniqueViolationError if the id is taken; nothing has changed then.
    """
    row = await connection.fetchrow(
        f"""
        WITH taken AS (
            UPDATE account SET available_micros = available_micros - $10, frozen_micros = frozen_micros + $10,
                               version = version + 1
            WHERE account_id = $2 AND state = 'ACTIVE' AND available_micros >= $10
            RETURNING version
        ), held AS (
            INSERT INTO hold (hold_id, account_id, work_kind, work_id, start_number, region_id, spec_id, count,
                              currency, price_per_hour_micros, amount_micros, missing_micros, state, created_at)
            SELECT $1, account_id, $3, $4, $5, $6, $7, $8, $13, $9, $10,
                   CASE WHEN EXISTS (SELECT FROM taken) THEN 0 ELSE greatest($10 - available_micros, 0) END,
                   CASE WHEN EXISTS (SELECT FROM taken) THEN 'GRANTED' ELSE 'REFUSED' END, $12
            FROM account WHERE account_id = $2
            RETURNING {_HOLD}
        ), moved AS (
            INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros, created_at)
            SELECT $11, 'HOLD', $2, version, $1, $10, $12 FROM taken
            RETURNING transfer_id
        ), booked AS (
            INSERT INTO entry (transfer_id, book, account_id, amount_micros)
            SELECT moved.transfer_id, side.book, $2, side.amount_micros
            FROM moved, (VALUES ('AVAILABLE', -$10::bigint), ('FROZEN', $10::bigint)) AS side (book, amount_micros)
        )
        SELECT {_HOLD} FROM held
        """,  # noqa: S608 - column names, no values
        request.hold_id,
        request.account_id,
        request.work_kind,
        request.work_id,
        request.start_number,
        request.region_id,
        request.spec_id,
        request.count,
        spec.price_per_hour_micros,
        amount_micros,
        transfer_id,
        now,
        spec.currency,
    )
    assert row is not None, "the caller has looked the account up"
    return _hold(row)


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
                        posted_micros = $7, released_micros = $8, lost_micros = $9, resolved_at = $10,
                        revision = revision + 1
        WHERE hold_id = $1 AND revision = $11 RETURNING {_HOLD}
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
                                  reference, created_at)
            SELECT $4, $5, $1, version, $6, $7, $8, $9, $10 FROM moved
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
    )
    assert row is not None, "the caller has looked the account up"
    return _account(row)


async def top_up_of_reference(connection: Connection, reference: str) -> TopUp | None:
    """What a payment system's reference was used for."""
    row = await connection.fetchrow(
        """
        SELECT t.account_id, t.reference AS external_reference, t.amount_micros, a.available_micros, t.created_at
        FROM transfer t JOIN account a USING (account_id) WHERE t.kind = 'TOP_UP' AND t.reference = $1
        """,
        reference,
    )
    return TopUp(**{**row, "account_id": str(row["account_id"])}) if row else None


async def transfers_of(connection: Connection, hold_ids: Sequence[str]) -> dict[str, list[Transfer]]:
    """Everything booked for these holds, in order."""
    rows = await connection.fetch(
        """
        SELECT hold_id, transfer_id, kind, amount_micros, charged_ms, created_at FROM transfer
        WHERE hold_id = ANY($1) ORDER BY hold_id, account_version
        """,
        list(hold_ids),
    )
    found: dict[str, list[Transfer]] = {hold_id: [] for hold_id in hold_ids}
    for row in rows:
        transfer = Transfer(
            str(row["transfer_id"]),
            TransferKind(row["kind"]),
            row["amount_micros"],
            row["charged_ms"],
            row["created_at"],
        )
        found[row["hold_id"]].append(transfer)
    return found


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
