"""The SQL of instances: they are read and written with their deployment, whose row the caller has locked to write."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from saucer.lib.postgres import Connection
from saucer.publishing.instances import Instance, InstanceState

# A column of a deployment, which read() reads.
COLUMN = (
    "(SELECT jsonb_agg(to_jsonb(instance) - 'deployment_id' ORDER BY since, triton_id) FROM instance "
    "WHERE instance.deployment_id = deployment.deployment_id) AS instances"
)


async def put(connection: Connection, deployment_id: str, instances: Sequence[Instance]) -> None:
    """These, and no others."""
    await connection.execute(
        """
        WITH held AS (
            SELECT * FROM jsonb_to_recordset($2::jsonb) AS held (
                version_number integer, triton_id text, state text, since timestamptz, probed_at timestamptz,
                attempts integer, retry_at timestamptz, message text
            )
        ), gone AS (
            DELETE FROM instance WHERE deployment_id = $1
            AND (version_number, triton_id) NOT IN (SELECT version_number, triton_id FROM held)
        )
        INSERT INTO instance (deployment_id, version_number, triton_id, state, since, probed_at, attempts, retry_at,
                              message)
        SELECT $1, held.* FROM held
        ON CONFLICT (deployment_id, version_number, triton_id) DO UPDATE SET
            state = excluded.state, since = excluded.since, probed_at = excluded.probed_at,
            attempts = excluded.attempts, retry_at = excluded.retry_at, message = excluded.message
        """,
        deployment_id,
        json.dumps([asdict(item) for item in instances], default=datetime.isoformat),
    )


def read(column: str | None) -> tuple[Instance, ...]:
    """Of one deployment, those that have been there longest first."""
    return tuple(_instance(fields) for fields in json.loads(column or "[]"))


def _instance(fields: dict[str, Any]) -> Instance:
    return Instance(
        fields["version_number"],
        fields["triton_id"],
        InstanceState(fields["state"]),
        datetime.fromisoformat(fields["since"]),
        _moment(fields["probed_at"]),
        fields["attempts"],
        _moment(fields["retry_at"]),
        fields["message"],
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
