"""The SQL of a deployment's versions and of what changed it; the caller has locked the deployment's row to write."""

import json
from datetime import datetime, timedelta

import asyncpg

from saucer.lib.postgres import Connection
from saucer.lib.retention import Forget
from saucer.publishing.domain import UpdateAction, UpdateRecord, Version
from saucer.publishing.store.deployments import pairs

# For so long a call that found nothing to change is known when it comes once more.
UNCHANGED_KEEP = timedelta(days=30)
RETENTION = Forget(
    "unchanged_request",
    UNCHANGED_KEEP,
    "DELETE FROM unchanged_request WHERE ctid IN (SELECT ctid FROM unchanged_request WHERE created_at < $1 LIMIT $2)",
)

_VERSION = "number, model_id, evaluation_id, classes, thresholds, created_at"
_RECORD = "number, action, author, from_version, to_version, percent, detail, created_at, request_id"


async def insert_version(connection: Connection, deployment_id: str, version: Version, now: datetime) -> None:
    """Raises asyncpg.UniqueViolationError if the number is used."""
    await connection.execute(
        f"INSERT INTO deployment_version (deployment_id, {_VERSION}) VALUES ($1, $2, $3, $4, $5, $6, $7)",  # noqa: S608 - column names
        deployment_id,
        version.number,
        version.model_id,
        version.evaluation_id,
        json.dumps(version.classes),
        json.dumps(version.thresholds),
        now,
    )


async def last_number(connection: Connection, deployment_id: str) -> int:
    """Of the newest version."""
    return int(
        await connection.fetchval("SELECT max(number) FROM deployment_version WHERE deployment_id = $1", deployment_id)
    )


async def get_version(connection: Connection, deployment_id: str, number: int) -> Version | None:
    """A version as it was asked for."""
    row = await connection.fetchrow(
        f"SELECT {_VERSION} FROM deployment_version WHERE deployment_id = $1 AND number = $2",  # noqa: S608 - column names
        deployment_id,
        number,
    )
    return _version(row) if row else None


async def list_versions(
    connection: Connection, deployment_id: str, *, before: int | None, limit: int
) -> list[tuple[Version, datetime]]:
    """With the times at which they were asked for; newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_VERSION} FROM deployment_version
        WHERE deployment_id = $1 AND ($2::integer IS NULL OR number < $2) ORDER BY number DESC LIMIT $3
        """,  # noqa: S608 - column names
        deployment_id,
        before,
        limit,
    )
    return [(_version(row), row["created_at"]) for row in rows]


async def insert_record(connection: Connection, deployment_id: str, record: UpdateRecord) -> None:
    """At the next number; the record's own is not looked at."""
    await connection.execute(
        """
        INSERT INTO update_record (deployment_id, number, request_id, action, author, from_version, to_version, percent,
                                   detail, created_at)
        SELECT $1, coalesce(max(number), 0) + 1, $2, $3, $4, $5, $6, $7, $8, $9
        FROM update_record WHERE deployment_id = $1
        """,
        deployment_id,
        record.request_id,
        record.action,
        record.author,
        record.from_version,
        record.to_version,
        record.percent,
        record.detail,
        record.created_at,
    )


async def insert_unchanged(
    connection: Connection, deployment_id: str, request_id: str, action: UpdateAction, now: datetime
) -> None:
    """A call that found nothing to change."""
    await connection.execute(
        "INSERT INTO unchanged_request (deployment_id, request_id, action, created_at) VALUES ($1, $2, $3, $4)",
        deployment_id,
        request_id,
        action,
        now,
    )


async def action_of(connection: Connection, deployment_id: str, request_id: str) -> UpdateAction | None:
    """What the call with this request id was to change of the deployment; None: there was none."""
    action = await connection.fetchval(
        """
        SELECT action FROM update_record WHERE deployment_id = $1 AND request_id = $2
        UNION ALL
        SELECT action FROM unchanged_request WHERE deployment_id = $1 AND request_id = $2
        """,
        deployment_id,
        request_id,
    )
    return None if action is None else UpdateAction(action)


async def list_records(
    connection: Connection, deployment_id: str, *, before: int | None, limit: int
) -> list[UpdateRecord]:
    """Newest first."""
    rows = await connection.fetch(
        f"""
        SELECT {_RECORD} FROM update_record
        WHERE deployment_id = $1 AND ($2::integer IS NULL OR number < $2) ORDER BY number DESC LIMIT $3
        """,  # noqa: S608 - column names
        deployment_id,
        before,
        limit,
    )
    return [_record(row) for row in rows]


def _record(row: asyncpg.Record) -> UpdateRecord:
    request_id = None if row["request_id"] is None else str(row["request_id"])
    return UpdateRecord(**{**row, "action": UpdateAction(row["action"]), "request_id": request_id})


def _version(row: asyncpg.Record) -> Version:
    return Version(
        row["number"],
        str(row["model_id"]),
        str(row["evaluation_id"]),
        tuple(json.loads(row["classes"])),
        pairs(json.loads(row["thresholds"])),
    )
