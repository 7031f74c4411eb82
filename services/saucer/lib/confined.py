"""Child processes for what users brought: a file that breaks a decoder, or asks for all memory, breaks no service.

1. A child gets no environment but how to find Python and its libraries: no token, and no address of another part.
2. It is told its limits and its job in one line on standard input, and bounds itself before it does anything
   (confinement.py). What it answers on standard output is between it and who asked.
3. It is over when the block is in which it was started, however that ends; if the service is killed, so is it.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from saucer.lib.confinement import ChildLimits, first_line

# The longest line that can be read from a child.
MAX_LINE_BYTES = 8 * 1024**2
# Of what a child wrote to standard error, kept for the log.
MAX_STDERR_BYTES = 4096
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
# One core for one child, unless it starts threads itself; and each thread's stack counts against the memory.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)

log = structlog.get_logger()


class ChildDiedError(Exception):
    """The child ended without a word, or said what makes no sense."""


class ChildTimedOutError(Exception):
    """The child was killed at its time limit."""


@asynccontextmanager
async def confined_child(
    module: str,
    job: dict[str, Any],
    limits: ChildLimits,
    *,
    environment: Mapping[str, str] | None = None,
    descriptors: Collection[int] = (),
) -> AsyncIterator[asyncio.StreamReader]:
    """Runs a module's main() for the length of the block, which is to read what it says to the end.

    Args:
        module: it calls confinement.begin() first.
        job: JSON, for the module alone to understand.
        environment: more of it.
        descriptors: of open files, which the child gets under the same numbers.

    Raises:
        ChildTimedOutError: in the block or after it. ChildDiedError: after the block, if the exit status is not 0.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # or the folder it is started in would be searched for modules
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        pass_fds=tuple(descriptors),
        cwd="/",
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        | _ONE_THREAD
        | dict(environment or {}),
        start_new_session=True,  # a Ctrl-C is for the service, which ends its children itself
    )
    assert process.stdout is not None
    assert process.stderr is not None
    stderr = asyncio.create_task(last_of(process.stderr, MAX_STDERR_BYTES))
    try:
        async with asyncio.timeout(limits.time_limit_s) as limit:
            await _tell(process, first_line(limits, job, os.getpid()))
            yield process.stdout
            await process.wait()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise ChildTimedOutError(f"{module} took longer than {limits.time_limit_s:g} s") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        said = await stderr
    if process.returncode != 0:
        log.error("child_died", module=module, status=process.returncode, stderr=said.decode(errors="replace"))
        raise ChildDiedError(f"{module} ended with {process.returncode}")


async def last_of(stream: asyncio.StreamReader, size_bytes: int) -> bytes:
    """The end of what is said until the stream ends."""
    kept = b""
    while data := await stream.read(65536):
        kept = (kept + data)[-size_bytes:]
    return kept


async def _tell(process: asyncio.subprocess.Process, line: bytes) -> None:
    assert process.stdin is not None
    # A child that is dead already is noticed when it is heard.
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(line)
        await process.stdin.drain()
        process.stdin.close()
