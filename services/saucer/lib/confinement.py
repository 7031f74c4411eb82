"""The inner side of a child process for what users brought (see confined.py): its first act is to bound itself.

Nothing here but the standard library, and no asyncio: a child begins in a tenth of a second.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

# The service and what it answers come first on a busy machine.
NICENESS = 5
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ChildLimits:
    """Of a child process; what happens at each, its service says."""

    # Of its address space (RLIMIT_AS): MemoryError beyond it.
    memory_bytes: int
    # Of any one file that it writes (RLIMIT_FSIZE): OSError EFBIG beyond it, since Python ignores SIGXFSZ.
    file_bytes: int
    # Then it is killed.
    time_limit_s: float


def first_line(limits: ChildLimits, job: dict[str, Any], parent: int) -> bytes:
    """What a child is told on its standard input."""
    return json.dumps({"limits": asdict(limits), "parent": parent, "job": job}).encode() + b"\n"


def begin() -> tuple[ChildLimits, dict[str, Any]]:
    """Reads the first line, and lives within its limits from then on; ends the process if its parent has ended."""
    told = json.loads(sys.stdin.buffer.readline())
    limits = ChildLimits(**told["limits"])
    os.nice(NICENESS)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    if sys.platform == "linux":
        end_with_parent()
        if os.getppid() != told["parent"]:  # it died before the line above
            sys.exit("the service that asked for this has ended")
    return limits, told["job"]


def end_with_parent() -> None:
    """Makes the end of the process that started this one a SIGKILL of this one (Linux: prctl(2), PR_SET_PDEATHSIG)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def say(value: object) -> None:
    """A JSON line on standard output."""
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()
