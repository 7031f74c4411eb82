"""The SQL of registered Tritons, and of the room that they have."""

from dataclasses import astuple

import asyncpg

from saucer.lib.postgres import Connection
from saucer.publishing.domain import Triton
from saucer.publishing.instances import LEAVE_ATTEMPTS

# Every registration takes this advisory lock, so that two at once are compared with each other.
REGISTRATION_LOCK = 7_283_746_502

_COLUMNS = "triton_id, address, repository, region_id, spec_id, room, threads, copies, gpu, draining, live"


async def lock_registrations(connection: Connection) -> None:
    """No other Triton is registered until the transaction ends."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", REGISTRATION_LOCK)


async def put(connection: Connection, triton: Triton) -> Triton:
    """Registers it, or changes what is known of it; whether it is drained stays, and, at the same address, is live."""
    row = await connection.fetchrow(
        f"""
        INSERT INTO triton ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        ON CONFLICT (triton_id) DO UPDATE SET
            address = excluded.address, repository = excluded.repository, region_id = excluded.region_id,
            spec_id = excluded.spec_id, room = excluded.room, threads = excluded.threads,
            copies = excluded.copies, gpu = excluded.gpu,
            live = triton.live AND triton.address = excluded.address
        RETURNING {_COLUMNS}
        """,  # noqa: S608 - column names
        *astuple(triton),
    )
    assert row is not None, "it is inserted or updated"
    return Triton(**row)


async def drain(connection: Connection, triton_id: str, draining: bool) -> Triton | None:
    """Whether it takes more; None: there is none of this id."""
    row = await connection.fetchrow(
        f"UPDATE triton SET draining = $2 WHERE triton_id = $1 RETURNING {_COLUMNS}",  # noqa: S608 - column names
        triton_id,
        draining,
    )
    return Triton(**row) if row else None


async def lock(connection: Connection, triton_id: str) -> Triton | None:
    """Nothing is placed there until the transaction ends; None: there is none of this id."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM triton WHERE triton_id = $1 FOR UPDATE",  # noqa: S608 - column names
        triton_id,
    )
    return Triton(**row) if row else None


async def remove(connection: Connection, triton_id: str) -> None:
    """The caller has locked it, and found nothing there."""
    await connection.execute("DELETE FROM triton WHERE triton_id = $1", triton_id)


async def report(connection: Connection, triton_id: str, live: bool) -> None:
    """Whether it answers."""
    await connection.execute("UPDATE triton SET live = $2 WHERE triton_id = $1 AND live <> $2", triton_id, live)


async def list_tritons(connection: Connection) -> list[Triton]:
    """All of them, by id: they are few."""
    return [Triton(**row) for row in await connection.fetch(f"SELECT {_COLUMNS} FROM triton ORDER BY triton_id")]  # noqa: S608 - column names


async def used(connection: Connection) -> dict[str, int]:
    """Deployments that each has, those on their way there included; a candidate beside its own deployment is not."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT triton_id, count(DISTINCT deployment_id) AS used FROM instance GROUP BY triton_id"
    )
    return {row["triton_id"]: row["used"] for row in rows}


async def refusing(connection: Connection) -> dict[str, int]:
    """How many instances are stuck on each on which some are."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT triton_id, count(*) AS stuck FROM instance WHERE attempts >= $1 GROUP BY triton_id", LEAVE_ATTEMPTS
    )
    return {row["triton_id"]: row["stuck"] for row in rows}


async def room(connection: Connection, region_id: str, spec_id: str) -> dict[str, int]:
    """Of those of a spec that answer and are not drained: how many more deployments each takes.

    None is removed until the transaction ends.
    """
    await connection.execute(
        "SELECT FROM triton WHERE (region_id, spec_id) = ($1, $2) ORDER BY triton_id FOR KEY SHARE", region_id, spec_id
    )
    taken = await used(connection)
    return {
        triton.triton_id: triton.room - taken.get(triton.triton_id, 0)
        for triton in await list_tritons(connection)
        if (triton.region_id, triton.spec_id) == (region_id, spec_id) and triton.live and not triton.draining
    }
