"""PostgreSQL: a pool, transactions that carry their time, and migrations that only go forward."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from saucer.lib.clock import Clock
    from saucer.lib.tls import Identity

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
else:
    Connection = asyncpg.Connection
    Pool = asyncpg.Pool

# Pools × services × replicas stay below PostgreSQL's max_connections (200 on one machine).
POOL_SIZE = 10
# A statement that takes longer is cancelled and its transaction undone.
COMMAND_TIMEOUT_S = 20.0
# The same of one migration, which may build an index of a large table, and of a replica that waits for another's.
MIGRATION_TIMEOUT_S = 3600.0
# Between attempts to reach a server that is not up yet; services start in any order.
CONNECT_RETRY_S = 0.5
# Every migration of every replica takes this advisory lock first, so that two starting at once do not race.
MIGRATION_LOCK = 7_283_746_501

log = structlog.get_logger()


class _Session(asyncpg.Connection):
    """A pooled connection that is given back as it is."""

    def get_reset_query(self) -> str:
        """None: nothing here changes a session, so the reset would only be one more round trip for each transaction."""
        return ""


@dataclass
class Transaction:
    """One transaction: its connection, its time, and whether it wrote events."""

    connection: Connection
    now: datetime
    published: bool = False


@dataclass
class Database:
    """A service's own database. Its use cases open the transactions."""

    pool: Pool
    clock: Clock
    # Set after a commit that wrote events: the relay waits on it, with a poll as the net.
    published: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Begins; commits when the block ends, undoes it when the block raises. Wakes the outbox after the commit."""
        async with self.reading() as connection:
            async with connection.transaction():
                tx = Transaction(connection, await self.clock.now(connection))
                yield tx
            if tx.published:
                self.published.set()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection for single statements, above all those that change nothing: each commits by itself."""
        try:
            async with self.pool.acquire() as connection:
                yield connection
        except asyncpg.InternalClientError as error:
            # asyncpg's word for a pooled connection that the server cut at this very moment: an interface error like
            # any other connection's loss, so that those who try again later need to know of those alone.
            raise asyncpg.InterfaceError(f"The connection to PostgreSQL was lost: {error}") from error


async def connect(url: str, clock: Clock, *, pool_size: int = POOL_SIZE, identity: Identity | None = None) -> Database:
    """Waits until the server answers. Raises asyncpg's error if it answers and refuses the role or database."""
    # Without an identity the URL says, as libpq does it (sslmode=…).
    tls: dict[str, Any] = {} if identity is None else {"ssl": identity.client_context()}
    while True:
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=pool_size,
                command_timeout=COMMAND_TIMEOUT_S,
                connection_class=_Session,
                **tls,
            )
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError, TimeoutError) as error:
            log.warning("postgres_not_up_yet", error=str(error))
            await asyncio.sleep(CONNECT_RETRY_S)
        else:
            return Database(pool, clock)


async def migrate(database: Database, *packages: str) -> None:
    """Applies the numbered .sql files of each package's schema folder that this database has not seen, in order.

    Args:
        packages: import names of packages with a folder `schema`; their files are remembered by package and name.

    Raises LockNotAvailableError where others hold a table for longer than COMMAND_TIMEOUT_S, TimeoutError.
    """
    async with database.pool.acquire() as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK, timeout=MIGRATION_TIMEOUT_S)
        try:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS migration (name text PRIMARY KEY, applied_at timestamptz NOT NULL)"
            )
            seen = {row["name"] for row in await connection.fetch("SELECT name FROM migration")}
            for package in packages:
                files = sorted(resources.files(package).joinpath("schema").iterdir(), key=lambda file: file.name)
                for file in files:
                    name = f"{package}/{file.name}"
                    if file.name.endswith(".sql") and name not in seen:
                        await _apply(connection, database.clock, name, file.read_text())
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", MIGRATION_LOCK)


async def _apply(connection: Connection, clock: Clock, name: str, sql: str) -> None:
    async with connection.transaction():
        # Whoever wants a table that a migration waits for waits behind it.
        await connection.execute("SELECT set_config('lock_timeout', $1, true)", f"{round(COMMAND_TIMEOUT_S * 1000)}ms")
        await connection.execute(sql, timeout=MIGRATION_TIMEOUT_S)
        await connection.execute(
            "INSERT INTO migration (name, applied_at) VALUES ($1, $2)", name, await clock.now(connection)
        )
    log.info("migration_applied", name=name)
