"""Kubernetes' manifests as code: `python deploy/kubernetes/manifests.py` writes base/*.yaml anew, for kustomize.

One file a process, from one table: what it calls decides its network policy, its settings and its place. What differs
between clusters (images, hosts, sizes) stands in an overlay; README.md says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "base"
GRPC, METRICS, HTTP = 50051, 9464, 8080
TRITON_GRPC, TRITON_HTTP = 8001, 8000
POSTGRES, NATS, HTTPS, DNS, OTLP = 5432, 4222, 443, 53, 4317
USER = 10001
REGION = "local"
# What workers and Triton are in billing's words. Triton computes on processors.
WORKER_SPEC, TRITON_SPEC, TRITON_CPUS = "gpu-1", "cpu-2", "2"
MAX_WORKERS = 8
# What a worker has to save and give back its run at a stop, and when it is killed; a service ends within 8 s.
RELEASE_S, WORKER_GRACE_S, GRACE_S = 45, 60, 15
# KEDA's own kind, which Kubernetes' schemas do not know.
SCALING = "scaling.yaml"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Process:
    """One kind of pod. `calls` names processes; outside: what is not of this namespace."""

    name: str
    calls: tuple[str, ...] = ()
    database: bool = True
    nats: bool = True
    object_store: bool = False
    replicas: int = 2
    cpu: str = "250m"
    memory: str = "512Mi"
    settings: tuple[tuple[str, str], ...] = ()
    # Settings that the ConfigMap may have.
    options: tuple[str, ...] = ()

    @property
    def token(self) -> str | None:
        """The secret with its own token, if it calls others with one; the gateway calls with its callers'."""
        if not self.calls or self.name == "gateway":
            return None
        return "worker-token" if self.name == "worker" else "service-token"


PROCESSES = (
    Process("billing"),
    # Imports run in children of up to 4 GiB; 1.5 GiB of chunks that are being received.
    Process("dataset", object_store=True, cpu="1", memory="6Gi", options=("uploads-keep-hours",)),
    Process("task", calls=("dataset", "billing"), options=("fetches-weights",)),
    Process("training", object_store=True, options=("logs-keep-days", "attempts-keep-days")),
    # A scoring's child of up to 4 GiB, 1 GiB of evaluations that are looked at, two more on their way there.
    Process("evaluation", object_store=True, cpu="1", memory="7Gi"),
    # 1.5 GiB of requests that are being received, and images with Triton.
    Process(
        "publishing",
        calls=("billing", "triton"),
        object_store=True,
        memory="4Gi",
        options=("monitoring-keep-days",),
        settings=(
            ("SAUCER_REGION_ID", REGION),
            ("SAUCER_SPEC_ID", TRITON_SPEC),
            ("SAUCER_TRITON_THREADS", TRITON_CPUS),
            ("SAUCER_TRITON_ADDRESS", f"triton:{TRITON_GRPC}"),
            ("SAUCER_TRITON_REPOSITORY", "/var/lib/saucer/models"),
        ),
    ),
    # 256 MiB of large bodies and 64 of small ones, and what two of the large ones become on their way.
    Process(
        "gateway",
        calls=("billing", "dataset", "task", "training", "evaluation", "publishing"),
        database=False,
        memory="1Gi",
        settings=(("SAUCER_HTTP_LISTEN", f"0.0.0.0:{HTTP}"),),
    ),
    Process(
        "worker",
        calls=("training",),
        database=False,
        nats=False,
        object_store=True,
        replicas=1,
        cpu="4",
        memory="16Gi",
        options=("catalogue-url", "precision"),
        settings=(
            ("SAUCER_REGION_ID", REGION),
            ("SAUCER_SPEC_ID", WORKER_SPEC),
            ("SAUCER_RELEASE_S", str(RELEASE_S)),
        ),
    ),
)
# Of every service with a database.
KEEPS = ("events-keep-days", "calls-keep-days")
WORKFOLDERS = ("dataset", "publishing", "worker")


def labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "saucer"}


def server_labels(name: str) -> dict[str, str]:
    """Of what serves, apart from the job that migrates for it."""
    return {**labels(name), "app.kubernetes.io/component": "server"}


def migration_labels(name: str) -> dict[str, str]:
    return {**labels(name), "app.kubernetes.io/component": "migration"}


def meta(name: str, component: str | None = None) -> Manifest:
    return {"name": name, "labels": labels(component or name)}


def server_meta(name: str) -> Manifest:
    """Of what is applied last: README.md selects it by these labels."""
    return {"name": name, "labels": server_labels(name)}


# What the community's Prometheus finds pods by, with no kind of its own in the cluster.
SCRAPED = {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS), "prometheus.io/path": "/metrics"}


def secret(name: str, key: str) -> Manifest:
    return {"valueFrom": {"secretKeyRef": {"name": name, "key": key}}}


def setting(key: str) -> Manifest:
    """What the ConfigMap has for everybody."""
    return {"valueFrom": {"configMapKeyRef": {"name": "saucer", "key": key}}}


def optional(key: str) -> Manifest:
    """A setting that is not given unless the ConfigMap has the key."""
    return {"valueFrom": {"configMapKeyRef": {"name": "saucer", "key": key, "optional": True}}}


def environment(process: Process) -> list[Manifest]:
    """What the process is told; secrets by reference."""
    values: list[Manifest] = [
        {"name": "SAUCER_LOG_FORMAT", "value": "json"},
        {"name": "SAUCER_METRICS_LISTEN", "value": f"0.0.0.0:{METRICS}"},
        {"name": "SAUCER_OTLP_ENDPOINT", **setting("otlp-endpoint")},
    ]
    if process.name != "worker":
        values += [
            {"name": "SAUCER_LISTEN", "value": f"0.0.0.0:{GRPC}"},
            {"name": "SAUCER_PUBLIC_KEYS_FILE", "value": "/keys/public/public.json"},
            {"name": "SAUCER_REVOKED_TOKENS_FILE", "value": "/keys/public/revoked.txt"},
        ]
    if process.database:
        values.append({"name": "SAUCER_DATABASE_URL", **secret(f"{process.name}-connections", "database-url")})
        values.append({"name": "SAUCER_STREAM_REPLICAS", **setting("stream-replicas")})
    if process.token is not None:
        values.append({"name": "SAUCER_TOKEN_FILE", "value": "/keys/own/token"})
    if process.nats:
        values.append({"name": "SAUCER_NATS_URL", **secret(f"{process.name}-connections", "nats-url")})
    if process.object_store:
        values.append({"name": "SAUCER_OBJECT_STORE_URL", **setting("object-store-url")})
    values += [
        {"name": f"SAUCER_TLS_{name.upper()}_FILE", **optional(f"tls-{name.replace('_', '-')}-file")}
        for name in ("ca", "certificate", "key")
    ]
    values += [
        {"name": f"SAUCER_{callee.upper()}_ADDRESS", "value": f"{callee}:{GRPC}"}
        for callee in process.calls
        if callee != "triton"
    ]
    values += [
        {"name": f"SAUCER_{key.upper().replace('-', '_')}", **optional(key)}
        for key in (*(KEEPS if process.database else ()), *process.options)
    ]
    values += [{"name": name, "value": value} for name, value in process.settings]
    if process.name == "publishing":
        values.append({"name": "SAUCER_TRITON_CONTROL_KEY", **secret("triton-control", "key")})
    if process.name in WORKFOLDERS:
        values.append({"name": "SAUCER_WORK_FOLDER", "value": "/var/lib/saucer/work"})
    return values


def volumes(process: Process) -> list[tuple[Manifest, Manifest]]:
    """Pairs of volume and mount. Everything else of the file system is read-only."""
    found: list[tuple[Manifest, Manifest]] = [
        ({"name": "tmp", "emptyDir": {}}, {"name": "tmp", "mountPath": "/tmp"}),  # noqa: S108 - the pod's own
        (
            {"name": "certificates", "secret": {"secretName": f"{process.name}-tls", "optional": True}},
            {"name": "certificates", "mountPath": "/certificates", "readOnly": True},
        ),
    ]
    if process.name != "worker":
        mount = {"name": "public-keys", "mountPath": "/keys/public", "readOnly": True}
        found.append(({"name": "public-keys", "configMap": {"name": "public-keys"}}, mount))
    if process.token is not None:
        mount = {"name": "token", "mountPath": "/keys/own", "readOnly": True}
        found.append(({"name": "token", "secret": {"secretName": process.token, "defaultMode": 0o440}}, mount))
    if process.name in WORKFOLDERS:
        found.append(({"name": "work", "emptyDir": {}}, {"name": "work", "mountPath": "/var/lib/saucer/work"}))
    if process.name == "publishing":
        claim = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
        found.append((claim, {"name": "models", "mountPath": "/var/lib/saucer/models"}))
    if process.name == "worker":
        memory = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
        found.append((memory, {"name": "shm", "mountPath": "/dev/shm"}))  # noqa: S108 - between torch's processes
    return found


CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(process: Process, container: Manifest, **more: Any) -> Manifest:
    found = volumes(process)
    container = {
        **container,
        "env": environment(process),
        "volumeMounts": [mount for _, mount in found],
        "securityContext": CONTAINER_SECURITY,
        "resources": {
            "requests": {"cpu": process.cpu, "memory": process.memory},
            "limits": {"memory": process.memory},
        },
    }
    return {
        "serviceAccountName": process.name,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [volume for volume, _ in found],
        **more,
    }


def probes(process: Process) -> Manifest:
    """Not by gRPC: Kubernetes' probes speak no TLS. One that waits for PostgreSQL or NATS lives, and is not ready."""

    def ask(path: str) -> Manifest:
        return {"httpGet": {"path": path, "port": METRICS}}

    # A worker serves no gRPC.
    ready = "/alive" if process.name == "worker" else "/serving"
    return {
        "startupProbe": {**ask("/alive"), "periodSeconds": 2, "failureThreshold": 60},
        "readinessProbe": {**ask(ready), "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {**ask("/alive"), "periodSeconds": 20, "timeoutSeconds": 5, "failureThreshold": 3},
    }


def ports(process: Process) -> list[Manifest]:
    named = {"metrics": METRICS}
    if process.name != "worker":
        named["grpc"] = GRPC
    if process.name == "gateway":
        named["http"] = HTTP
    return [{"name": name, "containerPort": number} for name, number in named.items()]


def deployment(process: Process) -> Manifest:
    is_worker = process.name == "worker"
    container = {
        "name": process.name,
        "image": "saucer-worker-cuda" if is_worker else "saucer-service",
        "command": ["python", "-m", f"saucer.{process.name}.main"],
        "ports": ports(process),
        **probes(process),
    }
    more: Manifest = {"terminationGracePeriodSeconds": WORKER_GRACE_S if is_worker else GRACE_S}
    if is_worker:
        more["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
        more["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    else:
        more["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": server_labels(process.name)},
            }
        ]
    spec = pod(process, container, **more)
    if is_worker:
        spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = 1
    # KEDA counts workers; a number here would fight it at every apply.
    replicas = {} if is_worker else {"replicas": process.replicas}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": server_meta(process.name),
        "spec": {
            **replicas,
            "selector": {"matchLabels": server_labels(process.name)},
            "template": {
                "metadata": {
                    # By `process` alerts know it: Prometheus takes a pod's labels over.
                    "labels": {**server_labels(process.name), "process": process.name},
                    "annotations": SCRAPED,
                },
                "spec": spec,
            },
        },
    }


def migration(process: Process) -> Manifest:
    """One-shot, before the new version is rolled out; the version before serves on meanwhile."""
    container = {
        "name": "migrate",
        "image": "saucer-service",
        "command": ["python", "-m", f"saucer.{process.name}.main", "migrate"],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"migrate-{process.name}", "labels": migration_labels(process.name)},
        "spec": {
            "backoffLimit": 5,
            "ttlSecondsAfterFinished": 3600,
            "template": {
                "metadata": {"labels": migration_labels(process.name)},
                "spec": pod(process, container, restartPolicy="OnFailure"),
            },
        },
    }


def service(name: str, named: Mapping[str, int]) -> Manifest:
    # Headless: gRPC keeps one connection to an address, so that clients have to see every pod.
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta(name),
        "spec": {
            "clusterIP": "None",
            "selector": server_labels(name),
            "ports": [{"name": port, "port": number, "targetPort": number} for port, number in named.items()],
        },
    }


def disruption_budget(name: str) -> Manifest:
    """One at a time: an evicted worker gives its run back, and an evicted Triton is started elsewhere."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": server_labels(name)}},
    }


def service_account(name: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(name),
        "automountServiceAccountToken": False,
    }


def tcp(*numbers: int) -> list[Manifest]:
    return [{"protocol": "TCP", "port": number} for number in numbers]


def pods(name: str) -> Manifest:
    return {"podSelector": {"matchLabels": labels(name)}}


def namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def port_of(callee: str) -> int:
    return TRITON_GRPC if callee == "triton" else GRPC


def network_policy(process: Process) -> Manifest:
    """Who may call it, and whom it may call: the call graph, and what lies outside."""
    callers = [caller.name for caller in PROCESSES if process.name in caller.calls]
    ingress: list[Manifest] = [{"from": [namespace("monitoring")], "ports": tcp(METRICS)}]
    if callers:
        ingress.append({"from": [pods(caller) for caller in callers], "ports": tcp(GRPC)})
    if process.name == "gateway":
        ingress.append({"from": [namespace("ingress")], "ports": tcp(HTTP, GRPC)})
    if process.name == "publishing":
        # KServe v2 clients, who bring a token.
        ingress.append({"from": [namespace("ingress")], "ports": tcp(GRPC)})
    egress: list[Manifest] = [
        {
            "to": [namespace("kube-system")],
            "ports": [{"protocol": "UDP", "port": DNS}, {"protocol": "TCP", "port": DNS}],
        },
        {"to": [namespace("monitoring")], "ports": tcp(OTLP)},
    ]
    egress += [{"to": [pods(callee)], "ports": tcp(port_of(callee))} for callee in process.calls]
    if process.database:
        egress.append({"to": [namespace("postgres")], "ports": tcp(POSTGRES)})
    if process.nats:
        egress.append({"to": [namespace("nats")], "ports": tcp(NATS)})
    if process.object_store:
        # Outside the cluster; narrow it to the store's addresses in an overlay.
        egress.append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": tcp(HTTPS)})
    return policy(process.name, ingress, egress)


def policy(name: str, ingress: list[Manifest], egress: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(name),
        "spec": {
            "podSelector": {"matchLabels": labels(name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def scaling() -> Manifest:
    """As many workers as there are runs that wait or run. A worker that is taken away gives its run back."""
    # Without a run training exports no figure of this spec: 0, if it exports at all.
    query = (
        f'max(saucer_training_open_runs{{region="{REGION}",spec="{WORKER_SPEC}"}}) '
        'or 0 * max(saucer_dead_events{service="training"})'
    )
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": server_meta("worker"),
        "spec": {
            "scaleTargetRef": {"name": "worker"},
            "minReplicaCount": 0,
            "maxReplicaCount": MAX_WORKERS,
            "pollingInterval": 15,
            "cooldownPeriod": 600,
            "triggers": [
                {
                    "type": "prometheus",
                    "metadata": {
                        # The Service of the community's chart, installed as `prometheus`.
                        "serverAddress": "http://prometheus-server.monitoring",
                        "query": query,
                        "threshold": "1",
                        # Without an answer the workers stay as many as they are: read as 0, a Prometheus that sees
                        # nothing would take them away, or never start one.
                        "ignoreNullValues": "false",
                    },
                }
            ],
        },
    }


def quota() -> Manifest:
    gpus = {"requests.nvidia.com/gpu": str(MAX_WORKERS)}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta("gpus"), "spec": {"hard": gpus}}


def triton() -> list[Manifest]:
    """Triton, whose control calls run code: publishing alone may call it, and each control call needs the key."""
    closed = "model-repository,shared-memory,trace,logging:saucer-control=$(CONTROL_KEY)"
    # Not by /v2/health/ready: one model that cannot be loaded turns it false, and publishing has to reach Triton then.
    alive: Manifest = {"httpGet": {"path": "/v2/health/live", "port": TRITON_HTTP}}
    container: Manifest = {
        "name": "triton",
        "image": "saucer-triton",
        "command": [
            "tritonserver",
            "--model-repository=/var/lib/saucer/models",
            "--model-control-mode=explicit",
            "--http-address=0.0.0.0",
            f"--http-port={TRITON_HTTP}",
            "--grpc-address=0.0.0.0",
            f"--grpc-port={TRITON_GRPC}",
            f"--grpc-restricted-protocol={closed}",
            f"--http-restricted-api={closed}",
            "--exit-timeout-secs=3",
            "--disable-auto-complete-config",
            "--log-format=ISO8601",
        ],
        "env": [{"name": "CONTROL_KEY", **secret("triton-control", "key")}],
        "ports": [{"name": "grpc", "containerPort": TRITON_GRPC}, {"name": "http", "containerPort": TRITON_HTTP}],
        "startupProbe": {**alive, "failureThreshold": 60},
        "readinessProbe": {**alive, "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {**alive, "periodSeconds": 20, "timeoutSeconds": 5},
        "volumeMounts": [
            {"name": "models", "mountPath": "/var/lib/saucer/models", "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - between Triton and its Python processes
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        ],
        "securityContext": CONTAINER_SECURITY,
        "resources": {
            "requests": {"cpu": TRITON_CPUS, "memory": "8Gi"},
            "limits": {"memory": "8Gi"},
        },
    }
    spec = {
        "serviceAccountName": "triton",
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return [
        service_account("triton"),
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": server_meta("triton"),
            "spec": {
                # publishing loads into one server; a second would have other models.
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": server_labels("triton")},
                "template": {"metadata": {"labels": server_labels("triton")}, "spec": spec},
            },
        },
        service("triton", {"grpc": TRITON_GRPC}),
        disruption_budget("triton"),
        {
            # publishing writes it, Triton reads it, perhaps on another node.
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": meta("models", "triton"),
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "20Gi"}}},
        },
        policy("triton", [{"from": [pods("publishing")], "ports": tcp(TRITON_GRPC)}], []),
    ]


def common() -> list[Manifest]:
    """The namespace, what all share, and nothing allowed but by a policy of its own."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "saucer", "labels": restricted}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta("saucer"),
            "data": {"object-store-url": "s3://saucer/objects", "otlp-endpoint": "", "stream-replicas": "3"},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": meta("nothing-else", "saucer"),
            "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        },
        quota(),
    ]


def manifests(process: Process) -> list[Manifest]:
    """Of one process."""
    found = [service_account(process.name)]
    if process.database:
        found.append(migration(process))
    found.append(deployment(process))
    if process.name != "worker":
        named = {"grpc": GRPC} | ({"http": HTTP} if process.name == "gateway" else {})
        found.append(service(process.name, named))
    return [*found, disruption_budget(process.name), network_policy(process)]


def files() -> dict[str, str]:
    """What base/ holds, by name."""
    content = {"common.yaml": common(), "triton.yaml": triton(), SCALING: [scaling()]}
    content |= {f"{process.name}.yaml": manifests(process) for process in PROCESSES}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "saucer",
        "resources": sorted(content),
    }
    texts = {name: dump(documents) for name, documents in content.items()}
    return texts | {"kustomization.yaml": dump([kustomization])}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def dump(documents: list[Manifest]) -> str:
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)
    return f"# Written by deploy/kubernetes/manifests.py.\n{text}"


def main() -> None:
    """Writes every file."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
