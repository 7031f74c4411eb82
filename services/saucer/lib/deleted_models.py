"""Models that training has told are deleted: nothing new may begin with them.

The table deleted_model lies in the database of each service that begins something with one; its own schema makes it.
"""

from saucer.lib.postgres import Connection


async def mark_deleted(connection: Connection, model_id: str) -> None:
    """Of a model, whether it is known yet or not; again changes nothing."""
    await connection.execute("INSERT INTO deleted_model (model_id) VALUES ($1) ON CONFLICT DO NOTHING", model_id)


async def is_deleted(connection: Connection, model_id: str) -> bool:
    """Whether nothing new may begin with the model."""
    found = await connection.fetchval("SELECT EXISTS (SELECT FROM deleted_model WHERE model_id = $1)", model_id)
    return bool(found)
