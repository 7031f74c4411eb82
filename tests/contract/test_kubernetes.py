"""deploy/kubernetes describes the processes that there are, and allows the documented call graph and no more.

`make check` compares the manifests with Kubernetes' own schemas. KEDA's ScaledObject is not among those: its schema is
here, written after https://keda.sh/docs/latest/reference/scaledobject-spec/ and …/scalers/prometheus/.
"""

import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from saucer.lib.config import TlsSettings
from saucer.lib.run import STOP_S
from saucer.local import nats_users
from saucer.local.servers import triton_arguments
from saucer.local.stack import SERVICES
from saucer.worker.agent import RELEASE_S
from tests.contract.test_compose import kind_of
from tests.contract.test_watched import METRIC, PROMETHEUS, exported

__all__ = ["exported"]
PROJECT = Path(__file__).parents[2]
BASE = PROJECT / "deploy" / "kubernetes" / "base"
PROCESSES = (*SERVICES, "gateway", "worker")
MANIFESTS: list[dict[str, Any]] = [
    document for file in sorted(BASE.glob("*.yaml")) for document in yaml.safe_load_all(file.read_text())
]
NAME = "app.kubernetes.io/name"


def _fields(required: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    """An object of these fields and no others: a name that is spelled wrong would be passed over in silence."""
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
# All values of a trigger's metadata are text.
_FLAG = {"enum": ["true", "false"]}
_NUMBER = {"type": "string", "pattern": r"^\d+(\.\d+)?$"}
PROMETHEUS_TRIGGER = _fields(
    {
        "type": {"const": "prometheus"},
        "metadata": _fields(
            {"serverAddress": {"type": "string", "pattern": "^https?://"}, "query": _TEXT, "threshold": _NUMBER},
            {
                "activationThreshold": _NUMBER,
                "namespace": _TEXT,
                "customHeaders": _TEXT,
                "ignoreNullValues": _FLAG,
                "queryParameters": _TEXT,
                "unsafeSsl": _FLAG,
                "timeout": _NUMBER,
                "authModes": _TEXT,
            },
        ),
    },
    {
        "name": _TEXT,
        "useCachedMetrics": {"type": "boolean"},
        "metricType": {"enum": ["AverageValue", "Value"]},
        "authenticationRef": _fields({"name": _TEXT}, {"kind": _TEXT}),
    },
)
SCALED_OBJECT = _fields(
    {
        "scaleTargetRef": _fields(
            {"name": _TEXT}, {"apiVersion": _TEXT, "kind": _TEXT, "envSourceContainerName": _TEXT}
        ),
        "triggers": {"type": "array", "minItems": 1, "items": PROMETHEUS_TRIGGER},
    },
    {
        "pollingInterval": _COUNT,
        "cooldownPeriod": _COUNT,
        "initialCooldownPeriod": _COUNT,
        "idleReplicaCount": _COUNT,
        "minReplicaCount": _COUNT,
        "maxReplicaCount": _COUNT,
        "fallback": _fields({"failureThreshold": _COUNT, "replicas": _COUNT}, {"behavior": _TEXT}),
        "advanced": {"type": "object"},
    },
)
Edge = tuple[str, str, int]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manifests", PROJECT / "deploy" / "kubernetes" / "manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["manifests"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in MANIFESTS if found["kind"] == kind}


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("Deployment", "Job"):
        for name, found in of_kind(kind).items():
            yield name, found["spec"]["template"]["spec"]


def said(name: str, heading: str) -> str:
    """What a package's docstring says under a heading."""
    text = inspect.getdoc(importlib.import_module(f"saucer.{name}")) or ""
    found = re.search(rf"^{heading}: (.*?)(?=^\w+:|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def documented_calls() -> set[tuple[str, str]]:
    """The call graph, as the services' docstrings tell it; workers lease from training."""
    calls = {("worker", "training")}
    for name in (*SERVICES, "gateway"):
        text = re.sub(r"\(.*?\)", "", said(name, "Calls"))
        named = [*SERVICES, "triton"] if name != "gateway" else []
        calls |= {(name, callee) for callee in named if re.search(rf"\b{callee}\b", text, re.IGNORECASE)}
        if "every service" in text:
            calls |= {(name, callee) for callee in SERVICES}
    return calls


def edges(direction: str, key: str) -> set[Edge]:
    """Caller, called and port within the namespace, as one side's policies allow them."""
    found: set[Edge] = set()
    for name, policy in of_kind("NetworkPolicy").items():
        for rule in policy["spec"].get(direction) or []:
            for peer in rule[key]:
                if "podSelector" in peer:
                    other = peer["podSelector"]["matchLabels"][NAME]
                    for port in rule["ports"]:
                        pair = (other, name) if direction == "ingress" else (name, other)
                        found.add((*pair, port["port"]))
    return found


def outside(name: str, direction: str, key: str) -> set[tuple[str, int]]:
    """Namespaces and address blocks with their ports."""
    found = set()
    for rule in of_kind("NetworkPolicy")[name]["spec"][direction]:
        for peer in rule[key]:
            if "podSelector" not in peer:
                labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
                where = labels.get("kubernetes.io/metadata.name") or peer["ipBlock"]["cidr"]
                found |= {(where, port["port"]) for port in rule["ports"]}
    return found


def test_the_files_are_what_their_source_says() -> None:
    written = {file.name: file.read_text() for file in BASE.glob("*.yaml")}
    assert written == generator().files()


def test_network_policies_allow_exactly_the_documented_call_graph() -> None:
    expected = {(caller, called, 8001 if called == "triton" else 50051) for caller, called in documented_calls()}
    assert len(expected) >= 11
    assert edges("ingress", "from") == expected
    assert edges("egress", "to") == expected
    deny = of_kind("NetworkPolicy")["nothing-else"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("name", PROCESSES)
def test_what_lies_outside_is_reached_by_those_alone_that_need_it(name: str) -> None:
    reached = outside(name, "egress", "to")
    kind = kind_of(name).model_fields
    assert (("postgres", 5432) in reached) == ("database_url" in kind)
    assert (("nats", 4222) in reached) == ("nats_url" in kind)
    assert (("0.0.0.0/0", 443) in reached) == ("object_store_url" in kind)
    entrances = outside(name, "ingress", "from") - {("monitoring", 9464)}
    expected = {"gateway": {("ingress", 8080), ("ingress", 50051)}, "publishing": {("ingress", 50051)}}
    assert entrances == expected.get(name, set())


def test_nats_lets_each_service_publish_its_own_events_alone() -> None:
    consuming = {name for name in SERVICES if said(name, "Publishes") or said(name, "Consumes")}
    assert set(nats_users.CONSUMING) == consuming
    for name in nats_users.CONSUMING:
        events = [subject for subject in nats_users.publishes(name) if not subject.startswith("$JS.")]
        assert events == [f"saucer.{name}.v1.>"]
    assert all(subject.startswith("$JS.") for subject in nats_users.publishes(nats_users.READING))
    assert said("gateway", "Publishes").strip() == "nothing."


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_gets_the_settings_that_it_needs_and_knows(name: str) -> None:
    (container,) = of_kind("Deployment")[name]["spec"]["template"]["spec"]["containers"]
    given = {each["name"].removeprefix("SAUCER_").lower() for each in container["env"]}
    fields = kind_of(name).model_fields
    assert {field for field, info in fields.items() if info.is_required()} <= given <= set(fields)
    assert container["command"] == ["python", "-m", f"saucer.{name}.main"]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_token_is_mounted_by_those_alone_that_call_with_it(name: str) -> None:
    mounted = {
        volume["secret"]["secretName"]
        for pod, spec in pod_specs()
        for volume in spec["volumes"]
        if pod.removeprefix("migrate-") == name and "secret" in volume
    }
    expected = {"worker-token"} if name == "worker" else {"service-token"}
    assert mounted - {f"{name}-tls"} == (expected if "token_file" in kind_of(name).model_fields else set())


@pytest.mark.parametrize("name", PROCESSES)
def test_for_how_long_things_are_kept_is_a_matter_of_the_config_map(name: str) -> None:
    (container,) = of_kind("Deployment")[name]["spec"]["template"]["spec"]["containers"]
    keys = {each["name"]: each["valueFrom"]["configMapKeyRef"] for each in container["env"] if "_KEEP_" in each["name"]}
    assert keys == {
        f"SAUCER_{field.upper()}": {"name": "saucer", "key": field.replace("_", "-"), "optional": True}
        for field in kind_of(name).model_fields
        if "_keep_" in field
    }


@pytest.mark.parametrize("name", PROCESSES)
def test_tls_is_a_secret_and_three_settings_that_may_be_missing(name: str) -> None:
    pod = of_kind("Deployment")[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    keys = {
        each["name"].removeprefix("SAUCER_").lower(): each["valueFrom"]["configMapKeyRef"]
        for each in container["env"]
        if each["name"].startswith("SAUCER_TLS_")
    }
    assert set(keys) == set(TlsSettings.model_fields)
    assert all(key["optional"] for key in keys.values())
    (volume,) = (each for each in pod["volumes"] if each["name"] == "certificates")
    assert volume["secret"] == {"secretName": f"{name}-tls", "optional": True}
    assert {"name": "certificates", "mountPath": "/certificates", "readOnly": True} in container["volumeMounts"]
    told = (BASE.parent / "README.md").read_text()
    assert all(f"{key['key']}: /certificates/" in told for key in keys.values())


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_that_hangs_is_started_anew_and_one_that_waits_is_not(name: str) -> None:
    (container,) = of_kind("Deployment")[name]["spec"]["template"]["spec"]["containers"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    # Over gRPC a probe would have to speak TLS.
    assert {get["port"] for get in asked.values()} == {9464}
    assert (asked["startup"]["path"], asked["liveness"]["path"]) == ("/alive", "/alive")
    assert asked["readiness"]["path"] == ("/alive" if name == "worker" else "/serving")


def test_the_guides_keys_are_those_that_are_made_and_its_ports_those_of_the_profile(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("keys", PROJECT / "deploy" / "keys.py")
    assert spec is not None
    assert spec.loader is not None
    keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keys)
    text = (BASE.parent / "README.md").read_text()
    made = re.search(r"keys\.py \\\n(.*?)\n\n", text, re.DOTALL)
    forwarded = re.search(r"for at in (.*); do", text)
    assert made is not None
    assert forwarded is not None
    services = dict(each.split("=", 1) for each in made[1].replace("\\\n", " ").split())
    assert set(services) == {*SERVICES, "gateway"}
    assert {name: f"127.0.0.1:{port}" for name, port in (each.split(":") for each in forwarded[1].split())} == services
    folders = re.search(r"mkdir -m 700 keys && mkdir (.*)", text)
    assert folders is not None
    (tmp_path / "keys").mkdir()
    for folder in folders[1].split():
        (tmp_path / folder).mkdir()
    keys.main(services, tmp_path / "keys")
    files = re.findall(r"--from-file=(?:token=)?(keys/\S+)", text)
    assert len(files) == 4
    assert all((tmp_path / file).exists() for file in files)


def test_every_service_with_a_database_is_migrated_by_a_job_of_its_own() -> None:
    assert set(of_kind("Job")) == {f"migrate-{name}" for name in SERVICES}
    # A job's pod must not be taken for one that serves.
    job = of_kind("Job")["migrate-task"]["spec"]["template"]["metadata"]["labels"]
    serving = of_kind("Service")["task"]["spec"]["selector"]
    assert not serving.items() <= job.items()


def test_what_a_nodes_drain_may_take_at_a_time_is_said_for_every_pod() -> None:
    budgets = of_kind("PodDisruptionBudget")
    assert set(budgets) == {*PROCESSES, "triton"}
    for name, budget in budgets.items():
        pods = of_kind("Deployment")[name]["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= pods.items()


def test_gpus_are_asked_for_by_workers_alone() -> None:
    asking = {name for name, spec in pod_specs() if "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]}
    assert asking == {"worker"}
    assert {name for name, spec in pod_specs() if "nodeSelector" in spec} == asking
    most = of_kind("ScaledObject")["worker"]["spec"]["maxReplicaCount"]
    assert of_kind("ResourceQuota")["gpus"]["spec"]["hard"] == {"requests.nvidia.com/gpu": str(most)}


def test_a_stopped_pod_has_the_time_that_its_process_takes_to_stop() -> None:
    for name, spec in pod_specs():
        environment = {each["name"]: each.get("value") for each in spec["containers"][0].get("env", ())}
        release_s = float(environment.get("SAUCER_RELEASE_S") or 0)
        assert (release_s == RELEASE_S) == (name == "worker")
        if name in PROCESSES:
            assert release_s + STOP_S < spec["terminationGracePeriodSeconds"]


def selected(selector: str) -> set[tuple[str, str]]:
    """Kinds and names of what `kubectl --selector` takes."""
    found = re.fullmatch(r"([\w./-]+?)(!?=)(\w+)", selector)
    assert found is not None, selector
    key, sign, value = found.groups()
    return {
        (each["kind"], each["metadata"]["name"])
        for each in MANIFESTS
        if "metadata" in each and (each["metadata"].get("labels", {}).get(key) == value) == (sign == "=")
    }


def test_what_is_applied_by_the_guide_is_everything_and_what_serves_after_its_migrations() -> None:
    text = (BASE.parent / "README.md").read_text()
    steps = re.findall(r"^    kubectl (?:-n saucer )?(delete|apply|wait) .*--selector (\S+)", text, re.MULTILINE)
    assert [verb for verb, _ in steps] == ["delete", "apply", "wait", "apply"]
    removed, first, awaited, last = (selected(selector) for _, selector in steps)
    migrations = {("Job", name) for name in of_kind("Job")}
    assert removed == awaited == migrations
    assert migrations <= first
    assert last == {(kind, name) for kind in ("Deployment", "ScaledObject") for name in of_kind(kind)}
    assert first | last == {(each["kind"], each["metadata"]["name"]) for each in MANIFESTS if "metadata" in each}


def test_no_pod_is_privileged_writes_its_image_or_speaks_to_kubernetes() -> None:
    for name, spec in pod_specs():
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] in of_kind("ServiceAccount")
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_triton_has_the_stacks_arguments_but_no_metrics_port() -> None:
    expected = triton_arguments(
        Path("/var/lib/saucer/models"),
        host="0.0.0.0",
        http_port=8000,
        grpc_port=8001,
        metrics_port=8002,
        control_key="$(CONTROL_KEY)",
    )
    (container,) = of_kind("Deployment")["triton"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [
        "tritonserver",
        *(argument for argument in expected if not argument.startswith("--metrics")),
    ]


def test_what_scales_the_workers_is_as_keda_describes_it() -> None:
    (scaled,) = of_kind("ScaledObject").values()
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    jsonschema.validate(scaled["spec"], SCALED_OBJECT)
    for wrong in ("maxReplicas", "triggers"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**scaled["spec"], wrong: 8}, SCALED_OBJECT)


def test_workers_are_scaled_by_a_metric_that_training_exports(exported: set[str]) -> None:
    scaled = of_kind("ScaledObject")["worker"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in of_kind("Deployment")
    assert "replicas" not in of_kind("Deployment")["worker"]["spec"]
    assert set(METRIC.findall(scaling_query())) <= exported


def scaling_query() -> str:
    (trigger,) = of_kind("ScaledObject")["worker"]["spec"]["triggers"]
    query: str = trigger["metadata"]["query"]
    return query


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with the system's package prometheus")
def test_the_figure_for_workers_is_0_without_a_run_and_none_if_training_is_not_heard(tmp_path: Path) -> None:
    runs = 'saucer_training_open_runs{region="local", spec="%s", instance="%s"}'
    heard = 'saucer_dead_events{service="training"}'
    cases = [
        ({runs % ("gpu-1", "a"): 3, runs % ("gpu-1", "b"): 3, runs % ("cpu", "a"): 9, heard: 0}, 3),
        ({runs % ("cpu", "a"): 9, heard: 2}, 0),
        ({'saucer_dead_events{service="task"}': 0}, None),
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": str(value)} for name, value in series.items()],
            "promql_expr_test": [
                {
                    "expr": scaling_query(),
                    "eval_time": "0m",
                    "exp_samples": [{"labels": "{}", "value": figure}] if figure is not None else [],
                }
            ],
        }
        for series, figure in cases
    ]
    (tmp_path / "query.test.yml").write_text(yaml.safe_dump({"tests": tests}))
    command = ["promtool", "test", "rules", str(tmp_path / "query.test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (trigger,) = of_kind("ScaledObject")["worker"]["spec"]["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.parametrize("name", PROCESSES)
def test_prometheus_finds_every_process_by_its_annotations_and_is_let_in(name: str) -> None:
    template = of_kind("Deployment")[name]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (listen,) = [each["value"] for each in container["env"] if each["name"] == "SAUCER_METRICS_LISTEN"]
    port = listen.rpartition(":")[2]
    assert template["metadata"]["labels"]["process"] == name
    found = {key.partition("/")[2]: value for key, value in template["metadata"]["annotations"].items()}
    assert found == {"scrape": "true", "port": port, "path": "/metrics"}
    assert ("monitoring", int(port)) in outside(name, "ingress", "from")


def test_the_guides_command_gives_prometheus_the_rules() -> None:
    text = (BASE.parent / "README.md").read_text()
    (command,) = re.findall(r"^    (\(printf .*\)) >rules.yaml$", text, re.MULTILINE)
    done = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, check=True)
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    assert yaml.safe_load(done.stdout) == {"serverFiles": {"alerting_rules.yml": rules}}
