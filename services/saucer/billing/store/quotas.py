"""Quotas."""

from saucer.billing.domain import Quotas
from saucer.lib.postgres import Connection


async def get_quotas(connection: Connection, account_id: str) -> Quotas:
    """Of an account; those of one for which none were set: no limits."""
    row = await connection.fetchrow(
        "SELECT weight, running, queued, storage_bytes, revision FROM account_quotas WHERE account_id = $1", account_id
    )
    return Quotas(account_id, **row) if row else Quotas(account_id)


async def put_quotas(connection: Connection, quotas: Quotas) -> Quotas:
    """At the next revision."""
    revision = await connection.fetchval(
        """
        INSERT INTO account_quotas AS q (account_id, weight, running, queued, storage_bytes, revision)
        VALUES ($1, $2, $3, $4, $5, 1)
        ON CONFLICT (account_id) DO UPDATE
        SET weight = excluded.weight, running = excluded.running, queued = excluded.queued,
            storage_bytes = excluded.storage_bytes, revision = q.revision + 1
        RETURNING revision
        """,
        quotas.account_id,
        quotas.weight,
        quotas.running,
        quotas.queued,
        quotas.storage_bytes,
    )
    return Quotas(quotas.account_id, quotas.weight, quotas.running, quotas.queued, quotas.storage_bytes, revision)
