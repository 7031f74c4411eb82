"""The SQL of deployments, and of what publishing knows of models."""

import json
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from saucer.lib.postgres import Connection
from saucer.publishing.domain import (
    Candidate,
    ChargeStatus,
    Deployment,
    DeploymentState,
    EndReason,
    Evaluation,
    Form,
    Model,
    Parity,
    Version,
)
from saucer.publishing.store import instances as instance_store

_COLUMNS = (
    "deployment_id, account_id, request_id, form, version_number, model_id, evaluation_id, classes, thresholds, "
    "parity, probe_key, candidate, triton_id, state, former_state, charge_status, start_number, start_request_id, "
    "hold_micros, price_per_hour_micros, currency, missing_micros, charged_ms, charged_rest_us, probed_at, "
    "progressed_at, active_at, used_at, stop_requested, end_reason, error_message, created_at, moved_at, ended_at, "
    "deleted_at, revision"
)
_READ = f"{_COLUMNS}, {instance_store.COLUMN}"

# What an update writes, and how many there are in all; the last is the revision.
_CHANGING = _COLUMNS.removeprefix("deployment_id, account_id, request_id, ").removesuffix(", revision")
_COUNT = len(_COLUMNS.split(", "))
_PLACES = ", ".join(f"${number}" for number in range(4, _COUNT + 1))


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
    values = [*_values(deployment), json.dumps(asdict(deployment.form)), deployment.form.display_name]
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    return bool(
        await connection.fetchval(
            f"""
            INSERT INTO deployment ({_COLUMNS}, created_form, display_name) VALUES ({places})
            ON CONFLICT (account_id, request_id) DO NOTHING RETURNING true
            """,  # noqa: S608 - column names, no values
            *values,
        )
    )


async def update(connection: Connection, deployment: Deployment) -> Deployment:
    """Writes a deployment at the next revision; the caller has locked the row.

    Raises asyncpg.UniqueViolationError if it leaves its rest and the name is taken by now.
    """
    await instance_store.put(connection, deployment.deployment_id, deployment.instances)
    row = await connection.fetchrow(
        f"""
        UPDATE deployment SET ({_CHANGING}, revision) = ({_PLACES}::bigint + 1)
        WHERE deployment_id = $1 AND account_id = $2 AND request_id = $3 AND revision = ${_COUNT} RETURNING {_READ}
        """,  # noqa: S608 - column names
        *_values(deployment),
    )
    assert row is not None, "the row is locked"
    return _deployment(row)


async def get(connection: Connection, deployment_id: str, *, lock: bool = False) -> Deployment | None:
    """A deployment, deleted ones too; locked until the transaction ends, if asked."""
    if lock:
        # First: a statement that waits for the row would read the instances as they were before it waited.
        await connection.execute("SELECT FROM deployment WHERE deployment_id = $1 FOR UPDATE", deployment_id)
    row = await connection.fetchrow(
        f"SELECT {_READ} FROM deployment WHERE deployment_id = $1",  # noqa: S608 - column names
        deployment_id,
    )
    return _deployment(row) if row else None


async def of_request(connection: Connection, account_id: str, request_id: str) -> tuple[Deployment, Form] | None:
    """The deployment that a request id made, deleted or not, and the form that it was made with."""
    row = await connection.fetchrow(
        f"""
        SELECT {_READ}, coalesce(created_form, form) AS created_form FROM deployment
        WHERE account_id = $1 AND request_id = $2
        """,  # noqa: S608 - column names
        account_id,
        request_id,
    )
    return (_deployment(row), _form(row["created_form"])) if row else None


async def list_deployments(
    connection: Connection, account_id: str, *, after: tuple[datetime, str] | None, limit: int
) -> list[Deployment]:
    """Newest first, without deleted ones."""
    rows = await connection.fetch(
        f"""
        SELECT {_READ} FROM deployment
        WHERE account_id = $1 AND deleted_at IS NULL
            AND ($2::timestamptz IS NULL OR (created_at, deployment_id) < ($2, $3::uuid))
        ORDER BY created_at DESC, deployment_id DESC LIMIT $4
        """,  # noqa: S608 - column names
        account_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_deployment(row) for row in rows]


async def in_states(connection: Connection, states: Collection[DeploymentState]) -> list[Deployment]:
    """Those that have been in their state longest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_READ} FROM deployment
        WHERE state = ANY($1) AND state NOT IN ('STOPPED', 'FAILED', 'REFUSED')
        ORDER BY moved_at, deployment_id
        """,  # noqa: S608 - column names
        list(states),
    )
    return [_deployment(row) for row in rows]


async def queued(connection: Connection, limit: int) -> list[Deployment]:
    """Those that have been QUEUED longest first; of each spec in a region so many."""
    rows = await connection.fetch(
        f"""
        SELECT {_READ} FROM deployment WHERE deployment_id IN (
            SELECT deployment_id FROM (
                SELECT deployment_id, row_number() OVER (
                    PARTITION BY form ->> 'region_id', form ->> 'spec_id' ORDER BY moved_at, deployment_id
                ) AS place
                FROM deployment WHERE state = 'QUEUED'
            ) AS waiting
            WHERE place <= $1
        )
        ORDER BY moved_at, deployment_id
        """,  # noqa: S608 - column names
        limit,
    )
    return [_deployment(row) for row in rows]


async def mark_used(connection: Connection, deployment_ids: Collection[str], now: datetime) -> None:
    """At no revision of its own: it is nothing that events tell."""
    await connection.execute(
        """
        UPDATE deployment SET used_at = $2
        WHERE deployment_id = ANY($1::uuid[]) AND state = 'ACTIVE' AND used_at < $2
        """,
        list(deployment_ids),
        now,
    )


async def unmoved(connection: Connection, state: DeploymentState, before: datetime, limit: int) -> list[str]:
    """Ids of deployments that have been in a state since before a time, longest first."""
    rows = await connection.fetch(
        "SELECT deployment_id FROM deployment WHERE state = $1 AND moved_at < $2 ORDER BY moved_at LIMIT $3",
        state,
        before,
        limit,
    )
    return [str(row["deployment_id"]) for row in rows]


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
        deployment.version.number,
        deployment.version.model_id,
        deployment.version.evaluation_id,
        json.dumps(deployment.version.classes),
        json.dumps(deployment.version.thresholds),
        json.dumps(asdict(deployment.version.parity)) if deployment.version.parity else None,
        deployment.version.probe_key,
        _candidate_json(deployment),
        _one_triton(deployment),
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
        deployment.charged_rest_us,
        deployment.probed_at if deployment.state is DeploymentState.ACTIVE else None,
        deployment.progressed_at,
        deployment.active_at,
        deployment.used_at,
        deployment.stop_requested,
        deployment.end_reason,
        deployment.error_message,
        deployment.created_at,
        deployment.moved_at,
        deployment.ended_at,
        deployment.deleted_at,
        deployment.revision,
    ]


def _one_triton(deployment: Deployment) -> str:
    """Where it was probed last, or is at all: former code knows of one."""
    own = deployment.own_instances
    last = [item for item in own if item.probed_at == deployment.probed_at]
    return last[0].triton_id if last else ""


def pairs(values: list[list[object]]) -> tuple[tuple[str, float], ...]:
    """Thresholds by class, from JSON."""
    return tuple((str(name), float(str(threshold))) for name, threshold in values)


def _deployment(row: asyncpg.Record) -> Deployment:
    fields = dict(row)
    del fields["triton_id"], fields["probed_at"]  # the instances say so
    fields.pop("created_form", None)
    version = Version(
        fields.pop("version_number"),
        str(fields.pop("model_id")),
        str(fields.pop("evaluation_id")),
        tuple(json.loads(fields.pop("classes"))),
        pairs(json.loads(fields.pop("thresholds"))),
        _parity(json.loads(fields.pop("parity") or "null")),
        fields.pop("probe_key"),
    )
    return Deployment(
        **{
            **fields,
            "deployment_id": str(row["deployment_id"]),
            "account_id": str(row["account_id"]),
            "request_id": str(row["request_id"]),
            "form": _form(row["form"]),
            "version": version,
            "candidate": _candidate(row["candidate"], version),
            "instances": instance_store.read(row["instances"]),
            "state": DeploymentState(row["state"]),
            "former_state": DeploymentState(row["former_state"]) if row["former_state"] else None,
            "charge_status": ChargeStatus(row["charge_status"]),
            "start_request_id": str(row["start_request_id"]) if row["start_request_id"] else None,
            "end_reason": EndReason(row["end_reason"]) if row["end_reason"] else None,
        }
    )


def _form(text: str) -> Form:
    fields = json.loads(text)
    return Form(**{**fields, "thresholds": pairs(fields["thresholds"])})


def _parity(fields: dict[str, Any] | None) -> Parity | None:
    return Parity(**{**fields, "worst_images": tuple(fields["worst_images"])}) if fields else None


def _candidate_json(deployment: Deployment) -> str | None:
    candidate = deployment.candidate
    if candidate is None:
        return None
    beside = deployment.candidate_instances
    former = {"triton_id": beside[0].triton_id if beside else _one_triton(deployment)}
    return json.dumps(asdict(candidate) | former | {"proposed_at": candidate.proposed_at.isoformat()})


def _candidate(text: str | None, own: Version) -> Candidate | None:
    """For former code, what is moved to another Triton is a candidate of the same number; it is an instance."""
    if text is None or json.loads(text)["version"]["number"] == own.number:
        return None
    fields = json.loads(text)
    version = fields["version"]
    return Candidate(
        Version(
            **{
                **version,
                "classes": tuple(version["classes"]),
                "thresholds": pairs(version["thresholds"]),
                "parity": _parity(version["parity"]),
            }
        ),
        fields["percent"],
        fields["ready"],
        datetime.fromisoformat(fields["proposed_at"]),
    )
