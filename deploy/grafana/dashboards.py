"""Grafana's dashboards as code: `python deploy/grafana/dashboards.py` writes dashboards/*.json anew.

A panel is a title, a unit of Grafana's and queries with their legends. What is read from a database is exported by
every replica alike, so that its maximum counts.
"""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "dashboards"
COLUMNS = 3
WIDTH = 24 // COLUMNS
HEIGHT = 8
PREDICTION_BUCKETS = "sum by (le) (rate(saucer_publishing_request_seconds_bucket[$__rate_interval]))"


@dataclass(frozen=True)
class Panel:
    """One graph; `queries` are pairs of PromQL and legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Dashboard:
    """A page of graphs."""

    uid: str
    title: str
    panels: tuple[Panel, ...]


def _rate(counter: str, by: str) -> str:
    return f"sum by ({by}) (rate({counter}[$__rate_interval]))"


def _quantile(quantile: float, histogram: str, by: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le, {by}) (rate({histogram}_bucket[$__rate_interval])))"


PLATFORM = Dashboard(
    "saucer-platform",
    "Saucer: platform",
    (
        Panel("Processes that answer", "short", (("sum by (job) (up)", "{{job}}"),)),
        Panel("Calls by outcome", "reqps", ((_rate("saucer_grpc_calls_total", "code"), "{{code}}"),)),
        Panel(
            "Slowest calls, p99",
            "s",
            ((f"topk(8, {_quantile(0.99, 'saucer_grpc_call_seconds', 'method')})", "{{method}}"),),
        ),
        Panel("HTTP requests", "reqps", ((_rate("saucer_gateway_requests_total", "code"), "{{code}}"),)),
        Panel(
            "HTTP duration, p95", "s", ((_quantile(0.95, "saucer_gateway_request_seconds", "method"), "{{method}}"),)
        ),
        Panel("Memory", "bytes", (("process_resident_memory_bytes", "{{instance}}"),)),
        Panel("Events taken", "cps", ((_rate("saucer_events_total", "service, outcome"), "{{service}} {{outcome}}"),)),
        Panel(
            "Events: from made to taken, p99",
            "s",
            ((_quantile(0.99, "saucer_event_lag_seconds", "service"), "{{service}}"),),
        ),
        Panel("Dead events", "short", (("max by (service) (saucer_dead_events)", "{{service}}"),)),
        Panel("Events sent", "cps", ((_rate("saucer_outbox_sent_total", "service"), "{{service}}"),)),
        Panel("Oldest event not sent", "s", (("max by (service) (saucer_outbox_oldest_age_seconds)", "{{service}}"),)),
        Panel("Processor", "percentunit", (("rate(process_cpu_seconds_total[$__rate_interval])", "{{instance}}"),)),
    ),
)

WORK = Dashboard(
    "saucer-work",
    "Saucer: training and serving",
    (
        Panel(
            "Runs that wait", "short", (("max by (region, spec) (saucer_training_queued_runs)", "{{region}}/{{spec}}"),)
        ),
        Panel(
            "Longest wait",
            "s",
            (("max by (region, spec) (saucer_training_oldest_queued_seconds)", "{{region}}/{{spec}}"),),
        ),
        Panel(
            "Attempts whose worker was lost",
            "short",
            (("sum(increase(saucer_training_attempts_lost_total[1h]))", "an hour"),),
        ),
        Panel(
            "Runs ended", "short", (("sum by (reason) (increase(saucer_training_runs_ended_total[1h]))", "{{reason}}"),)
        ),
        Panel(
            "Imports ended", "short", (("sum by (state) (increase(saucer_dataset_imports_total[1h]))", "{{state}}"),)
        ),
        Panel(
            "Scoring, p95",
            "s",
            (("histogram_quantile(0.95, sum by (le) (rate(saucer_evaluation_scoring_seconds_bucket[1h])))", "p95"),),
        ),
        Panel("Deployments", "short", (("max by (state) (saucer_publishing_deployments)", "{{state}}"),)),
        Panel("Predictions", "reqps", ((_rate("saucer_publishing_requests_total", "outcome"), "{{outcome}}"),)),
        Panel(
            "Prediction time",
            "s",
            tuple(
                (f"histogram_quantile({quantile}, {PREDICTION_BUCKETS})", name)
                for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ),
        ),
        Panel("Probes of deployments", "cps", ((_rate("saucer_publishing_probes_total", "outcome"), "{{outcome}}"),)),
        Panel(
            "Replays that disagreed",
            "short",
            (('sum(increase(saucer_publishing_replays_total{ok="False"}[1h]))', "an hour"),),
        ),
        Panel(
            "Evaluations and their charts in memory",
            "bytes",
            (("saucer_evaluation_cached_bytes", "{{cache}}, {{instance}}"),),
        ),
    ),
)

MONEY = Dashboard(
    "saucer-money",
    "Saucer: money",
    (
        Panel(
            "Holds asked for", "short", (("sum by (state) (increase(saucer_billing_holds_total[1h]))", "{{state}}"),)
        ),
        Panel("Open holds", "short", (("max by (work_kind) (saucer_billing_open_holds)", "{{work_kind}}"),)),
        Panel(
            "Starts not at rest",
            "short",
            (("max by (work_kind) (saucer_task_open_starts or saucer_publishing_open_starts)", "{{work_kind}}"),),
        ),
        Panel(
            "Lost by the platform, micros",
            "short",
            (("max by (currency) (saucer_billing_lost_micros)", "{{currency}}, in all"),),
        ),
        Panel("Broken invariants", "short", (("max(saucer_billing_audit_findings)", "last audit"),)),
        Panel("Since the last audit", "s", (("time() - max(saucer_billing_audit_timestamp_seconds)", "age"),)),
    ),
)

DASHBOARDS = (PLATFORM, WORK, MONEY)


def to_json(dashboard: Dashboard) -> str:
    """As Grafana reads it from a file."""
    panels = [
        {
            "id": number + 1,
            "title": panel.title,
            "type": "timeseries",
            "datasource": {"type": "prometheus", "uid": "prometheus"},
            "gridPos": {"x": number % COLUMNS * WIDTH, "y": number // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
                for index, (query, legend) in enumerate(panel.queries)
            ],
        }
        for number, panel in enumerate(dashboard.panels)
    ]
    page = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["saucer"],
        "schemaVersion": 39,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "panels": panels,
    }
    return json.dumps(page, indent=1) + "\n"


def main() -> None:
    """Writes every file."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.uid}.json").write_text(to_json(dashboard))


if __name__ == "__main__":
    main()
