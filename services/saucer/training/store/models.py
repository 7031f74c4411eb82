"""Models, and which deployments serve them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

import asyncpg

from saucer.lib.postgres import Connection
from saucer.training.domain import Deployment, Model, ModelFile
from saucer.training.store.runs import texts_of

_MODEL = (
    "model_id, run_id, account_id, task_id, task_name, dataset_version_id, config, best_map_50 AS best_accuracy, "
    "files, created_at, deleted_at, revision"
)


async def insert_model(connection: Connection, model: Model) -> None:
    """Once; the run's row is locked by the caller."""
    await connection.execute(
        """
        INSERT INTO model (model_id, run_id, account_id, task_id, task_name, dataset_version_id, config, best_map_50,
                           files, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        model.model_id,
        model.run_id,
        model.account_id,
        model.task_id,
        model.task_name,
        model.dataset_version_id,
        model.config,
        model.best_accuracy,
        json.dumps([asdict(file) for file in model.files]),
        model.created_at,
    )


async def get_model(connection: Connection, model_id: str, *, lock: bool = False) -> Model | None:
    """A model, a deleted one too; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_MODEL} FROM model WHERE model_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        model_id,
    )
    return _model(row) if row else None


async def mark_deleted(connection: Connection, model: Model) -> None:
    """As it is now; the caller has locked the row."""
    await connection.execute(
        "UPDATE model SET deleted_at = $2, revision = $3 WHERE model_id = $1",
        model.model_id,
        model.deleted_at,
        model.revision,
    )


async def put_deployment(connection: Connection, deployment: Deployment) -> None:
    """Unless what is there is as new."""
    await connection.execute(
        """
        INSERT INTO deployment AS d (deployment_id, model_ids, at_rest, revision) VALUES ($1, $2, $3, $4)
        ON CONFLICT (deployment_id) DO UPDATE
        SET model_ids = excluded.model_ids, at_rest = excluded.at_rest, revision = excluded.revision
        WHERE d.revision < excluded.revision
        """,
        deployment.deployment_id,
        deployment.model_ids,
        deployment.at_rest,
        deployment.revision,
    )


async def served_by(connection: Connection, model_id: str) -> str | None:
    """A deployment that serves the model and is not at rest."""
    found = await connection.fetchval(
        "SELECT deployment_id FROM deployment WHERE NOT at_rest AND model_ids @> ARRAY[$1::uuid] LIMIT 1", model_id
    )
    return str(found) if found else None


async def list_models(
    connection: Connection,
    account_id: str,
    *,
    task_id: str | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Model]:
    """Newest first, without deleted ones."""
    rows = await connection.fetch(
        f"""
        SELECT {_MODEL} FROM model
        WHERE account_id = $1 AND deleted_at IS NULL AND ($2::uuid IS NULL OR task_id = $2)
          AND ($3::timestamptz IS NULL OR (created_at, model_id) < ($3, $4::uuid))
        ORDER BY created_at DESC, model_id DESC LIMIT $5
        """,  # noqa: S608 - column names
        account_id,
        task_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_model(row) for row in rows]


def _model(row: asyncpg.Record) -> Model:
    fields: Mapping[str, object] = texts_of(row)
    files = tuple(ModelFile(**file) for file in json.loads(row["files"]))
    return Model(**{**fields, "files": files})  # type: ignore[arg-type]  # columns as typed
