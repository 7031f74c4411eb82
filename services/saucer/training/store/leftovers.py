"""The SQL of what runs, and models that were deleted, left in the object store."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from saucer.lib.objects import system_prefix
from saucer.lib.postgres import Connection
from saucer.training.domain import EndReason

# A task whose run ended so, with a model, has succeeded: it is not started again.
SUCCESSES = frozenset({EndReason.COMPLETED, EndReason.ACCURACY_REACHED, EndReason.DURATION_REACHED})


@dataclass(frozen=True)
class Left:
    """What a run says of its objects."""

    run_id: str
    account_id: str
    # By a worker.
    begun: bool
    # None while it has not ended.
    ended_at: datetime | None
    attempt: int
    finished_with_files: bool
    checkpoint_key: str | None
    end_reason: str | None
    task_deleted: bool

    @property
    def prefix(self) -> str:
        """Of all its attempts, see Run.artifact_prefix."""
        return f"{system_prefix(self.account_id)}/runs/{self.run_id}"

    @property
    def resumable(self) -> bool:
        """Whether the task's next start may go on from its checkpoint."""
        succeeded = self.finished_with_files and self.end_reason in SUCCESSES
        return not succeeded and not self.task_deleted


async def unswept_tasks(connection: Connection, ended_before: datetime, limit: int) -> list[str]:
    """Tasks with a run that ended before, and whose leftovers were not removed yet."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT task_id FROM run
        WHERE state = 'ENDED' AND files_swept_at IS NULL AND ended_at < $1 LIMIT $2
        """,
        ended_before,
        limit,
    )
    return [row["task_id"] for row in rows]


async def runs_of(connection: Connection, task_id: str) -> list[Left]:
    """By start."""
    rows = await connection.fetch(
        """
        SELECT run_id, account_id, started_at IS NOT NULL AS begun, ended_at, attempt,
               model_id IS NOT NULL AS finished_with_files, checkpoint_key, end_reason,
               task_deleted_at IS NOT NULL AS task_deleted
        FROM run WHERE task_id = $1 ORDER BY start_number
        """,
        task_id,
    )
    return [Left(**{**row, "run_id": str(row["run_id"]), "account_id": str(row["account_id"])}) for row in rows]


async def mark_swept(connection: Connection, runs: Sequence[Left], now: datetime) -> None:
    """Their leftovers are removed. Of a task that was deleted meanwhile there are more."""
    await connection.execute(
        "UPDATE run SET files_swept_at = $3 WHERE run_id = ANY ($1) AND (task_deleted_at IS NULL OR run_id = ANY ($2))",
        [run.run_id for run in runs],
        [run.run_id for run in runs if run.task_deleted],
        now,
    )


async def mark_task_deleted(connection: Connection, task_id: str, now: datetime) -> None:
    """Its runs are looked at once more; again changes nothing."""
    await connection.execute(
        "UPDATE run SET task_deleted_at = $2, files_swept_at = NULL WHERE task_id = $1 AND task_deleted_at IS NULL",
        task_id,
        now,
    )


async def removable_models(connection: Connection, deleted_before: datetime, limit: int) -> list[tuple[str, list[str]]]:
    """Ids of models whose files may go, with the files' keys: no deployment serves them, no run predicts with them or
    is to begin with their weights, and their user has the copies."""
    rows = await connection.fetch(
        """
        SELECT model_id, files FROM model
        WHERE deleted_at < $1 AND files_removed_at IS NULL
          AND NOT EXISTS (SELECT FROM deployment WHERE NOT at_rest AND model_ids @> ARRAY[model.model_id])
          AND NOT EXISTS (SELECT FROM copy_out WHERE copy_out.run_id = model.run_id)
          AND NOT EXISTS (
              SELECT FROM run
              WHERE state <> 'ENDED' AND (
                  predicts_model_id = model.model_id
                  OR config::json ->> 'weightsKey' IN (
                      SELECT file ->> 'key' FROM json_array_elements(model.files::json) AS file
                  )
              )
          )
        LIMIT $2
        """,
        deleted_before,
        limit,
    )
    return [(str(row["model_id"]), [file["key"] for file in json.loads(row["files"])]) for row in rows]


async def mark_removed(connection: Connection, model_id: str, now: datetime) -> None:
    """Its files are gone."""
    await connection.execute("UPDATE model SET files_removed_at = $2 WHERE model_id = $1", model_id, now)
