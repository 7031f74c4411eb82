"""Reads of an account's images because a caller asked: its store's owner pays for them, so they are counted by day.

The table image_read lies in the database of each service that reads so; its own schema makes it.
"""

from datetime import date

from saucer.lib.postgres import Connection


async def count_reads(connection: Connection, account_id: str, day: date, reads: int, size_bytes: int) -> None:
    """Adds to what the account's images were read that day (UTC)."""
    await connection.execute(
        """
        INSERT INTO image_read (account_id, day, reads, bytes) VALUES ($1, $2, $3, $4)
        ON CONFLICT (account_id, day) DO UPDATE
        SET reads = image_read.reads + excluded.reads, bytes = image_read.bytes + excluded.bytes
        """,
        account_id,
        day,
        reads,
        size_bytes,
    )


async def list_reads(
    connection: Connection, account_id: str, *, before: date | None, limit: int
) -> list[tuple[date, int, int]]:
    """Days with the reads and bytes of each, newest first."""
    rows = await connection.fetch(
        """
        SELECT day, reads, bytes FROM image_read WHERE account_id = $1 AND ($2::date IS NULL OR day < $2)
        ORDER BY day DESC LIMIT $3
        """,
        account_id,
        before,
        limit,
    )
    return [(row["day"], row["reads"], row["bytes"]) for row in rows]
