"""The SQL of tasks."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

import asyncpg

from saucer.lib.postgres import Connection
from saucer.task.domain import (
    Action,
    ChargeStatus,
    Config,
    EndReason,
    Evaluated,
    Form,
    Former,
    KnownModel,
    Progress,
    Task,
    TaskKind,
    TaskState,
)
from saucer.task.estimating import Pace

_COLUMNS = (
    "task_id, account_id, request_id, form, config, derived, state, former_state, former, charge_status, start_number, "
    "restart_request_id, hold_micros, price_per_hour_micros, currency, progress, stop_requested, end_reason, "
    "error_message, missing_micros, model_id, evaluation_id, test_accuracy, created_at, updated_at, ended_at, "
    "deleted_at, revision, learnt_before, evaluated"
)
_PACE = [column.name for column in fields(Pace)]
# Of runs that train, and of runs that only predict.
_PACES = {False: "pace", True: "prediction_pace"}


async def insert(connection: Connection, task: Task) -> bool:
    """False if the account has used the request id before.

    Raises asyncpg.UniqueViolationError if the name is taken.
    """
    return bool(
        await connection.fetchval(
            f"""
            INSERT INTO task ({_COLUMNS}, display_name)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                    $22, $23, $24, $25, $26, $27, $28, $29, $30, $31)
            ON CONFLICT (account_id, request_id) DO NOTHING RETURNING true
            """,  # noqa: S608 - column names, no values
            *_values(task),
            task.form.display_name,
        )
    )


async def update(connection: Connection, task: Task) -> Task:
    """Writes a task at the next revision; the caller has locked the row."""
    row = await connection.fetchrow(
        f"""
        UPDATE task SET (form, config, derived, state, former_state, former, charge_status, start_number,
                         restart_request_id, hold_micros, price_per_hour_micros, currency, progress, stop_requested,
                         end_reason, error_message, missing_micros, model_id, evaluation_id, test_accuracy, updated_at,
                         ended_at, deleted_at, revision, learnt_before, evaluated)
            = ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
               $24, $25::bigint + 1, $26, $27)
        WHERE task_id = $1 AND revision = $25 RETURNING {_COLUMNS}
        """,  # noqa: S608 - column names
        *_without(_values(task), 1, 2, 23),
    )
    assert row is not None, "the row is locked"
    return _task(row)


async def get(connection: Connection, task_id: str, *, lock: bool = False) -> Task | None:
    """A task, deleted ones too; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM task WHERE task_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        task_id,
    )
    return _task(row) if row else None


async def of_request(connection: Connection, account_id: str, request_id: str) -> Task | None:
    """The task that a request id made."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM task WHERE account_id = $1 AND request_id = $2",  # noqa: S608 - column names
        account_id,
        request_id,
    )
    return _task(row) if row else None


async def name_exists(connection: Connection, account_id: str, display_name: str) -> bool:
    """Among those not deleted."""
    return bool(
        await connection.fetchval(
            "SELECT true FROM task WHERE account_id = $1 AND display_name = $2 AND deleted_at IS NULL",
            account_id,
            display_name,
        )
    )


async def list_tasks(
    connection: Connection,
    account_id: str,
    *,
    states: Sequence[TaskState],
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Task]:
    """Newest first, without deleted ones."""
    page = """
        account_id = $1 AND deleted_at IS NULL
        AND ($2::timestamptz IS NULL OR (created_at, task_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, task_id DESC LIMIT $4
    """
    given = (account_id, after[0] if after else None, after[1] if after else None, limit)
    if not states:
        rows = await connection.fetch(f"SELECT {_COLUMNS} FROM task WHERE {page}", *given)  # noqa: S608 - column names
    else:
        # A page of each state, each by its index; of many tasks hardly one may be in a state that is asked for.
        rows = await connection.fetch(
            f"""
            SELECT {_COLUMNS} FROM unnest($5::text[]) AS wanted
            CROSS JOIN LATERAL (SELECT {_COLUMNS} FROM task WHERE state = wanted AND {page}) AS found
            ORDER BY created_at DESC, task_id DESC LIMIT $4
            """,  # noqa: S608 - column names
            *given,
            list(set(states)),
        )
    return [_task(row) for row in rows]


async def put_quota(connection: Connection, account_id: str, queued: int | None, revision: int) -> None:
    """Unless what is there is as new."""
    await connection.execute(
        """
        INSERT INTO account_quota AS q (account_id, queued, revision) VALUES ($1, $2, $3)
        ON CONFLICT (account_id) DO UPDATE SET queued = excluded.queued, revision = excluded.revision
        WHERE q.revision < excluded.revision
        """,
        account_id,
        queued,
        revision,
    )


async def lock_quota(connection: Connection, account_id: str) -> int | None:
    """How many tasks of an account may wait; None: no limit. Locked, so that calls that add one take turns."""
    limit: int | None = await connection.fetchval(
        "SELECT queued FROM account_quota WHERE account_id = $1 FOR UPDATE", account_id
    )
    return limit


async def count_waiting(connection: Connection, account_id: str) -> int:
    """Tasks of an account that wait for their hold, for capacity or for a worker."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM task WHERE account_id = $1 AND state IN ('PENDING', 'WAITING', 'QUEUED')", account_id
        )
    )


async def action_of(connection: Connection, task_id: str, request_id: str) -> Action | None:
    """What the call with this request id has changed of the task; None: nothing."""
    action = await connection.fetchval(
        "SELECT action FROM task_change WHERE task_id = $1 AND request_id = $2", task_id, request_id
    )
    return None if action is None else Action(action)


async def insert_change(connection: Connection, task_id: str, request_id: str, action: Action) -> None:
    """Once for each request id; the caller has locked the task."""
    await connection.execute(
        "INSERT INTO task_change (task_id, request_id, action) VALUES ($1, $2, $3)", task_id, request_id, action
    )


async def unsettled(connection: Connection, state: TaskState, before: datetime, limit: int) -> list[str]:
    """Ids of tasks that have been in a state since before a time, longest first."""
    rows = await connection.fetch(
        "SELECT task_id FROM task WHERE state = $1 AND updated_at < $2 ORDER BY updated_at LIMIT $3",
        state,
        before,
        limit,
    )
    return [str(row["task_id"]) for row in rows]


async def unqueued_naming_model(connection: Connection, model_id: str) -> list[str]:
    """Ids of tasks that have no run yet and whose form names a model, whether their start needs it or not."""
    rows = await connection.fetch(
        """
        SELECT task_id FROM task
        WHERE state IN ('PENDING', 'WAITING')
          AND (form ->> 'model_id' = $1 OR form ->> 'base_model_id' = $1)
        """,
        model_id,
    )
    return [str(row["task_id"]) for row in rows]


async def insert_model(connection: Connection, model: KnownModel) -> None:
    """A second time changes nothing."""
    await connection.execute(
        "INSERT INTO model (model_id, account_id, scene, classes, input_size, starting_point, weights_key, "
        "weights_sha256, classification) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
        model.model_id,
        model.account_id,
        model.scene,
        list(model.classes),
        model.input_size,
        model.starting_point,
        model.weights_key,
        model.weights_sha256,
        model.classification,
    )


async def get_model(connection: Connection, model_id: str) -> KnownModel | None:
    """A model that a run has left."""
    row = await connection.fetchrow(
        "SELECT model_id, account_id, scene, classes, input_size, starting_point, weights_key, weights_sha256, "
        "classification FROM model WHERE model_id = $1",
        model_id,
    )
    if row is None:
        return None
    return KnownModel(
        **{
            **row,
            "model_id": str(row["model_id"]),
            "account_id": str(row["account_id"]),
            "classes": tuple(row["classes"]),
        }
    )


async def insert_pace(connection: Connection, pace: Pace, *, predicts: bool) -> None:
    """A second time changes nothing."""
    places = ", ".join(f"${number}" for number in range(1, len(_PACE) + 1))
    await connection.execute(
        f"INSERT INTO {_PACES[predicts]} ({', '.join(_PACE)}) VALUES ({places}) ON CONFLICT DO NOTHING",  # noqa: S608 - names
        *(getattr(pace, column) for column in _PACE),
    )


async def paces(
    connection: Connection, region_id: str, spec_id: str, count: int, limit: int, *, predicts: bool
) -> list[Pace]:
    """Of a spec, of runs that train or that only predict, the newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {", ".join(_PACE)} FROM {_PACES[predicts]} WHERE (region_id, spec_id, count) = ($1, $2, $3)
        ORDER BY ended_at DESC LIMIT $4
        """,  # noqa: S608 - names of columns and tables
        region_id,
        spec_id,
        count,
        limit,
    )
    return [
        Pace(**{**row, "run_id": str(row["run_id"]), "dataset_version_id": str(row["dataset_version_id"])})
        for row in rows
    ]


def _values(task: Task) -> list[object]:
    return [
        task.task_id,
        task.account_id,
        task.request_id,
        json.dumps(asdict(task.form)),
        json.dumps(asdict(task.config)),
        json.dumps(task.derived),
        task.state,
        task.former_state,
        json.dumps(asdict(task.former), default=datetime.isoformat) if task.former else None,
        task.charge_status,
        task.start_number,
        task.restart_request_id,
        task.hold_micros,
        task.price_per_hour_micros,
        task.currency,
        json.dumps(asdict(task.progress)),
        task.stop_requested,
        task.end_reason,
        task.error_message,
        task.missing_micros,
        task.model_id,
        task.evaluation_id,
        task.test_accuracy,
        task.created_at,
        task.updated_at,
        task.ended_at,
        task.deleted_at,
        task.revision,
        task.learnt_before,
        json.dumps(asdict(task.evaluated)) if task.evaluated else None,
    ]


def _without(values: list[object], *positions: int) -> list[object]:
    return [value for position, value in enumerate(values) if position not in positions]


def _form(value: dict[str, Any]) -> Form:
    return Form(**{**value, "tags": tuple(value["tags"]), "kind": TaskKind(value.get("kind", TaskKind.TRAIN))})


def _config(value: dict[str, Any]) -> Config:
    names = tuple((label, name) for label, name in value.get("label_names", ()))
    return Config(**{**value, "classes": tuple(value["classes"]), "label_names": names})


def _former(value: dict[str, Any]) -> Former:
    return Former(
        form=_form(value["form"]),
        config=_config(value["config"]),
        progress=Progress(**value["progress"]),
        stop_requested=value["stop_requested"],
        ended_at=datetime.fromisoformat(value["ended_at"]),
    )


def _task(row: asyncpg.Record) -> Task:
    return Task(
        **{
            **row,
            "task_id": str(row["task_id"]),
            "account_id": str(row["account_id"]),
            "request_id": str(row["request_id"]),
            "form": _form(json.loads(row["form"])),
            "config": _config(json.loads(row["config"])),
            "derived": tuple((field, value, reason) for field, value, reason in json.loads(row["derived"])),
            "state": TaskState(row["state"]),
            "former_state": TaskState(row["former_state"]) if row["former_state"] else None,
            "former": _former(json.loads(row["former"])) if row["former"] else None,
            "charge_status": ChargeStatus(row["charge_status"]),
            "restart_request_id": str(row["restart_request_id"]) if row["restart_request_id"] else None,
            "progress": Progress(**json.loads(row["progress"])),
            "end_reason": EndReason(row["end_reason"]) if row["end_reason"] else None,
            "evaluated": Evaluated(**json.loads(row["evaluated"])) if row["evaluated"] else None,
        }
    )
