"""docker-compose.yml and deploy/ describe the same processes as the local stack."""

import importlib
import importlib.util
import re
import time
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from saucer.lib import auth
from saucer.lib.config import PREFIX, ProcessSettings
from saucer.local import nats_users
from saucer.local.servers import MAX_CONNECTIONS, NATS_MAX_PAYLOAD_BYTES, NatsServer, TritonServer, triton_arguments
from saucer.local.stack import SERVICES, Stack
from saucer.local.triton_env import TritonEnvironment

PROJECT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
PROCESSES = (*SERVICES, "gateway", "worker")
SECRET = re.compile(r"\$\{(\w*(?:PASSWORD|KEY)\w*)([^}]*)\}")


def container(name: str) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][name]
    return found


def settings_of(name: str) -> set[str]:
    """Names of a container's SAUCER_ settings, as the settings' classes have them."""
    names = container(name).get("environment", {})
    return {variable.removeprefix(PREFIX).lower() for variable in names if variable.startswith(PREFIX)}


def kind_of(name: str) -> type[ProcessSettings]:
    """The class that the process reads its settings with."""
    kind: type[ProcessSettings] = typing.get_type_hints(importlib.import_module(f"saucer.{name}.main").wire)["settings"]
    return kind


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Described, with one worker; nothing is started."""
    home = tmp_path_factory.mktemp("stack")
    stack = Stack(home, PROJECT)
    stack._ports = {name: 10_000 + number for number, name in enumerate(stack._port_names())}
    stack.nats = NatsServer(home / "nats")
    stack.nats.ports = {"client": 4222, "monitor": 8222}
    stack.triton = TritonServer(home / "triton", home / "models", TritonEnvironment(home / "environment"))
    stack.triton.ports = {"http": 8000, "grpc": 8001, "metrics": 8002}
    for server in (stack.nats, stack.triton):
        server.data_dir.mkdir()
    stack._describe(dict.fromkeys(SERVICES, "postgresql://"))
    return stack


def test_compose_has_exactly_the_processes_of_the_stack_and_its_servers(stack: Stack) -> None:
    processes = {name.removesuffix("-1") for name in stack.processes}
    assert processes == set(PROCESSES)
    assert set(COMPOSE["services"]) == processes | {"postgres", "nats", "triton", "keys", "saucer"}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_has_the_stacks_command_line_and_settings(stack: Stack, name: str) -> None:
    process = stack.processes["worker-1" if name == "worker" else name]
    assert container(name)["command"] == ["python", *process._command()[1:]]
    assert settings_of(name) == set(process._settings)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_setting_is_known_to_its_process_and_none_that_it_needs_is_missing(name: str) -> None:
    fields = kind_of(name).model_fields
    assert settings_of(name) <= set(fields)
    assert {field for field, info in fields.items() if info.is_required()} <= settings_of(name)


@pytest.mark.parametrize("name", ["postgres", "nats", "triton", "keys"])
def test_what_is_no_process_of_saucer_has_no_setting_of_it(name: str) -> None:
    assert settings_of(name) == set()


@pytest.mark.parametrize("name", PROCESSES)
def test_an_address_names_a_container_and_the_port_that_it_listens_on(name: str) -> None:
    for variable, value in container(name)["environment"].items():
        if variable.endswith("_ADDRESS") and not variable.endswith("TRITON_ADDRESS"):
            host, _, port = value.partition(":")
            assert variable == f"{PREFIX}{host.upper()}_ADDRESS"
            assert container(host)["environment"]["SAUCER_LISTEN"].endswith(f":{port}")


def test_triton_has_the_stacks_arguments_and_a_closed_network_that_only_publishing_shares() -> None:
    expected = triton_arguments(
        Path("/var/lib/saucer/models"),
        host="0.0.0.0",
        http_port=8000,
        grpc_port=8001,
        metrics_port=8002,
        control_key="${TRITON_CONTROL_KEY:?}",
    )
    assert container("triton")["command"] == ["tritonserver", *expected]
    assert container("publishing")["environment"]["SAUCER_TRITON_ADDRESS"] == "triton:8001"
    assert container("triton")["networks"] == ["triton"]
    assert "ports" not in container("triton")
    assert COMPOSE["networks"]["triton"] == {"internal": True}
    sharing = {name for name, service in COMPOSE["services"].items() if "triton" in service.get("networks", [])}
    assert sharing == {"triton", "publishing"}


def test_no_secret_has_a_default_and_each_is_generated() -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    example = dict(
        line.split("=", 1) for line in (PROJECT / ".env.example").read_text().splitlines() if re.match(r"\w+=", line)
    )
    secrets = SECRET.findall(text)
    assert len({name for name, _ in secrets}) == 16
    for name, rest in secrets:
        assert rest.startswith(":?"), f"{name} must be asked for"
        assert example[name] == "generate"
    assert set(re.findall(r"\$\{(\w+)", text)) == set(example)


def test_every_port_of_the_host_is_on_the_address_of_the_settings() -> None:
    for service in COMPOSE["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("${HOST_ADDRESS:-127.0.0.1}:")


@pytest.mark.parametrize("name", PROCESSES)
def test_only_keys_holds_the_private_key_and_each_role_sees_its_own_token(name: str) -> None:
    mounted = {volume.split(":")[0]: volume for volume in container(name).get("volumes", [])}
    assert "administrator" not in mounted
    assert ("worker-token" in mounted) == (name == "worker")
    assert ("service-token" in mounted) == (name in SERVICES)
    for volume in ("public-keys", "service-token", "worker-token"):
        assert mounted.get(volume, ":ro").endswith(":ro")


@pytest.mark.parametrize("file", sorted((PROJECT / "deploy").glob("Dockerfile.*")), ids=lambda file: str(file.suffix))
def test_an_image_does_not_run_as_root_and_installs_only_what_is_pinned(file: Path) -> None:
    text = file.read_text().replace("\\\n", " ")
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001"]
    installs = re.findall(r"pip (?:install|wheel) [^&\n]*", text)
    assert installs
    for install in installs:
        assert "--constraint constraints.txt" in install or "--requirement /tmp/requirements.txt" in install
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((PROJECT / name).exists() for name in source.split())


def nats_password(user: str) -> str:
    """How nats.conf names the variable with a user's password."""
    return "$NATS_PASSWORD" if user == nats_users.ADMINISTRATOR else f"$NATS_PASSWORD_{user.upper()}"


def test_the_servers_are_set_as_the_stack_sets_them() -> None:
    nats = (PROJECT / "deploy" / "nats" / "nats.conf").read_text()
    assert f"max_payload: {NATS_MAX_PAYLOAD_BYTES}" in nats
    assert "sync_interval: always" in nats
    assert nats_users.authorization(nats_password) in nats
    for user in (*nats_users.CONSUMING, nats_users.READING):
        assert container(user)["environment"]["SAUCER_NATS_URL"].startswith(f"nats://{user}:${{NATS_PASSWORD_")
    assert f"max_connections={MAX_CONNECTIONS}" in container("postgres")["command"]
    script = (PROJECT / "deploy" / "postgres" / "10-databases.sh").read_text()
    assert f"for service in {' '.join(SERVICES)}; do" in script


def test_the_keys_container_makes_tokens_that_servers_believe_and_keeps_those_that_are_there(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("keys", PROJECT / "deploy" / "keys.py")
    assert spec is not None
    assert spec.loader is not None
    keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keys)
    for folder in ("public", "administrator", "service", "worker"):
        (tmp_path / folder).mkdir()
    keys.main({"billing": "billing:50051"}, tmp_path)
    verifier = auth.Verifier(tmp_path / "public" / "public.json", tmp_path / "public" / "revoked.txt")
    for role in (auth.Role.SERVICE, auth.Role.WORKER):
        token = tmp_path / role / "token"
        assert token.stat().st_mode & 0o077 == 0
        assert verifier.verify(token.read_text(), time.time()).role is role
    profile = (tmp_path / "administrator" / "profile.json").read_text()
    keys.main({"billing": "elsewhere:1"}, tmp_path)
    assert (tmp_path / "administrator" / "profile.json").read_text() == profile
