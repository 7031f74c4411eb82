"""docker-compose.yml and deploy/ describe the same processes as the local stack."""

import asyncio
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
import typing
from pathlib import Path
from typing import Any

import nats
import pytest
import yaml
from pydantic import TypeAdapter

from saucer.lib import auth
from saucer.lib.config import PREFIX, CallingSettings, ProcessSettings, TlsSettings
from saucer.lib.run import STOP_S
from saucer.local import nats_users
from saucer.local.ports import choose_port
from saucer.local.servers import MAX_CONNECTIONS, NATS_MAX_PAYLOAD_BYTES, NatsServer, TritonServer, triton_arguments
from saucer.local.stack import SERVICES, Stack
from saucer.local.triton_env import TritonEnvironment
from saucer.worker.agent import RELEASE_S

PROJECT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
PROCESSES = (*SERVICES, "gateway", "worker")
TLS: dict[str, Any] = yaml.safe_load((PROJECT / "deploy" / "compose.tls.yml").read_text())["services"]


def container(name: str) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][name]
    return found


def settings_of(name: str) -> set[str]:
    """Names of a container's settings, given by variable or by secret file, as the settings' classes have them."""
    names = [*container(name).get("environment", {}), *(target.upper() for target in secret_files(name).values())]
    return {variable.removeprefix(PREFIX).lower() for variable in names if variable.startswith(PREFIX)}


def secret_files(name: str) -> dict[str, str]:
    """Where below /run/secrets a container finds which secret: targets by secret."""
    secrets = container(name).get("secrets", [])
    return {each: each for each in secrets if isinstance(each, str)} | {
        each["source"]: each["target"] for each in secrets if not isinstance(each, str)
    }


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
    assert set(COMPOSE["services"]) == processes | {"worker-gpu", "postgres", "nats", "triton", "keys", "saucer"}


def test_the_worker_of_the_profile_gpu_is_the_worker_in_another_image_for_another_spec_with_the_machines_gpus() -> None:
    own = {"profiles", "image", "build", "environment", "deploy"}
    worker, gpu = container("worker"), container("worker-gpu")
    assert {name: value for name, value in gpu.items() if name not in own} == {
        name: value for name, value in worker.items() if name not in own
    }
    assert (gpu["profiles"], "profiles" in worker) == (["gpu"], False)
    assert (gpu["image"], gpu["build"]["dockerfile"]) == ("saucer-worker-cuda", "deploy/Dockerfile.worker-cuda")
    assert gpu["environment"] == worker["environment"] | {"SAUCER_SPEC_ID": "${GPU_SPEC_ID:-gpu-1}"}
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_a_stopped_worker_may_save_and_give_back_its_run_before_it_is_killed(stack: Stack) -> None:
    for name in ("worker", "worker-gpu"):
        release_s = float(container(name)["environment"]["SAUCER_RELEASE_S"])
        assert release_s == RELEASE_S
        assert release_s + STOP_S < float(container(name)["stop_grace_period"].removesuffix("s"))
    local = stack.processes["worker-1"]
    assert float(str(local._settings["release_s"])) < local.stop_timeout_s


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_has_the_stacks_command_line_and_settings(stack: Stack, name: str) -> None:
    process = stack.processes["worker-1" if name == "worker" else name]
    assert container(name)["command"] == ["python", *process._command()[1:]]
    assert set(process._settings) <= settings_of(name)
    # What else .env may say is, left out, what the settings' classes say.
    for field in settings_of(name) - set(process._settings):
        info = kind_of(name).model_fields[field]
        default = re.fullmatch(r"\$\{[A-Z_]+:-(.*)\}", container(name)["environment"][PREFIX + field.upper()])
        assert default is not None, field
        assert info.annotation is not None
        assert TypeAdapter(info.annotation).validate_strings(default[1]) == info.default, field


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


@pytest.mark.parametrize("name", [*PROCESSES, "postgres", "nats", "triton"])
def test_every_container_that_runs_on_says_whether_it_is_well(name: str) -> None:
    (*_, asked) = container(name)["healthcheck"]["test"]
    if name in PROCESSES:
        assert f"127.0.0.1:9464/{'alive' if name == 'worker' else 'serving'}" in asked


def test_triton_has_the_stacks_arguments_and_a_closed_network_that_only_publishing_shares() -> None:
    expected = triton_arguments(
        Path("/var/lib/saucer/models"),
        host="0.0.0.0",
        http_port=8000,
        grpc_port=8001,
        metrics_port=8002,
        control_key="$$key",
    )
    shell, _, script = container("triton")["command"]
    assert shell == "bash"
    lines = re.sub(r"\\\n", "", script).splitlines()
    assert lines[0] == "key=$$(cat /run/secrets/triton_control_key)"
    name, _, closed = lines[1].partition("=")
    assert shlex.split(lines[2].replace(f"$${name}", closed)) == ["exec", "tritonserver", *expected]
    assert container("publishing")["environment"]["SAUCER_TRITON_ADDRESS"] == "triton:8001"
    assert container("triton")["networks"] == ["triton"]
    assert "ports" not in container("triton")
    assert COMPOSE["networks"]["triton"] == {"internal": True}
    sharing = {name for name, service in COMPOSE["services"].items() if "triton" in service.get("networks", [])}
    assert sharing == {"triton", "publishing"}


def test_no_secret_stands_in_an_environment_and_the_settings_example_has_every_default() -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    example = dict(
        line.split("=", 1) for line in (PROJECT / ".env.example").read_text().splitlines() if re.match(r"\w+=", line)
    )
    assert dict(re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", text)) == example
    for name, service in COMPOSE["services"].items():
        given = [variable for variable in service.get("environment", {}) if re.search("PASSWORD|KEY$|_URL", variable)]
        assert set(given) <= {"POSTGRES_PASSWORD_FILE", "SAUCER_OBJECT_STORE_URL", "SAUCER_CATALOGUE_URL"}, name


def test_for_how_long_things_are_kept_is_set_in_one_file_and_told_in_one_table() -> None:
    table = (PROJECT / "deploy" / "BACKUP.md").read_text()
    example = (PROJECT / ".env.example").read_text()
    for name in PROCESSES:
        kept = {field: info.default for field, info in kind_of(name).model_fields.items() if "_keep_" in field}
        given = {variable for variable in container(name)["environment"] if "_KEEP_" in variable}
        assert given == {f"{PREFIX}{field.upper()}" for field in kept}
        for field, default in kept.items():
            assert container(name)["environment"][PREFIX + field.upper()] == f"${{{field.upper()}:-{default}}}"
            assert f"\n{field.upper()}={default}\n" in example
            assert re.search(rf"^\| `{PREFIX}{field.upper()}` [^|]*\| {default} \|", table, re.MULTILINE)


def test_what_is_to_be_saved_names_volumes_that_there_are() -> None:
    named = set(re.findall(r"saucer_([\w-]+):", (PROJECT / "deploy" / "BACKUP.md").read_text()))
    assert named == set(COMPOSE["volumes"]) - {"postgres", "nats", "models"}


def test_no_containers_log_fills_the_disk() -> None:
    watching = yaml.safe_load((PROJECT / "deploy" / "compose.watch.yml").read_text())["services"]
    for service in [*COMPOSE["services"].values(), *watching.values()]:
        assert service["logging"] == {"driver": "json-file", "options": {"max-size": "20m", "max-file": "5"}}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What deploy/new-secrets.sh makes."""
    project = tmp_path_factory.mktemp("project")
    (project / "deploy").mkdir()
    script = shutil.copy(PROJECT / "deploy" / "new-secrets.sh", project / "deploy")
    subprocess.run([script], check=True, capture_output=True)
    again = subprocess.run([script], check=False, capture_output=True)
    assert again.returncode == 1, "it must not overwrite"
    return project / "secrets"


def test_every_secret_is_made_and_seen_by_those_alone_that_need_it(secrets: Path) -> None:
    assert secrets.stat().st_mode & 0o077 == 0
    watching = yaml.safe_load((PROJECT / "deploy" / "compose.watch.yml").read_text())["secrets"]
    declared = COMPOSE["secrets"] | watching
    assert declared == {file.name: {"file": f"./secrets/{file.name}"} for file in secrets.iterdir()}
    used = {name: set(secret_files(name)) for name in COMPOSE["services"]}
    for name in PROCESSES:
        kind = kind_of(name).model_fields
        own = {f"{name}_{each}" for each in ("database_url", "nats_url") if each in kind}
        assert used[name] == own | ({"triton_control_key"} if name == "publishing" else set())
    assert used["postgres"] == {"postgres_password", "postgres_passwords"}
    assert used["nats"] == {"nats_passwords"}
    assert used["triton"] == {"triton_control_key"}
    assert not used["keys"] | used["saucer"]


async def test_nats_takes_the_secret_passwords_and_the_url_of_each_service_logs_in(
    secrets: Path, tmp_path: Path
) -> None:
    config = (PROJECT / "deploy" / "nats" / "nats.conf").read_text()
    port = choose_port()
    for said, here in (
        ("../../run/secrets/", f"../{secrets.parent.name}/secrets/"),
        ("0.0.0.0:4222", f"127.0.0.1:{port}"),
        ("0.0.0.0:8222", "127.0.0.1:-1"),
        ('"/data"', f'"{tmp_path}/data"'),
    ):
        assert said in config
        config = config.replace(said, here)
    # Beside the folder of secrets, as in the container.
    folder = secrets.parents[1] / "nats"
    folder.mkdir()
    file = folder / "nats.conf"
    file.write_text(config)
    server = await asyncio.create_subprocess_exec(Path(sysconfig.get_path("scripts")) / "nats-server", "--config", file)
    try:
        for name in (*nats_users.CONSUMING, nats_users.READING):
            url = (secrets / f"{name}_nats_url").read_text().strip()
            client = await nats.connect(url.replace("nats:4222", f"127.0.0.1:{port}"))
            await client.close()
    finally:
        server.terminate()
        await server.wait()


def test_with_tls_every_process_has_a_certificate_of_its_own_and_so_have_the_servers() -> None:
    assert set(TLS) == {*PROCESSES, "worker-gpu", "postgres", "nats", "saucer"}
    folders = {}
    for name, service in TLS.items():
        (folders[name],) = [volume for volume in service["volumes"] if "/certificates:ro" in volume]
        if name in PROCESSES:
            given = {variable.removeprefix(PREFIX).lower() for variable in service["environment"]}
            assert given == set(TlsSettings.model_fields)
    assert folders == {
        name: f"./certificates/{ {'saucer': 'client', 'worker-gpu': 'worker'}.get(name, name) }:/certificates:ro"
        for name in TLS
    }
    # What the plain one says, and TLS.
    plain = container("postgres")["command"]
    assert TLS["postgres"]["command"][: len(plain)] == plain


def test_every_port_of_the_host_is_on_the_address_of_the_settings() -> None:
    for service in COMPOSE["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("${HOST_ADDRESS:-127.0.0.1}:")


@pytest.mark.parametrize("name", [*PROCESSES, "saucer", "keys", "nats", "triton"])
def test_a_container_writes_nothing_but_volumes_and_gains_no_right(name: str) -> None:
    assert container(name)["read_only"] is True
    assert container(name)["cap_drop"] == ["ALL"]
    assert container(name)["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", PROCESSES)
def test_only_keys_holds_the_private_key_and_a_token_is_seen_by_those_alone_that_call_with_it(name: str) -> None:
    mounted = {volume.split(":")[0]: volume for volume in container(name).get("volumes", [])}
    assert "administrator" not in mounted
    assert ("worker-token" in mounted) == (name == "worker")
    assert ("service-token" in mounted) == issubclass(kind_of(name), CallingSettings)
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
    config = (PROJECT / "deploy" / "nats" / "nats.conf").read_text()
    assert f"max_payload: {NATS_MAX_PAYLOAD_BYTES}" in config
    assert "sync_interval: always" in config
    assert nats_users.authorization(nats_password) in config
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


# What `make compose-check` calls, each telling how it was called; FAILS names a command of compose that fails.
ENGINE = {
    "pidof": '[ -n "$OTHER" ] && echo "$OTHER"',
    "dockerd": 'echo "dockerd $*" >>"$CALLS"; exec sleep 60',
    "docker": 'echo "$DOCKER_HOST docker $*" >>"$CALLS"',
    "docker-compose": 'echo "$COMPOSE_PROJECT_NAME docker-compose $*" >>"$CALLS"; [[ " $* " != *" $FAILS "* ]]',
}


def compose_check(folder: Path, **settings: str) -> tuple[int, str, list[str]]:
    """Runs it on an engine that does nothing: its exit status, what it said, and its calls."""
    programs = folder / "programs"
    programs.mkdir()
    for program, commands in ENGINE.items():
        (programs / program).write_text(f"#!/usr/bin/env bash\n{commands}\n")
        (programs / program).chmod(0o755)
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "WORK": str(folder / "work"),
        "CALLS": str(folder / "calls"),
        "KEEP_STAND_INS": "yes",
        "OTHER": "",
        "FAILS": "nothing",
    } | settings
    script = PROJECT / "tests" / "compose" / "check.sh"
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=False, timeout=60)
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return done.returncode, done.stderr, calls


@pytest.mark.parametrize("fails", ["nothing", "build", "run"])
def test_the_check_uses_an_engine_and_names_of_its_own_and_takes_all_down_whatever_failed(
    tmp_path: Path, fails: str
) -> None:
    before = {file.name for file in PROJECT.iterdir()}
    status, said, calls = compose_check(tmp_path, FAILS=fails, KILL="")
    assert (status == 0) == (fails == "nothing"), said
    (engine,) = [call for call in calls if call.startswith("dockerd ")]
    assert f"--host unix://{tmp_path}/work/docker.sock --data-root {tmp_path}/work/" in engine
    asked = (f"unix://{tmp_path}/work/docker.sock docker ", "saucer-check docker-compose ")
    assert all(call.startswith(asked) for call in calls if call != engine)
    assert calls[-1].endswith("down --volumes --remove-orphans")
    assert not list((tmp_path / "work").glob("secrets*"))
    assert {file.name for file in PROJECT.iterdir()} == before


def test_the_check_fails_if_the_path_ends_before_every_container_was_killed(tmp_path: Path) -> None:
    status, said, calls = compose_check(tmp_path, KILL_EVERY_S="0.5")
    assert status == 1
    assert "before billing was killed" in said
    assert calls[-1].endswith("down --volumes --remove-orphans")
    assert not (tmp_path / "work" / "certificates").exists()


def test_the_check_refuses_to_run_beside_another_engine(tmp_path: Path) -> None:
    status, said, calls = compose_check(tmp_path, OTHER="42")
    assert status == 1
    assert "Another dockerd runs on this machine (pid 42)" in said
    assert not calls
