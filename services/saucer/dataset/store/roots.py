"""The SQL of mapped roots."""

import asyncpg

from saucer.dataset.domain import MappedRoot
from saucer.lib.postgres import Connection


async def put_root(connection: Connection, root: MappedRoot) -> None:
    """Anew, or instead of the one of that name."""
    await connection.execute(
        """
        INSERT INTO mapped_root (account_id, name, url, mapped_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (account_id, name) DO UPDATE SET url = excluded.url, mapped_at = excluded.mapped_at
        """,
        root.account_id,
        root.name,
        root.url,
        root.mapped_at,
    )


async def delete_root(connection: Connection, account_id: str, name: str) -> MappedRoot | None:
    """None if there is none."""
    row = await connection.fetchrow(
        "DELETE FROM mapped_root WHERE account_id = $1 AND name = $2 RETURNING account_id, name, url, mapped_at",
        account_id,
        name,
    )
    return _root(row) if row else None


async def list_roots(connection: Connection, account_id: str) -> list[MappedRoot]:
    """By name."""
    rows = await connection.fetch(
        "SELECT account_id, name, url, mapped_at FROM mapped_root WHERE account_id = $1 ORDER BY name", account_id
    )
    return [_root(row) for row in rows]


def _root(row: asyncpg.Record) -> MappedRoot:
    return MappedRoot(**{**row, "account_id": str(row["account_id"])})
