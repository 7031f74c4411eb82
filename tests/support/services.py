"""Services as they run, inside the test's process, on real PostgreSQL and NATS."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
import nats as nats_client
import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError, ServerError

from saucer.lib import auth, grpc_client
from saucer.lib.config import CallingSettings, ProcessSettings
from saucer.lib.ids import new_id
from saucer.lib.run import Process
from saucer.lib.stream import STREAM, ensure_stream
from saucer.local.ports import choose_port
from saucer.local.servers import NatsServer
from tests.support.events import until
from tests.support.servers import NewDatabase

KEY_ID = "test"
S = TypeVar("S", bound=ProcessSettings)
Metadata = tuple[tuple[str, str], ...]


def free_address() -> str:
    """host:port where nothing listens."""
    return f"127.0.0.1:{choose_port()}"


@dataclass(frozen=True)
class Tokens:
    """Mints tokens of every role with a key pair of the test's own."""

    folder: Path
    public_name: str = "keys.json"
    key_id: str = KEY_ID

    @property
    def public_keys_file(self) -> Path:
        return self.folder / self.public_name

    @property
    def revoked_tokens_file(self) -> Path:
        return self.folder / "revoked.txt"

    def mint(self, role: auth.Role, account_id: str | None = None, *, token_id: str | None = None) -> str:
        return auth.mint(
            (self.folder / "private.pem").read_bytes(),
            self.key_id,
            token_id=token_id or new_id(),
            subject=f"test-{role}",
            role=role,
            account_id=account_id,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )

    def metadata(self, role: auth.Role, account_id: str | None = None) -> Metadata:
        return (("authorization", f"Bearer {self.mint(role, account_id)}"),)

    def file(self, role: auth.Role) -> Path:
        file = self.folder / f"{role}.token"
        file.write_text(self.mint(role))
        return file


@pytest.fixture(scope="session")
def tokens(servers_dir: Path) -> Tokens:
    folder = servers_dir / "keys"
    folder.mkdir()
    auth.generate_keys(folder / "private.pem", folder / "keys.json", KEY_ID)
    return Tokens(folder)


@pytest.fixture
async def jetstream(nats: NatsServer) -> AsyncIterator[JetStreamContext]:
    """JetStream with an empty stream and no consumers."""
    client = await nats_client.connect(nats.uri)
    context: JetStreamContext = client.jetstream()
    with suppress(NotFoundError):
        await context.delete_stream(STREAM)

    async def made() -> bool:
        # Until the deleted one's folder is gone, NATS refuses to make it anew.
        with suppress(ServerError):
            await ensure_stream(context)
            return True
        return False

    await until(made)
    yield context
    await client.close()


@dataclass(frozen=True)
class Running:
    """A service that serves."""

    address: str
    channel: grpc.aio.Channel


@dataclass(frozen=True)
class ServiceRunner:
    """Starts services with settings that a test needs not care for."""

    new_database: NewDatabase
    nats_url: str
    tokens: Tokens

    @asynccontextmanager
    async def __call__(
        self, name: str, kind: type[S], wire: Callable[[Process, S], Awaitable[None]], **settings: Any
    ) -> AsyncIterator[Running]:
        """Runs a service's wire() until the block ends; `settings` override or add to the usual ones."""
        usual: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "nats_url": self.nats_url,
            "public_keys_file": self.tokens.public_keys_file,
            "revoked_tokens_file": self.tokens.revoked_tokens_file,
        }
        if issubclass(kind, CallingSettings):
            usual["token_file"] = self.tokens.file(auth.Role.SERVICE)
        if "database_url" not in settings:
            usual["database_url"] = await self.new_database()
        read = kind(**(usual | settings))
        process = Process(name, read.identity)
        async with process.stack:
            await wire(process, read)
            assert process.address is not None
            async with grpc_client.channel(process.address, read.identity) as channel:
                yield Running(process.address, channel)


@pytest.fixture
def run_service(
    new_database: NewDatabase, nats: NatsServer, jetstream: JetStreamContext, tokens: Tokens
) -> ServiceRunner:
    return ServiceRunner(new_database, nats.uri, tokens)
