"""What the lines of a statement are explained by."""

from collections.abc import Sequence

from saucer.lib.postgres import Connection


async def taken_before(connection: Connection, hold_ids: Sequence[str], account_version: int) -> dict[str, int]:
    """What was settled and posted of each hold before a version of its account, in micros; left out: nothing."""
    rows = await connection.fetch(
        """
        SELECT hold_id, sum(amount_micros)::bigint AS taken_micros FROM transfer
        WHERE hold_id = ANY($1) AND account_version < $2 AND kind IN ('SETTLEMENT', 'POSTING') GROUP BY hold_id
        """,
        list(hold_ids),
        account_version,
    )
    return {row["hold_id"]: row["taken_micros"] for row in rows}
