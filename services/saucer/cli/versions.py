"""`saucer update|rollback|split`: another version of a deployment, beside the one that serves or in its place."""

import time
from collections.abc import Sequence
from typing import Any

import click

from saucer.cli.app import IDENTIFIER, App, Verb, pages, pass_app
from saucer.cli.deployment_details import DEPLOYMENT
from saucer.cli.deployments import POLL_S, ClassThreshold, get, print_deployment
from saucer.cli.errors import CliError
from saucer.cli.models import find_model
from saucer.cli.output import enum_word
from saucer.publishing.v1 import publishing_pb2

PERCENT = click.option(
    "--percent",
    type=click.IntRange(0, 99),
    default=0,
    show_default=True,
    help="Of the traffic, until it is promoted or abandoned; 0: it takes all once the replay has agreed.",
)
WAIT = click.option("--wait", is_flag=True, help="Stay until it serves, or will not.")


@click.command(cls=Verb)
@DEPLOYMENT
@click.argument("model_id", type=IDENTIFIER, metavar="[MODEL_OR_TASK]", required=False)
@click.option(
    "--threshold",
    "thresholds",
    type=ClassThreshold(),
    multiple=True,
    metavar="CLASS=SCORE",
    help="Repeatable; of the other classes: the evaluation's recommendation.",
)
@PERCENT
@WAIT
@pass_app
def update(
    app: App,
    deployment_id: str,
    model_id: str | None,
    thresholds: Sequence[publishing_pb2.ClassThreshold],
    percent: int,
    wait: bool,
) -> None:
    """Replace the model, or only the thresholds, with no failed request."""
    request = publishing_pb2.UpdateDeploymentRequest(
        request_id=app.request_id(),
        deployment_id=deployment_id,
        model_id=find_model(app, model_id).model_id if model_id else "",
        thresholds=thresholds,
        percent=percent,
    )
    current = app.connection.publishing.UpdateDeployment(request)
    _show_or_wait(app, current, _asked_for(app, current, request.request_id), wait)


@click.command(cls=Verb)
@DEPLOYMENT
@click.argument("version_number", type=click.IntRange(min=1), metavar="VERSION")
@PERCENT
@WAIT
@pass_app
def rollback(app: App, deployment_id: str, version_number: int, percent: int, wait: bool) -> None:
    """Serve a former version again; `saucer deployment versions` lists them."""
    request = publishing_pb2.RollBackDeploymentRequest(
        request_id=app.request_id(), deployment_id=deployment_id, version_number=version_number, percent=percent
    )
    _show_or_wait(app, app.connection.publishing.RollBackDeployment(request), version_number, wait)


@click.command(cls=Verb)
@DEPLOYMENT
@click.argument("percent", type=click.IntRange(0, 99), required=False)
@click.option("--promote", is_flag=True, help="All of the traffic, for good.")
@click.option("--abandon", is_flag=True, help="None of it, for good.")
@click.option(
    "--version",
    "version_number",
    type=click.IntRange(min=1),
    help="Only if the new version is this one; default: the one that there is now.",
)
@pass_app
def split(
    app: App, deployment_id: str, percent: int | None, promote: bool, abandon: bool, version_number: int | None
) -> None:
    """Give the new version another share of the traffic, or decide about it."""
    if (percent is not None) + promote + abandon != 1:
        raise CliError("Say one of PERCENT, --promote and --abandon.")
    publishing = app.connection.publishing
    # The call may be sent again when there is another new version, which is not meant.
    number = version_number or get(app, deployment_id).candidate.version.number
    meant: dict[str, Any] = {"request_id": app.request_id(), "deployment_id": deployment_id, "version_number": number}
    if promote:
        found = publishing.PromoteCandidate(publishing_pb2.PromoteCandidateRequest(**meant))
    elif abandon:
        found = publishing.AbandonCandidate(publishing_pb2.AbandonCandidateRequest(**meant))
    else:
        found = publishing.SplitDeployment(publishing_pb2.SplitDeploymentRequest(**meant, percent=percent or 0))
    print_deployment(app.output, found)


def _asked_for(app: App, current: publishing_pb2.Deployment, request_id: str) -> int:
    """The version that an update has made. The answer to its retry is the deployment as it has become since: what it
    has then may be another's.
    """
    request = publishing_pb2.ListUpdateRecordsRequest(deployment_id=current.deployment_id)
    records = pages(app.connection.publishing.ListUpdateRecords, request, "records", None)
    made = (item.to_version for item in records if item.request_id == request_id)
    # A service of before says no request ids.
    return next(made, current.candidate.version.number or current.version_number)


def _show_or_wait(app: App, current: publishing_pb2.Deployment, number: int, wait: bool) -> None:
    """Raises CliError if the version neither serves nor may yet."""
    while wait and current.candidate.version.number == number and not current.candidate.ready:
        time.sleep(POLL_S)
        current = get(app, current.deployment_id)
    print_deployment(app.output, current)
    if number not in (current.version_number, current.candidate.version.number):
        raise CliError(_why_not(app, current, number))


def _why_not(app: App, current: publishing_pb2.Deployment, number: int) -> str:
    """What became of a version that was to serve, and does not."""
    request = publishing_pb2.ListUpdateRecordsRequest(deployment_id=current.deployment_id)
    newest_first = app.connection.publishing.ListUpdateRecords(request).records
    last = next((item for item in newest_first if item.to_version == number), publishing_pb2.UpdateRecord())
    if last.action == publishing_pb2.UPDATE_ACTION_REJECTED:
        return f"Version {number} was rejected; `saucer deployment records {current.deployment_id}` says why."
    if last.action == publishing_pb2.UPDATE_ACTION_ABANDONED:
        return f"Version {number} was abandoned by {last.author}."
    state = enum_word(current, "state")
    return f"Version {number} does not serve: the deployment is {state}, with version {current.version_number}."
