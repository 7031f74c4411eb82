"""The SQL of uploads."""

from datetime import datetime

from saucer.dataset.domain import (
    Chunk,
    Upload,
)
from saucer.dataset.store.rows import with_text_ids
from saucer.lib.postgres import Connection

_UPLOAD = "upload_id, account_id, size_bytes, committed_bytes, state, created_at, expires_at"


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
    return Upload(**with_text_ids(row)) if row else None


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
    return Upload(**with_text_ids(row))


async def chunks_of(connection: Connection, upload_id: str) -> list[Chunk]:
    """In order."""
    rows = await connection.fetch(
        "SELECT offset_bytes, size_bytes, sha256 FROM upload_chunk WHERE upload_id = $1 ORDER BY offset_bytes",
        upload_id,
    )
    return [Chunk(**row) for row in rows]


async def chunks_from(connection: Connection, upload_id: str, offset_bytes: int, limit: int) -> list[Chunk]:
    """Those that begin there and beyond, in order."""
    rows = await connection.fetch(
        """
        SELECT offset_bytes, size_bytes, sha256 FROM upload_chunk WHERE upload_id = $1 AND offset_bytes >= $2
        ORDER BY offset_bytes LIMIT $3
        """,
        upload_id,
        offset_bytes,
        limit,
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
    return [Upload(**with_text_ids(row)) for row in rows]


async def remove_upload(connection: Connection, upload_id: str) -> None:
    """Its objects are gone; the row stays, so that a late call hears that it has expired."""
    await connection.execute("DELETE FROM upload_chunk WHERE upload_id = $1", upload_id)
    await connection.execute("UPDATE upload SET state = 'REMOVED' WHERE upload_id = $1", upload_id)
