"""The SQL of gates, and of the runtimes that were chosen for models."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

import asyncpg

from saucer.lib.postgres import Connection
from saucer.publishing.domain import Parity
from saucer.publishing.gate import Gate, RuntimeChoice
from saucer.publishing.parity import ImageParity
from saucer.serving.runtime import Tolerance


async def put_choice(
    connection: Connection, model_id: str, region_id: str, spec_id: str, choice: RuntimeChoice, now: datetime
) -> None:
    """In place of a former one."""
    await connection.execute(
        """
        INSERT INTO model_runtime (model_id, region_id, spec_id, runtime, measured_ms, reason, complete, chosen_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (model_id, region_id, spec_id) DO UPDATE
        SET runtime = excluded.runtime, measured_ms = excluded.measured_ms, reason = excluded.reason,
            complete = excluded.complete, chosen_at = excluded.chosen_at
        """,
        model_id,
        region_id,
        spec_id,
        choice.runtime,
        json.dumps(choice.measured_ms),
        choice.reason,
        choice.complete,
        now,
    )


async def get_choice(
    connection: Connection, model_id: str, region_id: str, spec_id: str, since: datetime | None = None
) -> RuntimeChoice | None:
    """None: it has not been measured on this spec yet; or not since then, and that is incomplete."""
    row = await connection.fetchrow(
        """
        SELECT runtime, measured_ms, reason, complete FROM model_runtime
        WHERE model_id = $1 AND region_id = $2 AND spec_id = $3
        AND (complete OR $4::timestamptz IS NULL OR chosen_at > $4)
        """,
        model_id,
        region_id,
        spec_id,
        since,
    )
    return _choice({**row, "measured_ms": json.loads(row["measured_ms"])}) if row else None


async def put_gate(
    connection: Connection, deployment_id: str, version_number: int, triton_id: str, gate: Gate, now: datetime
) -> None:
    """The last of a version; that of a former start, or of another Triton, is forgotten."""
    await connection.execute(
        """
        INSERT INTO gate (deployment_id, version_number, triton_id, result, replayed_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (deployment_id, version_number) DO UPDATE
        SET triton_id = excluded.triton_id, result = excluded.result, replayed_at = excluded.replayed_at
        """,
        deployment_id,
        version_number,
        triton_id,
        json.dumps(asdict(gate) | {"replayed_at": None}),
        now,
    )


async def gates_of(connection: Connection, deployment_id: str) -> dict[int, Gate]:
    """By version number."""
    rows = await connection.fetch(
        "SELECT version_number, result, replayed_at FROM gate WHERE deployment_id = $1", deployment_id
    )
    return {row["version_number"]: _gate(row) for row in rows}


def _gate(row: asyncpg.Record) -> Gate:
    fields = json.loads(row["result"])
    parity: dict[str, Any] = fields["parity"]
    choice: dict[str, Any] = fields["choice"]
    return Gate(
        Parity(**{**parity, "worst_images": tuple(parity["worst_images"])}),
        tuple(ImageParity(**image) for image in fields["worst"]),
        Tolerance(**fields["tolerance"]),
        _choice(choice),
        row["replayed_at"],
    )


def _choice(fields: dict[str, Any]) -> RuntimeChoice:
    return RuntimeChoice(**{**fields, "measured_ms": tuple((name, took) for name, took in fields["measured_ms"])})
