"""Ports of loopback for servers that start later, each kept for its owner until then.

Whoever chooses a port tells others of it first and starts its server after; between the two nothing listens there, and
another stack on the machine would find the port free. So the owner binds a UDP socket to the same number: the kernel
gives that to one process at a time, takes it back however the process ends, and no server of ours speaks UDP.
"""

import contextlib
import errno
import json
import random
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Below Linux's ephemeral range (32768-60999): no outgoing connection can sit on a port wanted again after a restart.
PORTS = range(10_240, 32_768)
PORT_ATTEMPTS = 200  # after so many taken ports, OSError

# By number, those that this process keeps.
_kept: dict[int, socket.socket] = {}


def choose_ports(remembered: Path, names: Sequence[str]) -> dict[str, int]:
    """A port for each name: those written in `remembered` if still free, else others; kept, and written there.

    Raises OSError when no other is free; none is kept then.
    """
    former = remembered_ports(remembered)
    ports: dict[str, int] = {}
    try:
        for name in names:
            wanted = former.get(name)
            ports[name] = wanted if wanted and wanted not in ports.values() and _keep(wanted) else choose_port()
    except OSError:
        release_ports(ports.values())
        raise
    remembered.write_text(json.dumps(ports))
    return ports


def choose_port() -> int:
    """A free port, kept for this process. Raises OSError."""
    # Not the module's generator: hypothesis seeds it, and then two processes of tests would try the same ports.
    for port in random.SystemRandom().sample(PORTS, PORT_ATTEMPTS):
        if port not in _kept and _keep(port):
            return port
    raise OSError(errno.EADDRINUSE, f"no free port found between {PORTS.start} and {PORTS.stop}")


def release_ports(ports: Iterable[int]) -> None:
    """Others may have them; those that are not kept are left alone."""
    for port in ports:
        if (keeper := _kept.pop(port, None)) is not None:
            keeper.close()


def remembered_ports(path: Path) -> dict[str, int]:
    """By name, what choose_ports() wrote there; empty if nothing readable is."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        ports: dict[str, int] = json.loads(path.read_text())
        return ports
    return {}


def _keep(port: int) -> bool:
    """Whether the port is this process's now, or was already, and nobody listens there."""
    if port not in _kept:
        keeper = socket.socket(type=socket.SOCK_DGRAM)
        try:
            keeper.bind((LOOPBACK, port))
        except OSError:
            keeper.close()
            return False
        _kept[port] = keeper
    if _nobody_listens(port):
        return True
    release_ports([port])
    return False


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
