"""Real servers for tests, started once a session when first asked for; data and logs lie under a temporary folder."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from saucer.local.servers import NatsServer, PostgresServer, TritonServer
from saucer.local.triton_env import TritonEnvironment, ensure_triton_environment
from saucer.publishing.triton import TritonClient

ROOT = Path(__file__).parents[2]
TRITON_ENVIRONMENT = ROOT / ".venv-triton"
TRITON_CONSTRAINTS = ROOT / "triton-constraints.txt"

NewDatabase = Callable[[], Awaitable[str]]


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    # Not pytest's own folder: as root, PostgreSQL runs as another user, and pytest closes its folder to others.
    folder = Path(tempfile.mkdtemp(prefix="saucer-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
async def postgres(servers_dir: Path) -> AsyncIterator[PostgresServer]:
    server = PostgresServer(servers_dir / "postgres", fast=True)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def new_database(postgres: PostgresServer) -> NewDatabase:
    """`await new_database()` is the URI of a database of its own, with a role that owns it."""

    async def create() -> str:
        return await postgres.database(f"test_{uuid4().hex}")

    return create


@pytest.fixture(scope="session")
async def nats(servers_dir: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(servers_dir / "nats")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def triton_environment() -> TritonEnvironment:
    return ensure_triton_environment(TRITON_ENVIRONMENT, TRITON_CONSTRAINTS)


@pytest.fixture(scope="session")
async def triton(servers_dir: Path, triton_environment: TritonEnvironment) -> AsyncIterator[TritonServer]:
    """Its model repository is `triton.repository`; tests use model names of their own in it."""
    server = TritonServer(servers_dir / "triton", servers_dir / "triton-repository", triton_environment)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def triton_client(triton: TritonServer) -> AsyncIterator[TritonClient]:
    async with TritonClient(triton.grpc_address, triton.control_key) as client:
        yield client
