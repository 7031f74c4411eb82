"""The SQL of deployments, and of what publishing knows of models."""

import json
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime, timedelta

import asyncpg

from saucer.lib.postgres import Connection
from saucer.publishing.domain import (
    PLACED,
    ChargeStatus,
    Deployment,
    DeploymentState,
    EndReason,
    Evaluation,
    Form,
    Model,
    Parity,
)

_COLUMNS = (
    "deployment_id, account_id, request_id, form, evaluation_id, classes, thresholds, state, former_state, "
    "charge_status, start_number, start_request_id, hold_micros, price_per_hour_micros, currency, missing_micros, "
    "charged_ms, probed_at, progressed_at, active_at, parity, probe_key, attempts, retry_at, stop_requested, "
    "end_reason, error_message, created_at, moved_at, ended_at, revision"
)


# Models


async def insert_model(connection: Connection, model: Model) -> None:
    """A model never changes, so the second time changes nothing."""
    await connection.execute(
        """
        INSERT INTO model (model_id, account_id, classes, files, manifest_key, manifest_sha256, image_prefix)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (model_id) DO NOTHING
        """,
        model.model_id,
        model.account_id,
        json.dumps(model.classes),
        json.dumps(model.files),
        model.manifest_key,
        model.manifest_sha256,
        model.image_prefix,
    )


async def get_model(connection: Connection, model_id: str) -> Model | None:
    """A model."""
    row = await connection.fetchrow(
        "SELECT model_id, account_id, classes, files, manifest_key, manifest_sha256, image_prefix "
        "FROM model WHERE model_id = $1",
        model_id,
    )
    if row is None:
        return None
    return Model(
        **{
            **row,
            "model_id": str(row["model_id"]),
            "account_id": str(row["account_id"]),
            "classes": tuple(json.loads(row["classes"])),
            "files": {name: (key, sha256) for name, (key, sha256) in json.loads(row["files"]).items()},
        }
    )


async def put_evaluation(connection: Connection, evaluation: Evaluation, ended_at: datetime) -> None:
    """Keeps the one of a model that ended last."""
    await connection.execute(
        """
        INSERT INTO evaluation (model_id, evaluation_id, recommended, recommended_overall, ended_at)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (model_id) DO UPDATE
        SET evaluation_id = excluded.evaluation_id, recommended = excluded.recommended,
            recommended_overall = excluded.recommended_overall, ended_at = excluded.ended_at
        WHERE evaluation.ended_at <= excluded.ended_at
        """,
        evaluation.model_id,
        evaluation.evaluation_id,
        json.dumps(evaluation.recommended),
        evaluation.recommended_overall,
        ended_at,
    )


async def evaluation_of(connection: Connection, model_id: str) -> Evaluation | None:
    """The newest that succeeded."""
    row = await connection.fetchrow(
        "SELECT model_id, evaluation_id, recommended, recommended_overall FROM evaluation WHERE model_id = $1",
        model_id,
    )
    if row is None:
        return None
    return Evaluation(
        str(row["evaluation_id"]), str(row["model_id"]), json.loads(row["recommended"]), row["recommended_overall"]
    )


# Deployments


async def insert(connection: Connection, deployment: Deployment) -> bool:
    """False if the account has used the request id before.

    Raises asyncpg.UniqueViolationError if the name is taken.
    """
    places = ", ".join(f"${number}" for number in range(1, 33))
    return bool(
        await connection.fetchval(
            f"""
            INSERT INTO deployment ({_COLUMNS}, display_name) VALUES ({places})
            ON CONFLICT (account_id, request_id) DO NOTHING RETURNING true
            """,  # noqa: S608 - column names, no values
            *_values(deployment),
            deployment.form.display_name,
        )
    )


async def update(connection: Connection, deployment: Deployment) -> Deployment:
    """Writes a deployment at the next revision; the caller has locked the row.

    Raises asyncpg.UniqueViolationError if it leaves its rest and the name is taken by now.
    """
    row = await connection.fetchrow(
        f"""
        UPDATE deployment SET (
            form, evaluation_id, classes, thresholds, state, former_state, charge_status, start_number,
            start_request_id, hold_micros, price_per_hour_micros, currency, missing_micros, charged_ms, probed_at,
            progressed_at, active_at, parity, probe_key, attempts, retry_at, stop_requested, end_reason,
            error_message, created_at, moved_at, ended_at, revision
        ) = ($4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25,
             $26, $27, $28, $29, $30, $31::bigint + 1)
        WHERE deployment_id = $1 AND account_id = $2 AND request_id = $3 AND revision = $31 RETURNING {_COLUMNS}
        """,  # noqa: S608 - column names
        *_values(deployment),
    )
    assert row is not None, "the row is locked"
    return _deployment(row)


async def get(connection: Connection, deployment_id: str, *, lock: bool = False) -> Deployment | None:
    """A deployment; locked until the transaction ends, if asked."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM deployment WHERE deployment_id = $1 {'FOR UPDATE' if lock else ''}",  # noqa: S608 - column names
        deployment_id,
    )
    return _deployment(row) if row else None


async def of_request(connection: Connection, account_id: str, request_id: str) -> Deployment | None:
    """The deployment that a request id made."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM deployment WHERE account_id = $1 AND request_id = $2",  # noqa: S608 - column names
        account_id,
        request_id,
    )
    return _deployment(row) if row else None


async def list_deployments(
    connection: Connection, account_id: str, *, after: tuple[datetime, str] | None, limit: int
) -> list[Deployment]:
    """Newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_COLUMNS} FROM deployment
        WHERE account_id = $1 AND ($2::timestamptz IS NULL OR (created_at, deployment_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, deployment_id DESC LIMIT $4
        """,  # noqa: S608 - column names
        account_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_deployment(row) for row in rows]


async def in_states(
    connection: Connection, states: Collection[DeploymentState], *, limit: int | None = None
) -> list[Deployment]:
    """Those that have been in their state longest first; all of them without a limit."""
    rows = await connection.fetch(
        f"""
        SELECT {_COLUMNS} FROM deployment
        WHERE state = ANY($1) AND state NOT IN ('STOPPED', 'FAILED', 'REFUSED')
        ORDER BY moved_at, deployment_id LIMIT $2
        """,  # noqa: S608 - column names
        list(states),
        limit,
    )
    return [_deployment(row) for row in rows]


async def unmoved(connection: Connection, state: DeploymentState, before: datetime, limit: int) -> list[str]:
    """Ids of deployments that have been in a state since before a time, longest first."""
    rows = await connection.fetch(
        "SELECT deployment_id FROM deployment WHERE state = $1 AND moved_at < $2 ORDER BY moved_at LIMIT $3",
        state,
        before,
        limit,
    )
    return [str(row["deployment_id"]) for row in rows]


async def placed(connection: Connection) -> int:
    """How many take room in Triton."""
    return int(await connection.fetchval("SELECT count(*) FROM deployment WHERE state = ANY($1)", list(PLACED)))


# Which replica acts


async def take_lease(connection: Connection, holder: str, length: timedelta) -> bool:
    """Takes or prolongs it, by the database's own clock; False while another replica has it."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO reconcile_lease (holder, expires_at) VALUES ($1, clock_timestamp() + $2)
            ON CONFLICT (only_one) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
            WHERE reconcile_lease.holder = $1 OR reconcile_lease.expires_at < clock_timestamp()
            RETURNING true
            """,
            holder,
            length,
        )
    )


async def lock_lease(connection: Connection, holder: str) -> bool:
    """Whether the holder still has it; until the transaction ends, no other can take it."""
    return bool(
        await connection.fetchval(
            "SELECT true FROM reconcile_lease WHERE holder = $1 AND expires_at >= clock_timestamp() FOR UPDATE", holder
        )
    )


async def release_lease(connection: Connection, holder: str) -> None:
    """Another replica may take it at once."""
    await connection.execute("DELETE FROM reconcile_lease WHERE holder = $1", holder)


async def put_trace(connection: Connection, deployment_id: str, traceparent: str) -> None:
    """Of the present start; that of the one before is forgotten."""
    await connection.execute(
        """
        INSERT INTO deployment_trace (deployment_id, traceparent) VALUES ($1, $2)
        ON CONFLICT (deployment_id) DO UPDATE SET traceparent = excluded.traceparent
        """,
        deployment_id,
        traceparent,
    )


async def trace_of(connection: Connection, deployment_id: str) -> str | None:
    """Of the present start."""
    found: str | None = await connection.fetchval(
        "SELECT traceparent FROM deployment_trace WHERE deployment_id = $1", deployment_id
    )
    return found


def _values(deployment: Deployment) -> list[object]:
    return [
        deployment.deployment_id,
        deployment.account_id,
        deployment.request_id,
        json.dumps(asdict(deployment.form)),
        deployment.evaluation_id,
        json.dumps(deployment.classes),
        json.dumps(deployment.thresholds),
        deployment.state,
        deployment.former_state,
        deployment.charge_status,
        deployment.start_number,
        deployment.start_request_id,
        deployment.hold_micros,
        deployment.price_per_hour_micros,
        deployment.currency,
        deployment.missing_micros,
        deployment.charged_ms,
        deployment.probed_at,
        deployment.progressed_at,
        deployment.active_at,
        json.dumps(asdict(deployment.parity)) if deployment.parity else None,
        deployment.probe_key,
        deployment.attempts,
        deployment.retry_at,
        deployment.stop_requested,
        deployment.end_reason,
        deployment.error_message,
        deployment.created_at,
        deployment.moved_at,
        deployment.ended_at,
        deployment.revision,
    ]


def _pairs(values: list[list[object]]) -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(str(threshold))) for name, threshold in values)


def _deployment(row: asyncpg.Record) -> Deployment:
    form = json.loads(row["form"])
    parity = json.loads(row["parity"]) if row["parity"] else None
    return Deployment(
        **{
            **row,
            "deployment_id": str(row["deployment_id"]),
            "account_id": str(row["account_id"]),
            "request_id": str(row["request_id"]),
            "evaluation_id": str(row["evaluation_id"]),
            "form": Form(**{**form, "thresholds": _pairs(form["thresholds"])}),
            "classes": tuple(json.loads(row["classes"])),
            "thresholds": _pairs(json.loads(row["thresholds"])),
            "state": DeploymentState(row["state"]),
            "former_state": DeploymentState(row["former_state"]) if row["former_state"] else None,
            "charge_status": ChargeStatus(row["charge_status"]),
            "start_request_id": str(row["start_request_id"]) if row["start_request_id"] else None,
            "parity": Parity(**{**parity, "worst_images": tuple(parity["worst_images"])}) if parity else None,
            "end_reason": EndReason(row["end_reason"]) if row["end_reason"] else None,
        }
    )
