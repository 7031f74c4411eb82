"""Servers of a benchmark's own, and what starts services on them."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import nats as nats_client

from saucer.lib import auth
from saucer.lib.stream import ensure_stream
from saucer.local.servers import NatsServer, PostgresServer
from tests.support.services import KEY_ID, ServiceRunner, Tokens


@contextlib.asynccontextmanager
async def service_runner(folder: Path) -> AsyncIterator[ServiceRunner]:
    """PostgreSQL and NATS that keep their data below `folder`."""
    postgres, nats = PostgresServer(folder / "postgres", fast=True), NatsServer(folder / "nats")
    await postgres.start()
    await nats.start()
    try:
        (folder / "keys").mkdir()
        auth.generate_keys(folder / "keys" / "private.pem", folder / "keys" / "keys.json", KEY_ID)
        client = await nats_client.connect(nats.uri)
        await ensure_stream(client.jetstream())
        await client.close()
        yield ServiceRunner(lambda: postgres.database(f"bench_{uuid4().hex}"), nats.uri, Tokens(folder / "keys"))
    finally:
        await nats.stop()
        await postgres.stop()
