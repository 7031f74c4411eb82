"""The SQL of imports."""

import json
from collections.abc import Sequence
from datetime import datetime

import asyncpg

from saucer.dataset.domain import (
    Import,
    ImportState,
    Json,
    SourceFormat,
)
from saucer.dataset.store.rows import with_text_ids
from saucer.lib.postgres import Connection

_IMPORT = (
    "import_id, account_id, display_name, upload_id, store_path, split_seed, source_format, draft_id, mapped_root, "
    "split_again, state, images_done, images_total, error_reason, error_message, report, dataset_version_id, "
    "created_at, ended_at, attempts, crashes, retry_at, claim_token, claim_expires_at, revision"
)


async def insert_import(connection: Connection, work: Import) -> None:
    """A new one, queued."""
    await connection.execute(
        """
        INSERT INTO import (import_id, account_id, display_name, upload_id, store_path, split_seed, source_format,
                            draft_id, split_again, mapped_root, state, created_at, retry_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        """,
        work.import_id,
        work.account_id,
        work.display_name,
        work.upload_id,
        work.store_path,
        work.split_seed,
        work.source_format,
        work.draft_id,
        work.split_again,
        work.mapped_root,
        work.state,
        work.created_at,
        work.retry_at,
    )


async def get_import(connection: Connection, import_id: str, *, lock: bool = False) -> Import | None:
    """An import; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_IMPORT} FROM import WHERE import_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        import_id,
    )
    return _import(row) if row else None


async def count_open_imports(connection: Connection, account_id: str) -> int:
    """Queued or importing, of an account."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM import WHERE account_id = $1 AND state IN ('QUEUED', 'IMPORTING')", account_id
        )
    )


async def next_import(connection: Connection, now: datetime) -> Import | None:
    """One that is queued, or whose claim has expired; locked, and none that another process has locked.

    The account with the fewest imports in progress first, then the oldest. None of an account whose leftovers are being
    removed, and no queued one before that, if they can be removed at once: it may need the room.
    """
    row = await connection.fetchrow(
        f"""
        SELECT {_IMPORT} FROM import i
        WHERE ((state = 'QUEUED' AND retry_at <= $1) OR (state = 'IMPORTING' AND claim_expires_at <= $1))
        AND NOT EXISTS (
            SELECT FROM account_store a
            WHERE a.account_id = i.account_id AND (removal_token IS NOT NULL OR (leftovers AND NOT EXISTS (
                SELECT FROM import r WHERE r.account_id = a.account_id AND r.state = 'IMPORTING')))
        )
        ORDER BY (
            SELECT count(*) FROM import r
            WHERE r.account_id = i.account_id AND r.state = 'IMPORTING' AND r.claim_expires_at > $1
        ), created_at, import_id
        LIMIT 1 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608 - column names
        now,
    )
    return _import(row) if row else None


async def overdue_import(connection: Connection, created_before: datetime) -> Import | None:
    """The oldest that is queued and was created before; locked, and none that another process has locked."""
    row = await connection.fetchrow(
        f"""
        SELECT {_IMPORT} FROM import WHERE state = 'QUEUED' AND created_at < $1
        ORDER BY created_at, import_id LIMIT 1 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608 - column names
        created_before,
    )
    return _import(row) if row else None


async def update_import(connection: Connection, work: Import) -> Import:
    """Writes a move, at the next revision; the caller has locked the row. What a claim has reserved ends with it."""
    row = await connection.fetchrow(
        f"""
        UPDATE import SET state = $2, images_done = $3, images_total = $4, error_reason = $5, error_message = $6,
                          report = $7, dataset_version_id = $8, ended_at = $9, attempts = $10, crashes = $11,
                          retry_at = $12, claim_token = $13, claim_expires_at = $14, revision = revision + 1,
                          reserved_bytes = CASE WHEN claim_token = $13 THEN reserved_bytes ELSE 0 END
        WHERE import_id = $1 AND revision = $15 RETURNING {_IMPORT}
        """,  # noqa: S608 - column names
        work.import_id,
        work.state,
        work.images_done,
        work.images_total,
        work.error_reason,
        work.error_message,
        json.dumps(work.report) if work.report is not None else None,
        work.dataset_version_id,
        work.ended_at,
        work.attempts,
        work.crashes,
        work.retry_at,
        work.claim_token,
        work.claim_expires_at,
        work.revision,
    )
    assert row is not None, "the row is locked"
    return _import(row)


async def prolong_claim(
    connection: Connection, token: str, expires_at: datetime, *, images_done: int, images_total: int
) -> bool:
    """False if the claim is another's by now. The revision rises only if the progress has."""
    return bool(
        await connection.fetchval(
            """
            UPDATE import SET claim_expires_at = $2, images_done = $3, images_total = $4,
                              revision = revision + CASE WHEN (images_done, images_total) = ($3, $4) THEN 0 ELSE 1 END
            WHERE claim_token = $1 RETURNING true
            """,
            token,
            expires_at,
            images_done,
            images_total,
        )
    )


async def live_claims(connection: Connection, tokens: Sequence[str]) -> set[str]:
    """Which of the tokens hold an import."""
    rows = await connection.fetch("SELECT claim_token FROM import WHERE claim_token = ANY($1::uuid[])", list(tokens))
    return {str(row["claim_token"]) for row in rows}


def _import(row: asyncpg.Record) -> Import:
    plain = with_text_ids(row)
    report: Json | None = json.loads(row["report"]) if row["report"] is not None else None
    return Import(
        **plain
        | {"state": ImportState(row["state"]), "source_format": SourceFormat(row["source_format"]), "report": report}
    )
