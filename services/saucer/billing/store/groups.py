"""Resource groups."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from saucer.billing.domain import Group
from saucer.lib.postgres import Connection

_GROUP = (
    "group_id, account_id, display_name, region_id, spec_id, capacity, starts_at, ends_at, warned_hours, ended, "
    "created_at, revision"
)
_COUNTED = """
    (SELECT coalesce(sum(count), 0) FROM hold h WHERE h.group_id = g.group_id AND h.state = 'GRANTED') AS taken,
    (SELECT coalesce(sum(count), 0) FROM hold h WHERE h.group_id = g.group_id AND h.state = 'WAITING') AS waiting
"""


async def insert_group(connection: Connection, group: Group) -> None:
    """A new one."""
    await connection.execute(
        """
        INSERT INTO resource_group (group_id, account_id, display_name, region_id, spec_id, capacity, starts_at,
                                    ends_at, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        group.group_id,
        group.account_id,
        group.display_name,
        group.region_id,
        group.spec_id,
        group.capacity,
        group.starts_at,
        group.ends_at,
        group.created_at,
    )


async def update_group(connection: Connection, group: Group) -> Group:
    """Writes capacity, end, and what was said of it, at the next revision; the caller has locked it."""
    await connection.execute(
        """
        UPDATE resource_group SET capacity = $2, ends_at = $3, warned_hours = $4, ended = $5, revision = revision + 1
        WHERE group_id = $1
        """,
        group.group_id,
        group.capacity,
        group.ends_at,
        group.warned_hours,
        group.ended,
    )
    changed = await get_group(connection, group.group_id)
    assert changed is not None, "it is locked"
    return changed


async def get_group(connection: Connection, group_id: str) -> Group | None:
    """With what is taken of it now."""
    row = await connection.fetchrow(
        f"SELECT {_GROUP}, {_COUNTED} FROM resource_group g WHERE group_id = $1",  # noqa: S608 - column names
        group_id,
    )
    return _group(row) if row else None


async def lock_group(connection: Connection, group_id: str) -> Group | None:
    """The same, locked until the transaction ends; what is taken is counted under the lock."""
    if not await connection.fetchval("SELECT true FROM resource_group WHERE group_id = $1 FOR UPDATE", group_id):
        return None
    return await get_group(connection, group_id)


async def list_groups(
    connection: Connection, account_id: str | None, *, after: tuple[datetime, str] | None, limit: int
) -> list[Group]:
    """Newest first; of every account for None."""
    rows = await connection.fetch(
        f"""
        SELECT {_GROUP}, {_COUNTED} FROM resource_group g
        WHERE ($1::uuid IS NULL OR account_id = $1)
          AND ($2::timestamptz IS NULL OR (created_at, group_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, group_id DESC LIMIT $4
        """,  # noqa: S608 - column names
        account_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_group(row) for row in rows]


async def ending(connection: Connection, now: datetime, warning_hours: Sequence[int], limit: int) -> list[Group]:
    """Those that a warning is due of, or that ended and were not seen to, or are still waited for; by their end."""
    rows = await connection.fetch(
        f"""
        SELECT {_GROUP}, {_COUNTED} FROM resource_group g
        WHERE NOT ended AND (ends_at <= $1 OR EXISTS (
            SELECT FROM unnest($2::integer[]) AS warning (hours)
            WHERE ends_at < $1 + make_interval(hours => hours) AND (warned_hours IS NULL OR warned_hours > hours)
        ))
        OR ended AND group_id IN (SELECT group_id FROM hold WHERE group_id IS NOT NULL AND state = 'WAITING')
        ORDER BY ends_at LIMIT $3
        """,  # noqa: S608 - column names
        now,
        warning_hours,
        limit,
    )
    return [_group(row) for row in rows]


async def waited_for(connection: Connection, now: datetime) -> list[str]:
    """Ids of groups that something waits for, and that have not ended."""
    rows = await connection.fetch(
        """
        SELECT group_id FROM resource_group
        WHERE NOT ended AND ends_at > $1
          AND group_id IN (SELECT group_id FROM hold WHERE group_id IS NOT NULL AND state = 'WAITING')
        """,
        now,
    )
    return [str(row["group_id"]) for row in rows]


def _group(row: asyncpg.Record) -> Group:
    return Group(**{**row, "group_id": str(row["group_id"]), "account_id": str(row["account_id"])})
