"""What administrators did, and the audit."""

import json
from datetime import datetime

import asyncpg

from saucer.billing.domain import Audit, Finding, Record
from saucer.lib.postgres import Connection

_RECORD = "record_id, request_id, action, subject, account_id, author, reason, detail, created_at"
# Rows that the audit names of each broken invariant; it says how many there are.
MAX_FINDINGS = 100
# Each statement of the audit, which reads the whole ledger, and the call; other statements have COMMAND_TIMEOUT_S.
AUDIT_TIMEOUT_S = 600.0


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


async def record_of_request(connection: Connection, request_id: str) -> Record | None:
    """What a request id did; None: nothing yet."""
    row = await connection.fetchrow(f"SELECT {_RECORD} FROM record WHERE request_id = $1", request_id)  # noqa: S608 - column names
    return _record(row) if row else None


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
        """,  # noqa: S608 - column names
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


async def audit(connection: Connection) -> Audit:
    """Reads every view whose name begins with audit_, each of which must be empty."""
    views = await connection.fetch(
        "SELECT viewname FROM pg_views WHERE schemaname = current_schema() AND viewname LIKE 'audit\\_%' ORDER BY 1"
    )
    findings, broken = [], {}
    for view in views:
        invariant = view["viewname"].removeprefix("audit_")
        rows = await connection.fetch(
            f"SELECT to_jsonb(v)::text AS row, count(*) OVER () AS rows FROM {view['viewname']} v LIMIT $1",  # noqa: S608 - from the catalogue
            MAX_FINDINGS,
            timeout=AUDIT_TIMEOUT_S,
        )
        findings += [Finding(invariant, row["row"]) for row in rows]
        if rows:
            broken[invariant] = rows[0]["rows"]
    sums = await connection.fetchrow(
        """
        SELECT coalesce((SELECT sum(amount_micros) FROM entry), 0)::bigint AS ledger_sum_micros,
               coalesce((SELECT sum(frozen_micros) FROM account), 0)::bigint AS frozen_micros,
               (SELECT count(*) FROM account) AS accounts, (SELECT count(*) FROM entry) AS entries
        """,
        timeout=AUDIT_TIMEOUT_S,
    )
    assert sums is not None
    if sums["ledger_sum_micros"] != 0:
        findings.append(Finding("ledger_sums_to_zero", json.dumps(dict(sums))))
        broken["ledger_sums_to_zero"] = 1
    return Audit(tuple(findings), broken, **sums)
