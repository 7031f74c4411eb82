"""Regions, specs and their prices."""

from datetime import datetime

from saucer.billing.domain import Region, Spec
from saucer.lib.postgres import Connection


async def insert_region(connection: Connection, region: Region) -> bool:
    """False if it exists."""
    return bool(
        await connection.fetchval(
            "INSERT INTO region (region_id, display_name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
            region.region_id,
            region.display_name,
        )
    )


async def list_regions(connection: Connection) -> list[Region]:
    """By id."""
    return [
        Region(**row) for row in await connection.fetch("SELECT region_id, display_name FROM region ORDER BY region_id")
    ]


async def region_exists(connection: Connection, region_id: str) -> bool:
    """Whether it does."""
    return bool(await connection.fetchval("SELECT true FROM region WHERE region_id = $1", region_id))


async def insert_spec(connection: Connection, spec: Spec) -> bool:
    """False if it exists."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO spec (region_id, spec_id, display_name, gpus, cpu_cores, max_count, currency)
            VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING true
            """,
            spec.region_id,
            spec.spec_id,
            spec.display_name,
            spec.gpus,
            spec.cpu_cores,
            spec.max_count,
            spec.currency,
        )
    )


async def set_withdrawn(connection: Connection, region_id: str, spec_id: str, *, withdrawn: bool) -> None:
    """From offer, or on it again."""
    await connection.execute(
        "UPDATE spec SET withdrawn = $3 WHERE region_id = $1 AND spec_id = $2", region_id, spec_id, withdrawn
    )


async def insert_price(
    connection: Connection, region_id: str, spec_id: str, starts_at: datetime, price_per_hour_micros: int
) -> bool:
    """False if there is a price from that very time already."""
    return bool(
        await connection.fetchval(
            """
            INSERT INTO price (region_id, spec_id, starts_at, price_per_hour_micros) VALUES ($1, $2, $3, $4)
            ON CONFLICT DO NOTHING RETURNING true
            """,
            region_id,
            spec_id,
            starts_at,
            price_per_hour_micros,
        )
    )


async def price_start(connection: Connection, region_id: str, spec_id: str, now: datetime) -> datetime:
    """Since when the price at `now` of a spec is in force."""
    start = await connection.fetchval(
        "SELECT max(starts_at) FROM price WHERE region_id = $1 AND spec_id = $2 AND starts_at <= $3",
        region_id,
        spec_id,
        now,
    )
    assert isinstance(start, datetime)
    return start


async def list_specs(
    connection: Connection, now: datetime, *, region_id: str | None = None, spec_id: str | None = None
) -> list[Spec]:
    """Those with a price at `now`, withdrawn or not."""
    rows = await connection.fetch(
        """
        SELECT s.region_id, s.spec_id, s.display_name, s.gpus, s.cpu_cores, s.max_count, s.currency, s.withdrawn,
               p.price_per_hour_micros
        FROM spec s
        CROSS JOIN LATERAL (
            SELECT price_per_hour_micros FROM price
            WHERE price.region_id = s.region_id AND price.spec_id = s.spec_id AND starts_at <= $1
            ORDER BY starts_at DESC LIMIT 1
        ) p
        WHERE ($2::text IS NULL OR s.region_id = $2) AND ($3::text IS NULL OR s.spec_id = $3)
        ORDER BY s.region_id, s.spec_id
        """,
        now,
        region_id,
        spec_id,
    )
    return [Spec(**row) for row in rows]
