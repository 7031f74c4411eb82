"""The SQL of evaluations."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Any

import asyncpg

from saucer.evaluation.domain import Evaluation, EvaluationState, Source, StoredFile, Summary, Sums
from saucer.lib.postgres import Connection

_COLUMNS = (
    "evaluation_id, account_id, task_id, run_id, model_id, dataset_version_id, source, state, error_message, attempts, "
    "crashes, summary, scored_sha256, validation_sha256, truth_sha256, duration_ms, created_at, ended_at, revision, "
    "by_prediction, traceparent"
)
_IDS = ("evaluation_id", "account_id", "task_id", "run_id", "model_id")


async def insert(connection: Connection, evaluation: Evaluation) -> None:
    """A second evaluation of the same run changes nothing."""
    await connection.execute(
        """
        INSERT INTO evaluation (evaluation_id, account_id, task_id, run_id, model_id, dataset_version_id, source, state,
                                created_at, retry_at, by_prediction, traceparent)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10, $11) ON CONFLICT DO NOTHING
        """,
        evaluation.evaluation_id,
        evaluation.account_id,
        evaluation.task_id,
        evaluation.run_id,
        evaluation.model_id,
        evaluation.dataset_version_id,
        json.dumps(asdict(evaluation.source)),
        evaluation.state,
        evaluation.created_at,
        evaluation.by_prediction,
        evaluation.traceparent,
    )


async def claim(connection: Connection, token: str, now: datetime, expires_at: datetime) -> Evaluation | None:
    """The one that has waited longest of those that nobody scores, for the token alone; one more attempt of it."""
    row = await connection.fetchrow(
        f"""
        UPDATE evaluation SET claim_token = $1, claim_expires_at = $3, attempts = attempts + 1
        WHERE evaluation_id = (
            SELECT evaluation_id FROM evaluation
            WHERE state = 'SCORING' AND retry_at <= $2 AND (claim_expires_at IS NULL OR claim_expires_at <= $2)
            ORDER BY retry_at, evaluation_id LIMIT 1 FOR UPDATE SKIP LOCKED
        ) RETURNING {_COLUMNS}
        """,  # noqa: S608 - column names, no values
        token,
        now,
        expires_at,
    )
    return _evaluation(row) if row else None


async def prolong(connection: Connection, token: str, expires_at: datetime) -> bool:
    """False if the claim was lost."""
    return bool(
        await connection.fetchval(
            "UPDATE evaluation SET claim_expires_at = $2 WHERE claim_token = $1 RETURNING true", token, expires_at
        )
    )


async def give_back(connection: Connection, token: str, retry_at: datetime, *, attempt: bool, crash: bool) -> bool:
    """Ends a claim; False if it was lost. `attempt`: it counts; `crash`: its child process died."""
    return bool(
        await connection.fetchval(
            """
            UPDATE evaluation SET claim_token = NULL, claim_expires_at = NULL, retry_at = $2,
                                  attempts = attempts - $3::integer, crashes = crashes + $4::integer
            WHERE claim_token = $1 RETURNING true
            """,
            token,
            retry_at,
            0 if attempt else 1,
            int(crash),
        )
    )


async def end(connection: Connection, evaluation: Evaluation, token: str) -> bool:
    """Writes an evaluation that came to rest; False if the claim was lost, or it is at rest already."""
    return bool(
        await connection.fetchval(
            """
            UPDATE evaluation SET state = $3, summary = $4, scored_sha256 = $5, validation_sha256 = $6,
                                  truth_sha256 = $7, error_message = $8, duration_ms = $9, ended_at = $10,
                                  revision = $11, claim_token = NULL, claim_expires_at = NULL
            WHERE evaluation_id = $1 AND claim_token = $2 AND state = 'SCORING' AND revision = $11 - 1 RETURNING true
            """,
            evaluation.evaluation_id,
            token,
            evaluation.state,
            json.dumps(evaluation.summary.as_json()) if evaluation.summary else None,
            evaluation.sums.scored,
            evaluation.sums.validation,
            evaluation.sums.truth,
            evaluation.error_message,
            evaluation.duration_ms,
            evaluation.ended_at,
            evaluation.revision,
        )
    )


async def get(connection: Connection, evaluation_id: str) -> Evaluation | None:
    """One evaluation."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM evaluation WHERE evaluation_id = $1",  # noqa: S608 - column names
        evaluation_id,
    )
    return _evaluation(row) if row else None


async def list_evaluations(
    connection: Connection,
    account_id: str,
    *,
    task_id: str | None,
    model_id: str | None,
    after: tuple[datetime, str] | None,
    limit: int,
    most_classes: int,
) -> tuple[list[Evaluation], bool]:
    """Newest first, one at least, of so many classes in all; and whether more follow."""
    rows = await connection.fetch(
        f"""
        WITH page AS (
            SELECT *, jsonb_array_length(source -> 'classes') AS classes FROM evaluation
            WHERE account_id = $1 AND ($2::uuid IS NULL OR task_id = $2) AND ($3::uuid IS NULL OR model_id = $3)
              AND ($4::timestamptz IS NULL OR (created_at, evaluation_id) < ($4, $5::uuid))
            ORDER BY created_at DESC, evaluation_id DESC LIMIT $6 + 1
        ), counted AS (
            SELECT *, row_number() OVER newest AS place, sum(classes) OVER newest AS classes_so_far,
                   count(*) OVER () AS there
            FROM page WINDOW newest AS (ORDER BY created_at DESC, evaluation_id DESC)
        )
        SELECT {_COLUMNS}, there FROM counted
        WHERE place = 1 OR (place <= $6 AND classes_so_far <= $7)
        ORDER BY place
        """,  # noqa: S608 - column names
        account_id,
        task_id,
        model_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
        most_classes,
    )
    return [_evaluation(row) for row in rows], bool(rows) and rows[0]["there"] > len(rows)


def _evaluation(row: asyncpg.Record) -> Evaluation:
    columns = {name: value for name, value in row.items() if name != "there"}
    sums = Sums(**{name: columns.pop(f"{name}_sha256") for name in ("scored", "validation", "truth")})
    return Evaluation(
        **{
            **columns,
            **{name: str(row[name]) for name in _IDS},
            "source": _source(json.loads(row["source"])),
            "state": EvaluationState(row["state"]),
            "sums": sums,
            "summary": Summary.from_json(json.loads(row["summary"])) if row["summary"] else None,
        }
    )


def _source(stored: dict[str, Any]) -> Source:
    files = {name: StoredFile(**stored[name]) for name in ("manifest", "test", "validation")}
    return Source(**{**stored, **files, "classes": tuple(stored["classes"])})
