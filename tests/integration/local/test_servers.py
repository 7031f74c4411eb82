"""PostgreSQL and NATS as child processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from saucer.local.process import Server, ServerStartError
from saucer.local.servers import NatsServer, PostgresServer, TritonServer, ensure_database
from saucer.local.triton_env import TritonEnvironment, TritonEnvironmentError, ensure_triton_environment
from tests.support.servers import ROOT, TRITON_CONSTRAINTS, TRITON_ENVIRONMENT, NewDatabase

# A process that starts one server, tells its process id, and waits to be killed.
PARENT = """
import asyncio, sys
from pathlib import Path
from tests.integration.local.test_servers import new_server

async def main():
    server = new_server(sys.argv[1], Path(sys.argv[2]))
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def folder(servers_dir: Path, request: pytest.FixtureRequest) -> Path:
    name: str = request.node.name
    return servers_dir / name.replace("[", "-").replace("]", "")


def new_server(kind: str, folder: Path) -> Server:
    match kind:
        case "postgres":
            return PostgresServer(folder, fast=True)
        case "nats":
            return NatsServer(folder)
        case _:
            return TritonServer(folder, folder / "repository", TritonEnvironment(TRITON_ENVIRONMENT))


def processes_in(folder: Path) -> set[int]:
    """Ids of the processes that work in the folder or below; a zombie works nowhere."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (process / "cwd").readlink().is_relative_to(folder):
                found.add(int(process.name))
    return found


async def test_postgres_keeps_data_and_port_over_a_restart(folder: Path) -> None:
    server = PostgresServer(folder, fast=True)
    await server.start()
    before = await server.database("kept")
    connection = await asyncpg.connect(before)
    await connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
    await connection.close()
    await server.stop()
    again = PostgresServer(folder, fast=True)
    await again.start()
    connection = await asyncpg.connect(before)
    assert await connection.fetchval("SELECT answer FROM t") == 42
    await connection.close()
    assert await again.database("kept") == before
    await again.stop()


async def test_nats_keeps_messages_and_port_over_a_restart(folder: Path) -> None:
    server = NatsServer(folder)
    await server.start()
    before = server.uri
    client = await nats_client(before)
    await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
    await client.jetstream().publish("kept", b"1")
    await client.close()
    await server.stop()
    again = NatsServer(folder)
    await again.start()
    client = await nats_client(before)
    assert (await client.jetstream().stream_info("KEPT")).state.messages == 1
    await client.close()
    await again.stop()


async def nats_client(uri: str) -> Client:
    client = Client()
    await client.connect(uri, allow_reconnect=False)
    return client


@pytest.mark.parametrize("kind", ["postgres", "nats"])
async def test_a_stop_leaves_no_process(kind: str, folder: Path) -> None:
    server = new_server(kind, folder)
    await server.start()
    assert processes_in(folder)
    await server.stop()
    assert processes_in(folder) == set()
    assert not server.running


@pytest.mark.parametrize("kind", ["postgres", "nats", "triton"])
@pytest.mark.usefixtures("triton_environment")
async def test_a_killed_parent_leaves_no_process(kind: str, folder: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, kind, str(folder), stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    # A successor waits until the former server has ended, so it can neither share its data nor find its port taken.
    successor = new_server(kind, folder)
    await successor.start()
    assert pid not in processes_in(folder)
    await successor.stop()
    assert processes_in(folder) == set()


@pytest.mark.parametrize("kind", ["postgres", "nats"])
async def test_a_killed_server_starts_again(kind: str, folder: Path) -> None:
    server = new_server(kind, folder)
    await server.start()
    ports = server.ports
    server.kill()
    assert await server.wait() == -signal.SIGKILL
    await server.start()
    assert server.ports == ports
    await server.stop()


async def test_a_server_that_ignores_its_stop_signal_is_killed(folder: Path) -> None:
    server = PostgresServer(folder, fast=True)
    server.stop_timeout_s = 0.2
    await server.start()
    os.kill(server.pid, signal.SIGSTOP)
    await server.stop()
    assert processes_in(folder) == set()
    await server.start()  # it recovers, and frees the shared memory that the killed one left
    await server.stop()


async def test_a_second_server_in_the_same_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saucer.local.process.PREDECESSOR_S", 0.1)
    server = NatsServer(folder)
    await server.start()
    with pytest.raises(ServerStartError, match="another server runs in"):
        await NatsServer(folder).start()
    await server.stop()


def occupy(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("not a folder")


async def test_a_start_that_fails_says_why(folder: Path) -> None:
    server = NatsServer(folder)
    occupy(folder / "jetstream")
    with pytest.raises(ServerStartError, match=r"nats ended with 1\.(?s:.*)not a directory"):
        await server.start()
    assert not server.running


async def test_postgres_is_asked_for_a_password_and_listens_on_loopback_only(postgres: PostgresServer) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.uri("postgres", "postgres", "wrong"))
    connection = await asyncpg.connect(postgres.admin_uri)
    assert await connection.fetchval("SHOW listen_addresses") == "127.0.0.1"
    assert await connection.fetchval("SHOW unix_socket_directories") == ""
    assert await connection.fetchval("SHOW max_connections") == "200"
    await connection.close()


async def test_nats_is_asked_for_a_password(nats: NatsServer) -> None:
    client = Client()
    with pytest.raises(NatsError):
        await client.connect(
            f"nats://127.0.0.1:{nats.ports['client']}", allow_reconnect=False, max_reconnect_attempts=0
        )


async def test_nats_writes_before_it_acknowledges_and_takes_8_mb(nats: NatsServer) -> None:
    client = await nats_client(nats.uri)
    assert client.max_payload == 8 * 2**20
    await client.close()
    assert "sync_interval: always" in (nats.data_dir / "nats.conf").read_text()


def test_secrets_are_readable_by_their_owner_only(postgres: PostgresServer, nats: NatsServer) -> None:
    secrets = [postgres.data_dir / "passwords.json", nats.data_dir / "passwords.json", nats.data_dir / "nats.conf"]
    assert [oct(path.stat().st_mode & 0o777) for path in secrets] == ["0o600"] * 3


async def test_a_role_enters_its_own_database_only(postgres: PostgresServer, new_database: NewDatabase) -> None:
    mine, other = await new_database(), await new_database()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(mine, database=other.rpartition("/")[2])


async def test_ensuring_a_database_twice_at_once_keeps_it_and_takes_the_new_password(postgres: PostgresServer) -> None:
    await asyncio.gather(*(ensure_database(postgres.admin_uri, "twice", "first") for _ in range(4)))
    await ensure_database(postgres.admin_uri, "twice", "it's %s another")
    connection = await asyncpg.connect(postgres.uri("twice", "twice", "it's %s another"))
    await connection.close()


@pytest.mark.parametrize("name", ["", "Upper", "a-b", 'a"b', "9a", "a" * 64])
async def test_a_database_name_that_needs_quotes_is_refused(name: str, postgres: PostgresServer) -> None:
    with pytest.raises(ValueError, match="not a database name"):
        await ensure_database(postgres.admin_uri, name, "p")


async def test_another_process_finds_a_server_by_its_folder(nats: NatsServer) -> None:
    assert NatsServer(nats.data_dir).uri == nats.uri


def test_a_triton_environment_that_is_there_is_left_alone(triton_environment: TritonEnvironment) -> None:
    said: list[str] = []
    again = ensure_triton_environment(triton_environment.folder, TRITON_CONSTRAINTS, said.append)
    assert again == triton_environment
    assert said == []


def test_a_triton_environment_that_fails_says_why_and_is_made_again(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("./missing-1.0-py3-none-any.whl\n")
    for _ in range(2):
        said: list[str] = []
        with pytest.raises(TritonEnvironmentError, match=r"could not install constraints.txt(?s:.*)missing-1.0"):
            ensure_triton_environment(tmp_path / "environment", constraints, said.append)
        assert said[0] == "Making Triton's Python environment in environment."
