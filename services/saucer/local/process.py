"""A server program as a child process: ports, a log, one instance per folder, a stop that leaves nothing.

A server has a folder of its own, `<data_dir>`:

    ports.json  what it listened on last; taken again if free
    lock        locked (flock) by the server's processes themselves, for as long as one of them lives; holds its id

and logs to `<data_dir>/../logs/<name>.log`.
"""

import asyncio
import contextlib
import fcntl
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from saucer.local.ports import LOOPBACK, choose_ports, release_ports, remembered_ports

POLL_S = 0.03
PREDECESSOR_S = 15.0  # how long start() waits for a former server in the same folder to end; then it fails
GROUP_S = 2.0  # how long a server's own children may outlive it; then they are killed
LOG_BYTES = 16 * 2**20  # a log longer than this is set aside as `.log.1` at the next start
LOG_TAIL_LINES = 15

_SPAWN = Path(__file__).with_name("spawn.py")


class ServerStartError(Exception):
    """A server did not start; the message says why, with the end of its log."""


class Server:
    """Base of the servers below. Not safe for concurrent start and stop.

    Call `start` from a thread that lives as long as the server should (the event loop's usually does): the kernel ends
    the server when that thread ends (see spawn.py).
    """

    name: str
    port_names: tuple[str, ...]
    stop_signal: signal.Signals  # asks for a graceful end; sent by the kernel too when our process dies
    start_timeout_s = 30.0
    stop_timeout_s = 5.0  # from the stop signal to SIGKILL

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.log_path = self.data_dir.parent / "logs" / f"{self.name}.log"
        # Known without a start here, too: another process may ask where the server listens.
        self.ports = remembered_ports(self.data_dir / "ports.json")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process id. Raises RuntimeError before the first start."""
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Starts the server and returns once it answers. Raises ServerStartError, OSError without a free port.

        Nothing runs then.
        """
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with _folder_lock(self.data_dir) as lock:
            await self._wait_for_lock(lock)
            await self._prepare()
            self.ports = choose_ports(self.data_dir / "ports.json", self.port_names)
            self._process = self._spawn(self._command(), self._environment(), lock)
            os.pwrite(lock, f"{self._process.pid}\n".encode(), 0)
        try:
            await self._wait_until_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Asks the server to end, kills it after `stop_timeout_s`, and returns when none of its processes is left.

        Its ports are anybody's then.
        """
        if self._process is None:
            return
        try:
            await self._end()
        finally:
            release_ports(self.ports.values())

    async def _end(self) -> None:
        process = self._started()
        if process.poll() is None:
            process.send_signal(self.stop_signal)
        if await self._ended_within(self.stop_timeout_s) and await self._unlocked_within(GROUP_S):
            return
        self.kill()
        await self.wait()
        if not await self._unlocked_within(GROUP_S):
            raise RuntimeError(f"{self.name}: a process of it survived SIGKILL")

    def kill(self) -> None:
        """Sends SIGKILL to the server and its children, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._started().pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Waits for the server's end, however it comes about; its exit status (negative: the signal)."""
        process = self._started()
        await _eventually(lambda: process.poll() is not None, math.inf)
        return process.returncode

    async def _prepare(self) -> None:
        """What must be on disk before the first start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> Mapping[str, str]:
        return os.environ

    def _user(self) -> tuple[int, int]:
        """User and group id to run as; -1 for those of this process."""
        return -1, -1

    async def _ready(self) -> bool:
        """Asks the server itself whether it serves."""
        raise NotImplementedError

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process

    def _spawn_command(self, command: Sequence[str]) -> list[str]:
        uid, gid = self._user()
        settings = [self.stop_signal.value, os.getpid(), uid, gid]
        return [sys.executable, "-I", "-S", str(_SPAWN), *map(str, settings), *command]

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str], lock: int) -> subprocess.Popen[bytes]:
        with _log_file(self.log_path) as log:
            return subprocess.Popen(
                self._spawn_command(command),
                cwd=self.data_dir,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # a Ctrl-C is for our process, which then stops this one in its order
            )

    async def _wait_for_lock(self, lock: int) -> None:
        def free() -> bool:
            if _try_lock(lock):
                os.ftruncate(lock, 0)
                return True
            _kill_orphans(lock)
            return False

        if not await _eventually(free, PREDECESSOR_S):
            raise ServerStartError(f"{self.name}: another server runs in {self.data_dir}")

    async def _unlocked_within(self, timeout_s: float) -> bool:
        with _folder_lock(self.data_dir) as lock:
            return await _eventually(lambda: _try_lock(lock), timeout_s)

    async def _ended_within(self, timeout_s: float) -> bool:
        return await _eventually(lambda: self._started().poll() is not None, timeout_s)

    async def _wait_until_ready(self) -> None:
        process = self._started()
        try:
            async with asyncio.timeout(self.start_timeout_s):
                while not await self._ready():
                    if process.poll() is not None:
                        raise ServerStartError(
                            f"{self.name} ended with {process.returncode}. {_log_tail(self.log_path)}"
                        )
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            message = f"{self.name} did not answer within {self.start_timeout_s:.0f} s. {_log_tail(self.log_path)}"
            raise ServerStartError(message) from None


async def http_status(port: int, path: str) -> int | None:
    """Status code of a GET from a server on this machine; None if there is no HTTP answer."""
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return None
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n".encode())
        line = (await reader.readline()).split()
        return int(line[1]) if len(line) > 1 else None
    except OSError:
        return None
    finally:
        writer.close()


async def _eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while not condition():
        if loop.time() >= end:
            return False
        await asyncio.sleep(POLL_S)
    return True


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[int]:
    """The folder's lock file, open; a lock taken on it lasts while this or a process that inherited it has it open."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kill_orphans(lock: int) -> None:
    """Ends what a former server left if it died without ending its children, as a killed Triton does.

    While its group has members, the kernel gives the server's process id to nobody else.
    """
    written = os.pread(lock, 32, 0).strip()
    if written and not _lives(int(written)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(written), signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie does not: it has ended, and its parent has not asked yet. Without /proc it counts as alive.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True


def _log_file(path: Path) -> BinaryIO:
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _log_tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return f"The end of {path}:\n" + "\n".join(lines)
