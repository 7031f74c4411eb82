"""A port is one owner's from the moment it is chosen, whichever process asks."""

import json
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from saucer.local import ports
from saucer.local.ports import LOOPBACK, choose_port, choose_ports, release_ports

# Says whether this other process may have the port.
OTHER = """
import sys
from saucer.local import ports

port = int(sys.argv[1])
ports.PORTS, ports.PORT_ATTEMPTS = range(port, port + 1), 1
try:
    print(ports.choose_port() == port)
except OSError:
    print(False)
"""


@pytest.fixture
def remembered(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "ports.json"
    yield path
    release_ports(ports.remembered_ports(path).values())


def another_process_may_have(port: int) -> bool:
    told = subprocess.run([sys.executable, "-c", OTHER, str(port)], capture_output=True, check=True, text=True)
    return told.stdout.strip() == "True"


def test_a_port_that_nobody_listens_on_yet_is_refused_to_another_process_until_it_is_released() -> None:
    port = choose_port()
    assert not another_process_may_have(port)
    release_ports([port])
    assert another_process_may_have(port)


def test_a_port_of_one_owner_is_not_chosen_for_another_of_the_same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    port = choose_port()
    monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
    monkeypatch.setattr(ports, "PORT_ATTEMPTS", 1)
    with pytest.raises(OSError, match="no free port found"):
        choose_port()
    release_ports([port])
    assert choose_port() == port
    release_ports([port])


def test_a_port_where_somebody_listens_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        port = listening.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        monkeypatch.setattr(ports, "PORT_ATTEMPTS", 1)
        with pytest.raises(OSError, match="no free port found"):
            choose_port()


def test_a_server_listens_on_a_port_that_is_kept_for_it() -> None:
    port = choose_port()
    with socket.create_server((LOOPBACK, port)):
        assert not another_process_may_have(port)
    release_ports([port])


def test_two_choosers_with_the_same_seed_choose_other_ports(tmp_path: Path) -> None:
    chosen = []
    for name in ("first", "second"):
        random.seed(0)  # as hypothesis does
        chosen.append(choose_ports(tmp_path / name, ["grpc", "metrics", "http"]))
        release_ports(chosen[-1].values())
    assert chosen[0] != chosen[1]


def test_remembered_ports_are_taken_again(remembered: Path) -> None:
    first = choose_ports(remembered, ("a", "b"))
    assert first["a"] != first["b"]
    assert choose_ports(remembered, ("a", "b")) == first
    release_ports(first.values())
    assert choose_ports(remembered, ("a", "b")) == first


def test_remembered_ports_are_replaced_when_unreadable_or_taken(remembered: Path) -> None:
    remembered.write_text("{")
    first = choose_ports(remembered, ("a",))
    assert json.loads(remembered.read_text()) == first
    release_ports(first.values())
    with socket.create_server((LOOPBACK, first["a"])):
        assert choose_ports(remembered, ("a",)) != first


def test_when_one_of_several_ports_is_not_to_be_had_none_is_kept(
    remembered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = choose_port()
    release_ports([port])
    monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
    monkeypatch.setattr(ports, "PORT_ATTEMPTS", 1)
    with pytest.raises(OSError, match="no free port found"):
        choose_ports(remembered, ("a", "b"))
    assert another_process_may_have(port)
