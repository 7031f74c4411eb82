"""The training child as its parent holds it: a process, lines in, lines out.

The child ends when its standard input does, so a parent that is killed leaves no orphan.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import structlog

from saucer.worker import job as protocol
from saucer.worker.job import MAX_LINE_BYTES, PRECISION_VARIABLE, BadMessageError, Message, Order, Ready

# Importing torch and MMDetection takes 10 s on a quiet machine.
START_S = 300.0
# What the child's libraries print goes into a file of its own; a longer one is emptied between jobs.
MAX_LOG_BYTES = 10 * 1024 * 1024
# Of that file, what is told when the child dies.
TAIL_BYTES = 2_000
PROGRAM: tuple[str, ...] = (sys.executable, "-m", "saucer.worker.child")
# Of several processes, for one job: the first holds what there is to say. None is started again, the attempt is.
LAUNCHER = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0"),
    # Whatever the machine's name resolves to.
    "--local-addr=127.0.0.1",
)

log = structlog.get_logger()


class ChildGoneError(Exception):
    """The child ended; the text says how."""


class ChildProcess:
    """One child. Reports are read one after the other with next()."""

    def __init__(self, process: asyncio.subprocess.Process, log_file: Path) -> None:
        self._process = process
        self._log_file = log_file
        self.precision = ""

    @classmethod
    async def start(cls, log_file: Path, processes: int = 1, *, precision: str = "") -> "ChildProcess":
        """Starts a child and waits until it can take a job. Raises ChildGoneError if it never can.

        Of several processes it is a group's launcher, and takes one job: see ranks.py. Without a precision it finds the
        faster one.
        """
        errors = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        try:
            process = await asyncio.create_subprocess_exec(
                *program(processes),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=MAX_LINE_BYTES + 1,
                env={**os.environ, PRECISION_VARIABLE: precision} if precision else None,
                # A Ctrl-C is for the worker, and the launcher would take it too.
                start_new_session=processes > 1,
            )
        finally:
            os.close(errors)
        child = cls(process, log_file)
        try:
            async with asyncio.timeout(START_S):
                ready = await child.next()
        except BaseException as error:
            await child.kill()
            if isinstance(error, TimeoutError):
                raise ChildGoneError(f"It was not ready within {START_S:.0f} s.") from error
            raise
        if not isinstance(ready, Ready):
            await child.kill()
            raise ChildGoneError(f"It began with {ready}.")
        child.precision = ready.precision
        log.info("child_ready", pid=process.pid, precision=ready.precision)
        return child

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    async def send(self, order: Order) -> None:
        """Raises ChildGoneError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(protocol.encode(order))
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChildGoneError(await self._how_it_ended()) from error

    async def next(self) -> Message:
        """The next report. Raises ChildGoneError when there will be none, BadMessageError for a line that is none."""
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
        except ValueError as error:
            raise BadMessageError(f"a line of more than {MAX_LINE_BYTES} bytes") from error
        if not line.endswith(b"\n"):
            raise ChildGoneError(await self._how_it_ended())
        return protocol.decode(line)

    async def kill(self) -> None:
        """Ends it, whatever it does, and waits until it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def trim_log(self) -> None:
        """Between jobs."""
        if self._log_file.stat().st_size > MAX_LOG_BYTES:
            os.truncate(self._log_file, 0)

    async def _how_it_ended(self) -> str:
        code = await self._process.wait()
        log.error("child_ended", exit_code=code, last_words=_tail(self._log_file))
        if code >= 0:
            return f"The training process ended with exit code {code}."
        name = signal.Signals(-code).name
        hint = " The machine may be out of memory: choose a smaller batch_size or a larger spec." if code == -9 else ""
        return f"The training process was ended by {name}.{hint}"


def program(processes: int) -> tuple[str, ...]:
    """Of a child, or of the launcher of so many."""
    return PROGRAM if processes == 1 else (*LAUNCHER, f"--nproc-per-node={processes}", *PROGRAM[1:])


def _tail(file: Path) -> str:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return content.read().decode(errors="replace")
