"""The SQL of the copies that users are still to have."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime

from saucer.lib.postgres import Connection
from saucer.training.domain import ModelFile


@dataclass(frozen=True)
class Copy:
    """What a run left, and the prefix below which its user is to have it too."""

    target: str
    run_id: str
    files: tuple[ModelFile, ...]


async def insert_copy(connection: Connection, copy: Copy, due_at: datetime) -> None:
    """Instead of one that was still to be made at the same place."""
    await connection.execute(
        """
        INSERT INTO copy_out (target, run_id, files, due_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (target) DO UPDATE
        SET run_id = excluded.run_id, files = excluded.files, due_at = excluded.due_at
        """,
        copy.target,
        copy.run_id,
        json.dumps([asdict(file) for file in copy.files]),
        due_at,
    )


async def claim_copy(connection: Connection, now: datetime, due_at: datetime) -> Copy | None:
    """One that is due by now, which is due again at `due_at` if it is not made."""
    row = await connection.fetchrow(
        """
        UPDATE copy_out SET due_at = $2 WHERE target = (
            SELECT target FROM copy_out WHERE due_at < $1 ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
        ) RETURNING target, run_id, files
        """,
        now,
        due_at,
    )
    if row is None:
        return None
    return Copy(row["target"], str(row["run_id"]), tuple(ModelFile(**file) for file in json.loads(row["files"])))


async def delete_copy(connection: Connection, copy: Copy) -> None:
    """It is made."""
    await connection.execute("DELETE FROM copy_out WHERE target = $1 AND run_id = $2", copy.target, copy.run_id)
