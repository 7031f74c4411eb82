"""The SQL of dataset."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg

from saucer.dataset.domain import (
    AccountStore,
    Chunk,
    DatasetVersion,
    Import,
    ImportState,
    Json,
    LabelKind,
    SourceFormat,
    Upload,
)
from saucer.lib.postgres import Connection

_STORE = "account_id, prefix, proven_at, revision"
_UPLOAD = "upload_id, account_id, size_bytes, committed_bytes, state, created_at, expires_at"
_IMPORT = (
    "import_id, account_id, display_name, upload_id, store_path, split_seed, source_format, draft_id, mapped_root, "
    "split_again, state, images_done, images_total, error_reason, error_message, report, dataset_version_id, "
    "created_at, ended_at, attempts, crashes, retry_at, claim_token, claim_expires_at, revision"
)
_VERSION = (
    "dataset_version_id, account_id, display_name, content_hash, manifest_key, manifest_sha256, image_prefix, "
    "label_kind, classes, statistics, created_at, revision"
)

# Account stores


async def insert_account_store(connection: Connection, account_id: str, prefix: str, now: datetime) -> None:
    """Not proven yet, without an image. Changes nothing if it exists."""
    await connection.execute(
        """
        INSERT INTO account_store (account_id, prefix, created_at, counted_at) VALUES ($1, $2, $3, $3)
        ON CONFLICT DO NOTHING
        """,
        account_id,
        prefix,
        now,
    )


async def get_account_store(connection: Connection, account_id: str, *, lock: bool = False) -> AccountStore | None:
    """An account's; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_STORE} FROM account_store WHERE account_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names, no values
        account_id,
    )
    return AccountStore(**_plain(row)) if row else None


async def unproven_accounts(connection: Connection, *, limit: int) -> list[str]:
    """Oldest first."""
    rows = await connection.fetch(
        "SELECT account_id FROM account_store WHERE proven_at IS NULL ORDER BY created_at LIMIT $1", limit
    )
    return [str(row["account_id"]) for row in rows]


async def prove_account_store(connection: Connection, account_id: str, now: datetime) -> AccountStore | None:
    """Marks it. None if it was proven before."""
    row = await connection.fetchrow(
        f"""
        UPDATE account_store SET proven_at = $2, revision = revision + 1
        WHERE account_id = $1 AND proven_at IS NULL RETURNING {_STORE}
        """,  # noqa: S608 - column names
        account_id,
        now,
    )
    return AccountStore(**_plain(row)) if row else None


# Uploads


async def set_storage_limit(connection: Connection, account_id: str, limit_bytes: int | None, revision: int) -> None:
    """Unless what is there is as new."""
    await connection.execute(
        """
        UPDATE account_store SET storage_limit = $2, quota_revision = $3
        WHERE account_id = $1 AND quota_revision < $3
        """,
        account_id,
        limit_bytes,
        revision,
    )


async def add_stored(connection: Connection, account_id: str, size_bytes: int) -> None:
    """Images that were stored for the first time."""
    await connection.execute(
        "UPDATE account_store SET stored_bytes = stored_bytes + $2 WHERE account_id = $1", account_id, size_bytes
    )


_IMPORTING = "SELECT FROM import i WHERE i.account_id = a.account_id AND i.state = 'IMPORTING'"


async def uncounted_accounts(connection: Connection, *, limit: int) -> list[str]:
    """Whose images may lack in the count, and for whom nothing is imported; oldest first."""
    rows = await connection.fetch(
        f"""
        SELECT account_id FROM account_store a WHERE counted_at IS NULL AND NOT EXISTS ({_IMPORTING})
        ORDER BY created_at LIMIT $1
        """,  # noqa: S608 - SQL of this file
        limit,
    )
    return [str(row["account_id"]) for row in rows]


async def stored_bytes(connection: Connection, account_id: str) -> int:
    """As counted so far."""
    return int(await connection.fetchval("SELECT stored_bytes FROM account_store WHERE account_id = $1", account_id))


async def set_counted(
    connection: Connection, account_id: str, counted_bytes: int, *, before_bytes: int, now: datetime
) -> bool:
    """False, and nothing changes, where an import counts or counted in the meantime."""
    return bool(
        await connection.fetchval(
            f"""
            UPDATE account_store a SET stored_bytes = $2, counted_at = $4
            WHERE account_id = $1 AND counted_at IS NULL AND stored_bytes = $3 AND NOT EXISTS ({_IMPORTING})
            RETURNING true
            """,  # noqa: S608 - SQL of this file
            account_id,
            counted_bytes,
            before_bytes,
            now,
        )
    )


async def storage_left(connection: Connection, account_id: str, *, with_uploads: bool) -> int | None:
    """Bytes for which an account has room; negative: it has more than its limit. None: no limit."""
    left: int | None = await connection.fetchval(
        """
        SELECT storage_limit - stored_bytes - CASE WHEN $2 THEN (
            SELECT coalesce(sum(size_bytes), 0)::bigint FROM upload WHERE account_id = $1 AND state = 'OPEN') ELSE 0 END
        FROM account_store WHERE account_id = $1
        """,
        account_id,
        with_uploads,
    )
    return left


async def insert_upload(connection: Connection, upload: Upload) -> None:
    """A new one."""
    await connection.execute(
        "INSERT INTO upload (upload_id, account_id, size_bytes, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)",
        upload.upload_id,
        upload.account_id,
        upload.size_bytes,
        upload.created_at,
        upload.expires_at,
    )


async def get_upload(connection: Connection, upload_id: str, *, lock: bool = False) -> Upload | None:
    """An upload; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_UPLOAD} FROM upload WHERE upload_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        upload_id,
    )
    return Upload(**_plain(row)) if row else None


async def count_unfinished_uploads(connection: Connection, account_id: str) -> int:
    """Of an account."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM upload WHERE account_id = $1 AND state = 'OPEN' AND committed_bytes < size_bytes",
            account_id,
        )
    )


async def add_chunk(connection: Connection, upload: Upload, chunk: Chunk, expires_at: datetime) -> Upload:
    """Appends a chunk at committed_bytes of an upload that the caller has locked."""
    await connection.execute(
        "INSERT INTO upload_chunk (upload_id, offset_bytes, size_bytes, sha256) VALUES ($1, $2, $3, $4)",
        upload.upload_id,
        chunk.offset_bytes,
        chunk.size_bytes,
        chunk.sha256,
    )
    row = await connection.fetchrow(
        f"""
        UPDATE upload SET committed_bytes = committed_bytes + $2, expires_at = $3
        WHERE upload_id = $1 RETURNING {_UPLOAD}
        """,  # noqa: S608 - column names
        upload.upload_id,
        chunk.size_bytes,
        expires_at,
    )
    assert row is not None, "the row is locked"
    return Upload(**_plain(row))


async def chunks_of(connection: Connection, upload_id: str) -> list[Chunk]:
    """In order."""
    rows = await connection.fetch(
        "SELECT offset_bytes, size_bytes, sha256 FROM upload_chunk WHERE upload_id = $1 ORDER BY offset_bytes",
        upload_id,
    )
    return [Chunk(**row) for row in rows]


async def count_chunks(connection: Connection, upload_id: str) -> int:
    """Of an upload."""
    return int(await connection.fetchval("SELECT count(*) FROM upload_chunk WHERE upload_id = $1", upload_id))


async def set_upload_expiry(connection: Connection, upload_id: str, expires_at: datetime) -> None:
    """When it is to go."""
    await connection.execute("UPDATE upload SET expires_at = $2 WHERE upload_id = $1", upload_id, expires_at)


async def expire_uploads(connection: Connection, now: datetime, *, limit: int) -> list[Upload]:
    """Closes what has expired and no open import needs; also those whose removal was not finished."""
    rows = await connection.fetch(
        f"""
        UPDATE upload SET state = 'EXPIRED'
        WHERE upload_id IN (
            SELECT upload_id FROM upload u
            WHERE state <> 'REMOVED' AND expires_at <= $1 AND NOT EXISTS (
                SELECT FROM import i WHERE i.upload_id = u.upload_id AND i.state IN ('QUEUED', 'IMPORTING'))
            ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
        ) RETURNING {_UPLOAD}
        """,  # noqa: S608 - column names
        now,
        limit,
    )
    return [Upload(**_plain(row)) for row in rows]


async def remove_upload(connection: Connection, upload_id: str) -> None:
    """Its objects are gone; the row stays, so that a late call hears that it has expired."""
    await connection.execute("DELETE FROM upload_chunk WHERE upload_id = $1", upload_id)
    await connection.execute("UPDATE upload SET state = 'REMOVED' WHERE upload_id = $1", upload_id)


# Imports


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

    The account with the fewest imports in progress first, then the oldest.
    """
    row = await connection.fetchrow(
        f"""
        SELECT {_IMPORT} FROM import i
        WHERE (state = 'QUEUED' AND retry_at <= $1) OR (state = 'IMPORTING' AND claim_expires_at <= $1)
        ORDER BY (
            SELECT count(*) FROM import r
            WHERE r.account_id = i.account_id AND r.state = 'IMPORTING' AND r.claim_expires_at > $1
        ), created_at, import_id
        LIMIT 1 FOR UPDATE SKIP LOCKED
        """,  # noqa: S608 - column names
        now,
    )
    return _import(row) if row else None


async def update_import(connection: Connection, work: Import) -> Import:
    """Writes a move, at the next revision; the caller has locked the row."""
    row = await connection.fetchrow(
        f"""
        UPDATE import SET state = $2, images_done = $3, images_total = $4, error_reason = $5, error_message = $6,
                          report = $7, dataset_version_id = $8, ended_at = $9, attempts = $10, crashes = $11,
                          retry_at = $12, claim_token = $13, claim_expires_at = $14, revision = revision + 1
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
    plain = _plain(row)
    report: Json | None = json.loads(row["report"]) if row["report"] is not None else None
    return Import(
        **plain
        | {"state": ImportState(row["state"]), "source_format": SourceFormat(row["source_format"]), "report": report}
    )


# Versions


async def insert_version(connection: Connection, version: DatasetVersion) -> bool:
    """False if the account has a version of the same content."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO dataset_version (dataset_version_id, account_id, display_name, content_hash, manifest_key,
                                         manifest_sha256, image_prefix, label_kind, classes, statistics, created_at,
                                         revision)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            ON CONFLICT (account_id, content_hash) DO NOTHING RETURNING true
            """,
            version.dataset_version_id,
            version.account_id,
            version.display_name,
            version.content_hash,
            version.manifest_key,
            version.manifest_sha256,
            version.image_prefix,
            version.label_kind,
            list(version.classes),
            json.dumps(version.statistics),
            version.created_at,
            version.revision,
        )
    )


async def version_of_content(connection: Connection, account_id: str, content_hash: str) -> DatasetVersion | None:
    """The account's version of this content."""
    row = await connection.fetchrow(
        f"SELECT {_VERSION} FROM dataset_version WHERE account_id = $1 AND content_hash = $2",  # noqa: S608 - column names
        account_id,
        content_hash,
    )
    return _version(row) if row else None


async def unlisted_versions(connection: Connection, *, limit: int) -> list[DatasetVersion]:
    """Of which no image is listed: they were imported before there were rows of images."""
    rows = await connection.fetch(
        f"""
        SELECT {_VERSION} FROM dataset_version v
        WHERE NOT EXISTS (SELECT FROM listed_image WHERE set_id = v.dataset_version_id) LIMIT $1
        """,  # noqa: S608 - column names
        limit,
    )
    return [_version(row) for row in rows]


async def get_version(connection: Connection, dataset_version_id: str) -> DatasetVersion | None:
    """By id."""
    row = await connection.fetchrow(
        f"SELECT {_VERSION} FROM dataset_version WHERE dataset_version_id = $1",  # noqa: S608 - column names
        dataset_version_id,
    )
    return _version(row) if row else None


async def list_versions(
    connection: Connection, account_id: str, *, after: tuple[datetime, str] | None, limit: int
) -> list[DatasetVersion]:
    """Newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_VERSION} FROM dataset_version
        WHERE account_id = $1
          AND ($2::timestamptz IS NULL OR (created_at, dataset_version_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, dataset_version_id DESC LIMIT $4
        """,  # noqa: S608 - column names
        account_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_version(row) for row in rows]


def _version(row: asyncpg.Record) -> DatasetVersion:
    plain = _plain(row)
    return DatasetVersion(
        **plain
        | {
            "label_kind": LabelKind(row["label_kind"]),
            "classes": tuple(row["classes"]),
            "statistics": json.loads(row["statistics"]),
        }
    )


_IDS = frozenset({"account_id", "upload_id", "import_id", "dataset_version_id", "draft_id", "claim_token"})


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    """Ids as text."""
    return {key: str(value) if key in _IDS and value is not None else value for key, value in row.items()}
