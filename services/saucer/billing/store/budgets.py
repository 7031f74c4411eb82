"""Budgets, and what counts against them."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from saucer.billing.domain import Budget
from saucer.lib.postgres import Connection

_BUDGET = "budget_id, account_id, work_id, amount_micros, updated_at"


async def put_budget(connection: Connection, budget: Budget) -> None:
    """Sets it, or sets it anew."""
    await connection.execute(
        f"""
        INSERT INTO budget ({_BUDGET}) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (budget_id)
        DO UPDATE SET amount_micros = excluded.amount_micros, updated_at = excluded.updated_at, removed = false
        """,  # noqa: S608 - column names
        *_values(budget),
    )


async def insert_budget(connection: Connection, budget: Budget) -> None:
    """Changes nothing if there is or was one: who has set or removed it since a start asked for it knows better."""
    await connection.execute(
        f"INSERT INTO budget ({_BUDGET}) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",  # noqa: S608 - column names
        *_values(budget),
    )


def _values(budget: Budget) -> tuple[object, ...]:
    return budget.budget_id, budget.account_id, budget.work_id, budget.amount_micros, budget.updated_at


async def remove_budget(connection: Connection, budget_id: str, now: datetime) -> None:
    """Changes nothing if there is none."""
    await connection.execute("UPDATE budget SET removed = true, updated_at = $2 WHERE budget_id = $1", budget_id, now)


async def exists(connection: Connection, account_id: str) -> bool:
    """Whether any is set for an account or its works."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM budget WHERE account_id = $1 AND NOT removed)", account_id
        )
    )


async def list_budgets(connection: Connection, account_id: str, *, after: str | None, limit: int) -> list[Budget]:
    """By id."""
    rows = await connection.fetch(
        f"""
        SELECT {_BUDGET} FROM budget WHERE account_id = $1 AND NOT removed AND ($2::uuid IS NULL OR budget_id > $2)
        ORDER BY budget_id LIMIT $3
        """,  # noqa: S608 - column names
        account_id,
        after,
        limit,
    )
    return [_budget(row) for row in rows]


async def budgets_over(connection: Connection, account_id: str, work_ids: Sequence[str]) -> list[Budget]:
    """The account's own, and those of these works."""
    rows = await connection.fetch(
        f"SELECT {_BUDGET} FROM budget "  # noqa: S608 - column names
        "WHERE account_id = $1 AND NOT removed AND (work_id IS NULL OR work_id = ANY($2))",
        account_id,
        list(work_ids),
    )
    return [_budget(row) for row in rows]


async def paid_by(connection: Connection, account_id: str, work_ids: Sequence[str]) -> dict[str, int]:
    """What the starts of each of these works of an account have settled and posted, less refunds, in micros."""
    rows = await connection.fetch(
        """
        SELECT work_id, sum(settled_micros + posted_micros - coalesce((
                   SELECT sum(amount_micros) FROM transfer t WHERE t.hold_id = hold.hold_id AND t.kind = 'REFUND'
               ), 0))::bigint AS paid_micros
        FROM hold WHERE account_id = $1 AND work_id = ANY($2) GROUP BY work_id
        """,
        account_id,
        list(work_ids),
    )
    return {str(row["work_id"]): row["paid_micros"] for row in rows}


def _budget(row: asyncpg.Record) -> Budget:
    return Budget(
        **{
            **row,
            "budget_id": str(row["budget_id"]),
            "account_id": str(row["account_id"]),
            "work_id": str(row["work_id"]) if row["work_id"] else None,
        }
    )
