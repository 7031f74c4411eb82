"""Alerts, dashboards and runbook speak of what the processes export, and of each other."""

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import prometheus_client
import pytest
import yaml

from saucer.local.stack import SERVICES

PROJECT = Path(__file__).parents[2]
PROMETHEUS = PROJECT / "deploy" / "prometheus"
GRAFANA = PROJECT / "deploy" / "grafana"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
METRIC = re.compile(r"\bsaucer_[a-z0-9_]+")


def dashboards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", GRAFANA / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def queries() -> list[str]:
    """Every query of rules and dashboards."""
    pages = [json.loads(file.read_text()) for file in sorted((GRAFANA / "dashboards").glob("*.json"))]
    panels = [target["expr"] for page in pages for panel in page["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in RULES] + panels


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """Names of every series of every process."""
    for name in (*SERVICES, "gateway", "worker"):
        importlib.import_module(f"saucer.{name}.main")
    names = set()
    for family in prometheus_client.REGISTRY.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_every_metric_that_is_asked_for_is_exported(exported: set[str]) -> None:
    asked = {metric for query in queries() for metric in METRIC.findall(query)}
    assert asked
    assert asked <= exported


def test_the_dashboards_are_what_their_source_says() -> None:
    module = dashboards()
    written = {file.name: file.read_text() for file in (GRAFANA / "dashboards").glob("*.json")}
    assert written == {f"{page.uid}.json": module.to_json(page) for page in module.DASHBOARDS}


def test_every_container_of_a_process_is_asked_and_missed_but_a_worker() -> None:
    containers = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
    processes = {name for name, each in containers.items() if "SAUCER_METRICS_LISTEN" in each.get("environment", {})}
    (scrape,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    assert set(found["names"]) == processes
    assert {"source_labels": ["__meta_dns_name"], "target_label": "process"} in scrape["relabel_configs"]
    (rule,) = [rule for rule in RULES if rule["alert"] == "ProcessDown"]
    missed = set(re.findall(r'absent\(up\{process="(\w+)"\}\)', rule["expr"]))
    assert missed == processes - {"worker", "worker-gpu"}


def test_every_alert_has_a_section_in_the_runbook_and_a_test_in_which_it_fires() -> None:
    alerts = {rule["alert"] for rule in RULES}
    headings = set(re.findall(r"^## (\w+)$", (PROJECT / "deploy" / "RUNBOOK.md").read_text(), re.MULTILINE))
    assert headings == alerts
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with the system's package prometheus")
@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]],
    ids=" ".join,
)
def test_promtool_accepts(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
