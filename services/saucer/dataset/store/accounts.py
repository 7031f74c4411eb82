"""The SQL of accounts' places in the object store: how much lies there, and what failed imports left."""

from datetime import datetime

from saucer.dataset.domain import (
    AccountStore,
    Import,
)
from saucer.dataset.store.rows import with_text_ids
from saucer.lib.postgres import Connection

_STORE = "account_id, prefix, proven_at, revision"


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
    return AccountStore(**with_text_ids(row)) if row else None


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
    return AccountStore(**with_text_ids(row)) if row else None


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
    """Bytes for which an account has room, less what imports have reserved; negative: it has more than its limit. None:
    no limit."""
    left: int | None = await connection.fetchval(
        """
        SELECT storage_limit - stored_bytes - (
            SELECT coalesce(sum(reserved_bytes), 0)::bigint FROM import
            WHERE account_id = $1 AND state = 'IMPORTING'
        ) - CASE WHEN $2 THEN (
            SELECT coalesce(sum(size_bytes), 0)::bigint FROM upload WHERE account_id = $1 AND state = 'OPEN') ELSE 0 END
        FROM account_store WHERE account_id = $1
        """,
        account_id,
        with_uploads,
    )
    return left


async def reserve(connection: Connection, import_id: str, size_bytes: int) -> None:
    """Of the account's room, for a claimed import that the caller has locked, as its account; 0: it only stores."""
    await connection.execute(
        "UPDATE import SET reserved_bytes = reserved_bytes + $2, stores = true WHERE import_id = $1",
        import_id,
        size_bytes,
    )


async def reserved_bytes(connection: Connection, import_id: str) -> int:
    """By this claim of an import."""
    return int(await connection.fetchval("SELECT reserved_bytes FROM import WHERE import_id = $1", import_id))


async def end_reservation(connection: Connection, token: str) -> None:
    """Of a claim; if it was lost, that has ended it."""
    await connection.execute("UPDATE import SET reserved_bytes = 0 WHERE claim_token = $1", token)


async def mark_leftovers(connection: Connection, work: Import) -> None:
    """Of the account of an import that failed, if that may have stored images."""
    await connection.execute(
        """
        UPDATE account_store SET leftovers = true
        WHERE account_id = $1 AND EXISTS (SELECT FROM import WHERE import_id = $2 AND stores)
        """,
        work.account_id,
        work.import_id,
    )


async def accounts_with_leftovers(connection: Connection, now: datetime, *, limit: int) -> list[str]:
    """For which nothing is imported, and whose leftovers no process removes; oldest first."""
    rows = await connection.fetch(
        f"""
        SELECT account_id FROM account_store a
        WHERE leftovers AND (removal_token IS NULL OR removal_expires_at <= $1) AND NOT EXISTS ({_IMPORTING})
        ORDER BY created_at LIMIT $2
        """,  # noqa: S608 - SQL of this file
        now,
        limit,
    )
    return [str(row["account_id"]) for row in rows]


async def lock_leftovers(connection: Connection, account_id: str, now: datetime) -> bool:
    """Locks the account, whatever the answer: whether it has some, and no process removes them."""
    row = await connection.fetchrow(
        """
        SELECT leftovers AND (removal_token IS NULL OR removal_expires_at <= $2) AS due
        FROM account_store WHERE account_id = $1 FOR UPDATE
        """,
        account_id,
        now,
    )
    return row is not None and bool(row["due"])


async def lock_against_removal(connection: Connection, account_id: str) -> bool:
    """Locks the account; False if its leftovers are being removed."""
    return bool(
        await connection.fetchval(
            "SELECT removal_token IS NULL FROM account_store WHERE account_id = $1 FOR UPDATE", account_id
        )
    )


async def is_importing(connection: Connection, account_id: str) -> bool:
    """Whether an import of the account is claimed; also if the claim has expired, since it may still be prolonged."""
    return bool(
        await connection.fetchval(
            f"SELECT EXISTS ({_IMPORTING}) FROM account_store a WHERE account_id = $1",  # noqa: S608 - SQL of this file
            account_id,
        )
    )


async def has_unlisted_version(connection: Connection, account_id: str) -> bool:
    """Whether an account has a version whose images have no rows."""
    return bool(
        await connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM dataset_version v WHERE account_id = $1
                           AND NOT EXISTS (SELECT FROM listed_image WHERE set_id = v.dataset_version_id))
            """,
            account_id,
        )
    )


async def forget_leftovers(connection: Connection, account_id: str) -> None:
    """They stay where they are."""
    await connection.execute(
        """
        UPDATE account_store SET leftovers = false, removal_token = NULL, removal_expires_at = NULL
        WHERE account_id = $1
        """,
        account_id,
    )


async def hold_leftovers(connection: Connection, account_id: str, token: str, expires_at: datetime) -> None:
    """For their removal; the caller has locked the account."""
    await connection.execute(
        "UPDATE account_store SET removal_token = $2, removal_expires_at = $3 WHERE account_id = $1",
        account_id,
        token,
        expires_at,
    )


async def prolong_removal(connection: Connection, account_id: str, token: str, expires_at: datetime) -> bool:
    """False if it is another's by now."""
    return bool(
        await connection.fetchval(
            """
            UPDATE account_store SET removal_expires_at = $3 WHERE account_id = $1 AND removal_token = $2
            RETURNING true
            """,
            account_id,
            token,
            expires_at,
        )
    )


async def end_removal(connection: Connection, account_id: str, token: str, kept_bytes: int, now: datetime) -> bool:
    """What is left is counted. False, and nothing changes, if it is another's by now."""
    return bool(
        await connection.fetchval(
            """
            UPDATE account_store SET leftovers = false, removal_token = NULL, removal_expires_at = NULL,
                                     stored_bytes = $3, counted_at = coalesce(counted_at, $4)
            WHERE account_id = $1 AND removal_token = $2 RETURNING true
            """,
            account_id,
            token,
            kept_bytes,
            now,
        )
    )
