"""`saucer deploy`, `saucer deployment` and `saucer predict`."""

import time
from collections.abc import Sequence
from pathlib import Path
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
    pages,
    pass_app,
)
from saucer.cli.deployment_details import DEPLOYMENT, events, instances, records, traffic, versions
from saucer.cli.errors import CliError
from saucer.cli.models import find_model
from saucer.cli.output import Output, duration, enum_word, message_dict, moment, money
from saucer.lib.clock import to_duration
from saucer.publishing.v1 import publishing_pb2

WAIT = click.option("--wait", is_flag=True, help="Stay until it is active, or at rest.")
POLL_S = 0.5
# Larger files are not sent.
MAX_IMAGE_BYTES = 20 * 1024 * 1024
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
@click.option("--replicas", type=int, default=1, show_default=True)
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
deployment.add_command(events)
deployment.add_command(versions)
deployment.add_command(records)


@deployment.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """Deployments, newest first."""
    request = publishing_pb2.ListDeploymentsRequest(account_id=app.connection.account_id)
    found = pages(app.connection.publishing.ListDeployments, request, "deployments", limit)
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
@click.option("--billing-mode", type=enum_choice(_MODES), help="Default: as before.")
@click.option("--group", "resource_group_id", type=IDENTIFIER, help="Of prepaid: whose capacity it takes.")
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


@click.command(cls=Verb)
@DEPLOYMENT
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threshold", type=click.FloatRange(0, 1), help="Of the score; default: the deployment's, by class.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="A folder for images with boxes drawn."
)
@pass_app
def predict(
    app: App, deployment_id: str, images: tuple[Path, ...], threshold: float | None, output: Path | None
) -> None:
    """Find things on images; --json has every box above the service's low floor."""
    online = get(app, deployment_id)
    for file in images:
        image = file.read_bytes()
        if len(image) > MAX_IMAGE_BYTES:
            raise CliError(f"{file} is larger than {MAX_IMAGE_BYTES} bytes.")
        request = publishing_pb2.PredictRequest(deployment_id=deployment_id, image=image)
        found = app.connection.publishing.Predict(request)
        if app.output.as_json:
            app.output.line({"image": str(file), **message_dict(found)})
        else:
            print_boxes(app.output, file, found, threshold)
        if output is not None:
            app.output.remark(f"Drawn: {draw_boxes(output / f'{file.stem}.png', image, online, found, threshold)}")


def above(found: publishing_pb2.PredictResponse, threshold: float | None) -> list[publishing_pb2.Detection]:
    """At or above the threshold; None: at or above what the deployment has for the class."""
    return [
        item for item in found.detections if (item.above_threshold if threshold is None else item.score >= threshold)
    ]


def draw_boxes(
    file: Path,
    image: bytes,
    online: publishing_pb2.Deployment,
    found: publishing_pb2.PredictResponse,
    threshold: float | None,
) -> Path:
    """Draws what is above the threshold. Raises CliError if the file cannot be written."""
    from saucer.drawing import images  # noqa: PLC0415 - brings matplotlib, which the other commands need not wait for

    shown = above(found, threshold)
    if threshold is None:
        # One figure below the picture for thresholds by class: what all that is drawn has reached, or what none has.
        own = [item.threshold for item in online.thresholds] or [0.0]
        threshold = min(own) if shown else max(own)
    boxes = [
        images.LabelledBox(item.x1, item.y1, item.x2, item.y2, item.class_name, item.score)
        for item in (shown or found.detections)
    ]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(images.boxes_on_image(image, boxes, list(online.classes), threshold))
    except (OSError, ValueError) as error:
        raise CliError(f"The picture {file} cannot be drawn: {error}.") from error
    return file


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
            ("replicas", f"{found.replicas} of {found.spec_id} in {found.region_id}"),
            ("cost", f"{money(found.cost_micros, found.currency)} for {duration(found.charged_ms / 1000)} of serving"),
            ("hold", money(found.hold_micros, found.currency)),
            ("missing", money(found.missing_micros, found.currency) if found.missing_micros else None),
            ("thresholds", ", ".join(f"{item.class_name} {item.threshold:.2f}" for item in found.thresholds)),
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


def _versions(found: publishing_pb2.Deployment) -> str:
    if not found.HasField("candidate"):
        return str(found.version_number)
    candidate = found.candidate
    share = f"with {candidate.percent} % of the traffic" if candidate.ready else "loading, and being replayed"
    return f"{found.version_number}; beside it {candidate.version.number}, {share}"


def print_boxes(output: Output, file: Path, found: publishing_pb2.PredictResponse, threshold: float | None) -> None:
    """As a table what is above the threshold, or that nothing is."""
    shown = above(found, threshold)
    if not shown:
        best = f"the highest score below it is {found.highest_score:.2f}" if found.highest_score else "nothing at all"
        output.say(f"{file}: nothing above the threshold; {best}.")
        return
    output.table(
        f"{file}, {found.width} × {found.height} px",
        ("class", "score", "x1", "y1", "x2", "y2"),
        [
            (item.class_name, f"{item.score:.3f}", *(f"{value:.1f}" for value in (item.x1, item.y1, item.x2, item.y2)))
            for item in shown
        ],
    )


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
