"""`saucer deploy`, `saucer deployment` and `saucer stop`."""

import time
from collections.abc import Sequence
from typing import Any

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import (
    IDENTIFIER,
    MONEY,
    SECONDS,
    App,
    Topic,
    Verb,
    chosen,
    enum_choice,
    enum_number,
    limit_option,
    listed,
    pass_app,
)
from saucer.cli.deployment_details import DEPLOYMENT, events, gate, instances, logs, records, traffic, versions
from saucer.cli.errors import CliError
from saucer.cli.models import find_model
from saucer.cli.output import Output, duration, enum_word, message_dict, moment, money
from saucer.lib.clock import to_duration
from saucer.lib.scores import threshold_text
from saucer.publishing.v1 import publishing_pb2

WAIT = click.option("--wait", is_flag=True, help="Stay until it is active, or at rest.")
POLL_S = 0.5
FAILED = {publishing_pb2.DEPLOYMENT_STATE_FAILED, publishing_pb2.DEPLOYMENT_STATE_REFUSED}
AT_REST = FAILED | {publishing_pb2.DEPLOYMENT_STATE_STOPPED}
_MODES = billing_pb2.BillingMode.DESCRIPTOR


class ClassThreshold(click.ParamType[publishing_pb2.ClassThreshold]):
    """cup=0.4"""

    name = "class=threshold"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        class_name, _, threshold = str(value).rpartition("=")
        try:
            return publishing_pb2.ClassThreshold(class_name=class_name, threshold=float(threshold))
        except ValueError:
            return self.fail(f"{value!r} is not like cup=0.4.", param, ctx)


@click.command(cls=Verb)
@click.argument("model_id", type=IDENTIFIER, metavar="MODEL_OR_TASK")
@click.option("--name", help="Default: the model's.")
@click.option("--region", "region_id", help="Default: the profile's.")
@click.option("--spec", "spec_id", help="Default: the profile's.")
@click.option("--replicas", type=int, default=1, show_default=True, help="Each on a Triton of its own.")
@click.option("--billing-mode", type=enum_choice(_MODES), default="postpaid", show_default=True)
@click.option("--group", "resource_group_id", type=IDENTIFIER, help="Of prepaid: whose capacity it takes.")
@click.option("--budget", type=MONEY, default=0, help="What all its starts together may cost at most: 12.50.")
@click.option("--max-duration", type=SECONDS, help="90s, 15m or 2h; without it, it runs and costs until stopped.")
@click.option("--idle-stop", type=SECONDS, help="Stop when no request came for that long.")
@click.option(
    "--threshold",
    "thresholds",
    type=ClassThreshold(),
    multiple=True,
    metavar="CLASS=SCORE",
    help="Repeatable; of the other classes: the evaluation's recommendation.",
)
@WAIT
@pass_app
def deploy(
    app: App,
    model_id: str,
    name: str | None,
    region_id: str | None,
    spec_id: str | None,
    replicas: int,
    billing_mode: str,
    resource_group_id: str | None,
    budget: int,
    max_duration: float | None,
    idle_stop: float | None,
    thresholds: Sequence[publishing_pb2.ClassThreshold],
    wait: bool,
) -> None:
    """Freeze two hours of cost and put an evaluated model online."""
    profile = app.connection.profile
    found = find_model(app, model_id)
    request = publishing_pb2.CreateDeploymentRequest(
        request_id=app.request_id(),
        account_id=app.connection.account_id,
        display_name=name or found.display_name,
        model_id=found.model_id,
        region_id=chosen(profile.region_id, region_id, "--region"),
        spec_id=chosen(profile.spec_id, spec_id, "--spec"),
        replicas=replicas,
        billing_mode=enum_number(_MODES, billing_mode),
        resource_group_id=resource_group_id or "",
        budget_micros=budget,
        max_duration=to_duration(None if max_duration is None else round(1000 * max_duration)),
        idle_stop=to_duration(None if idle_stop is None else round(1000 * idle_stop)),
        thresholds=thresholds,
    )
    _show_or_wait(app, app.connection.publishing.CreateDeployment(request), wait)


@click.group(cls=Topic)
def deployment() -> None:
    """What is online."""


deployment.add_command(instances)
deployment.add_command(traffic)
deployment.add_command(logs)
deployment.add_command(events)
deployment.add_command(versions)
deployment.add_command(gate)
deployment.add_command(records)


@deployment.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """Deployments, newest first."""
    request = publishing_pb2.ListDeploymentsRequest(account_id=app.connection.account_id)
    found = listed(app, app.connection.publishing.ListDeployments, request, "deployments", limit)
    app.output.listing(
        "",
        ("deployment id", "name", "state", "replicas", "cost", "created"),
        found,
        lambda item: (
            item.deployment_id,
            item.display_name,
            enum_word(item, "state"),
            item.replicas,
            money(item.cost_micros, item.currency),
            moment(item, "create_time"),
        ),
    )


@deployment.command()
@DEPLOYMENT
@pass_app
def show(app: App, deployment_id: str) -> None:
    """One deployment."""
    print_deployment(app.output, get(app, deployment_id))


@deployment.command()
@DEPLOYMENT
@click.option("--wait", is_flag=True, help="Stay until it is at rest.")
@pass_app
def stop(app: App, deployment_id: str, wait: bool) -> None:
    """Take it offline; the rest of its hold is released."""
    request = publishing_pb2.StopDeploymentRequest(request_id=app.request_id(), deployment_id=deployment_id)
    current = app.connection.publishing.StopDeployment(request)
    while wait and current.state not in AT_REST:
        time.sleep(POLL_S)
        current = get(app, deployment_id)
    print_deployment(app.output, current)


@deployment.command()
@DEPLOYMENT
@pass_app
def delete(app: App, deployment_id: str) -> None:
    """Delete a deployment at rest; its bill stays."""
    request = publishing_pb2.DeleteDeploymentRequest(request_id=app.request_id(), deployment_id=deployment_id)
    deleted = app.connection.publishing.DeleteDeployment(request)
    if app.output.as_json:
        app.output.json(message_dict(deleted))
    app.output.say(f"Deleted {deleted.display_name}.")


@deployment.command()
@DEPLOYMENT
@click.option("--billing-mode", type=enum_choice(_MODES), help="Default: as before.")
@click.option(
    "--group",
    "resource_group_id",
    type=IDENTIFIER,
    help="Of prepaid: whose capacity it takes; default: as before, unless --billing-mode is named.",
)
@WAIT
@pass_app
def start(app: App, deployment_id: str, billing_mode: str | None, resource_group_id: str | None, wait: bool) -> None:
    """Put it online again, under a new hold."""
    request = publishing_pb2.StartDeploymentRequest(
        request_id=app.request_id(),
        deployment_id=deployment_id,
        billing_mode=enum_number(_MODES, billing_mode) if billing_mode else billing_pb2.BILLING_MODE_UNSPECIFIED,
        resource_group_id=resource_group_id or "",
    )
    _show_or_wait(app, app.connection.publishing.StartDeployment(request), wait)


def print_deployment(output: Output, found: publishing_pb2.Deployment) -> None:
    """What a user wants to know of it."""
    parity = found.parity
    agreed = f"{parity.paired} of {parity.boxes} boxes on {parity.images} images agree with the evaluation"
    output.record(
        "",
        found,
        [
            ("deployment id", found.deployment_id),
            ("name", found.display_name),
            ("state", enum_word(found, "state")),
            ("charge", enum_word(found, "charge_status")),
            ("end", enum_word(found, "end_reason")),
            ("error", found.error_message),
            ("replay", f"{agreed}: {'passed' if parity.ok else 'failed'}" if found.HasField("parity") else None),
            ("version", _versions(found)),
            ("replicas", f"{_replicas(found)} of {found.spec_id} in {found.region_id}"),
            ("cost", f"{money(found.cost_micros, found.currency)} for {duration(found.charged_ms / 1000)} of serving"),
            ("hold", money(found.hold_micros, found.currency)),
            ("missing", money(found.missing_micros, found.currency) if found.missing_micros else None),
            (
                "thresholds",
                ", ".join(f"{item.class_name} {threshold_text(item.threshold)}" for item in found.thresholds),
            ),
            ("model id", found.model_id),
            ("created", moment(found, "create_time")),
            ("active since", moment(found, "active_time")),
            ("stops at", moment(found, "stop_time")),
            ("stops idle at", moment(found, "idle_stop_time")),
            ("ended", moment(found, "end_time")),
        ],
    )
    for warning in found.warnings:
        output.remark(f"Warning: {warning}")


def _replicas(found: publishing_pb2.Deployment) -> str:
    if found.state != publishing_pb2.DEPLOYMENT_STATE_ACTIVE:
        return str(found.replicas)
    return f"{found.replicas}, {found.serving_replicas} serving,"


def _versions(found: publishing_pb2.Deployment) -> str:
    if not found.HasField("candidate"):
        return str(found.version_number)
    candidate = found.candidate
    share = f"with {candidate.percent} % of the traffic" if candidate.ready else "loading, and being replayed"
    return f"{found.version_number}; beside it {candidate.version.number}, {share}"


def _show_or_wait(app: App, current: publishing_pb2.Deployment, wait: bool) -> None:
    said = ""
    while wait and current.state not in AT_REST | {publishing_pb2.DEPLOYMENT_STATE_ACTIVE}:
        if enum_word(current, "state") != said:
            said = enum_word(current, "state")
            app.output.remark(f"Deployment {current.deployment_id}: {said}")
        time.sleep(POLL_S)
        current = get(app, current.deployment_id)
    print_deployment(app.output, current)
    if wait and current.state in AT_REST:
        reason = current.error_message or enum_word(current, "end_reason")
        raise CliError(f"The deployment is {enum_word(current, 'state')}: {reason}")


def get(app: App, deployment_id: str) -> publishing_pb2.Deployment:
    """A deployment, now."""
    return app.connection.publishing.GetDeployment(publishing_pb2.GetDeploymentRequest(deployment_id=deployment_id))
