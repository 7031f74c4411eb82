"""`saucer deployment instances|traffic|logs|events|versions|gate|records`: what is known of one deployment."""

from datetime import datetime

import click

from saucer.cli.app import IDENTIFIER, MOMENT, App, Verb, limit_option, listed, pass_app
from saucer.cli.errors import CliError
from saucer.cli.output import enum_word, moment
from saucer.lib.clock import to_timestamp
from saucer.lib.scores import threshold_text
from saucer.publishing.v1 import publishing_pb2

# Among which the gate of one is looked for.
NEWEST_VERSIONS = 1000
DEPLOYMENT = click.argument("deployment_id", type=IDENTIFIER, metavar="DEPLOYMENT")


@click.command(cls=Verb)
@DEPLOYMENT
@pass_app
def instances(app: App, deployment_id: str) -> None:
    """Which Tritons carry it now."""
    request = publishing_pb2.ListInstancesRequest(deployment_id=deployment_id)
    app.output.listing(
        "",
        ("triton", "version", "answers", "serves", "state", "since", "message"),
        app.connection.publishing.ListInstances(request).instances,
        lambda item: (
            item.instance_id,
            item.version_number,
            "yes" if item.live else "no",
            "yes" if item.serving else "no",
            enum_word(item, "state"),
            moment(item, "state_time"),
            item.message,
        ),
    )


@click.command(cls=Verb)
@DEPLOYMENT
@click.option("--since", type=MOMENT, help="Local time; default: an hour ago.")
@click.option("--until", type=MOMENT, help="Local time; default: now.")
@pass_app
def traffic(app: App, deployment_id: str, since: datetime | None, until: datetime | None) -> None:
    """Each 15 seconds' requests, errors and latency, by version, oldest first; at most 1,000."""
    request = publishing_pb2.ListTrafficSamplesRequest(
        deployment_id=deployment_id, start_time=to_timestamp(since), end_time=to_timestamp(until)
    )
    app.output.listing(
        "",
        (
            "from",
            "version",
            "requests",
            "errors",
            "a second",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "load",
            "batch",
            "queue ms",
        ),
        app.connection.publishing.ListTrafficSamples(request).samples,
        lambda item: (
            moment(item, "start_time"),
            item.version_number,
            item.requests,
            item.errors,
            f"{item.requests_per_second:.1f}",
            f"{item.latency_p50_ms:.1f}",
            f"{item.latency_p95_ms:.1f}",
            f"{item.latency_p99_ms:.1f}",
            f"{item.load:.2f}",
            f"{item.batch_size:.2f}",
            f"{item.queue_ms:.2f}",
        ),
    )


@click.command(cls=Verb)
@DEPLOYMENT
@limit_option()
@pass_app
def logs(app: App, deployment_id: str, limit: int) -> None:
    """What its models said, the latest first."""
    request = publishing_pb2.ListDeploymentLogLinesRequest(deployment_id=deployment_id)
    app.output.listing(
        "",
        ("when", "version", "triton", "level", "message"),
        listed(app, app.connection.publishing.ListDeploymentLogLines, request, "lines", limit),
        lambda item: (moment(item, "log_time"), item.version_number, item.instance_id, item.level, item.message),
    )


@click.command(cls=Verb)
@DEPLOYMENT
@pass_app
def events(app: App, deployment_id: str) -> None:
    """What happened to it, the same again counted; the latest first."""
    request = publishing_pb2.ListDeploymentEventsRequest(deployment_id=deployment_id)
    app.output.listing(
        "",
        ("last", "first", "start", "event", "times", "message"),
        app.connection.publishing.ListDeploymentEvents(request).events,
        lambda item: (
            moment(item, "last_time"),
            moment(item, "first_time"),
            item.start_number,
            item.kind,
            item.count,
            item.message,
        ),
    )


@click.command(cls=Verb)
@DEPLOYMENT
@limit_option()
@pass_app
def versions(app: App, deployment_id: str, limit: int) -> None:
    """What it has served or was asked to serve, newest first."""
    request = publishing_pb2.ListDeploymentVersionsRequest(deployment_id=deployment_id)
    app.output.listing(
        "",
        ("version", "model id", "thresholds", "runtime", "replay", "asked for"),
        listed(app, app.connection.publishing.ListDeploymentVersions, request, "versions", limit),
        lambda item: (
            item.number,
            item.model_id,
            ", ".join(f"{one.class_name} {threshold_text(one.threshold)}" for one in item.thresholds),
            item.gate.runtime,
            _agreed(item.gate.parity) if item.HasField("gate") else "",
            moment(item, "create_time"),
        ),
    )


@click.command(cls=Verb)
@DEPLOYMENT
@click.argument("version_number", type=click.IntRange(min=1), metavar="[VERSION]", required=False)
@pass_app
def gate(app: App, deployment_id: str, version_number: int | None) -> None:
    """The replay of a version, by default the newest: its runtime, and the images that differed most."""
    request = publishing_pb2.ListDeploymentVersionsRequest(
        deployment_id=deployment_id, page_size=1 if version_number is None else NEWEST_VERSIONS
    )
    listed = app.connection.publishing.ListDeploymentVersions(request).versions
    found = next((item for item in listed if version_number in (None, item.number)), None)
    if found is None or not found.HasField("gate"):
        raise CliError(f"That version has not been replayed, or is not one of the newest {NEWEST_VERSIONS}.")
    shown = found.gate
    app.output.record(
        "",
        shown,
        [
            ("version", found.number),
            ("replay", _agreed(shown.parity)),
            ("replayed", moment(shown, "replay_time")),
            ("runtime", shown.runtime),
            ("why", shown.runtime_reason),
            (
                "tolerance",
                f"{100 * shown.tolerance_share:g} % within {shown.tolerance_px:g} px of the model's input and "
                f"{shown.tolerance_score:g} of a score",
            ),
        ],
    )
    if app.output.as_json:
        return
    app.output.table(
        "What differed most",
        ("image", "boxes", "unpaired", "only evaluated", "only served", "px", "score"),
        [
            (
                item.image_id,
                item.boxes,
                item.unpaired,
                item.only_evaluated,
                item.only_served,
                f"{item.box_px:.3g}",
                f"{item.score:.3g}",
            )
            for item in shown.images
        ],
    )


def _agreed(parity: publishing_pb2.Parity) -> str:
    word = "passed" if parity.ok else "failed"
    return f"{word}: {parity.paired} of {parity.boxes} boxes on {parity.images} images"


@click.command(cls=Verb)
@DEPLOYMENT
@limit_option()
@pass_app
def records(app: App, deployment_id: str, limit: int) -> None:
    """Who changed what, when; newest first."""
    request = publishing_pb2.ListUpdateRecordsRequest(deployment_id=deployment_id)
    app.output.listing(
        "",
        ("when", "who", "what", "from", "to", "share", "detail"),
        listed(app, app.connection.publishing.ListUpdateRecords, request, "records", limit),
        lambda item: (
            moment(item, "create_time"),
            item.author,
            enum_word(item, "action"),
            item.from_version,
            item.to_version,
            f"{item.percent} %" if item.percent else "",
            item.detail,
        ),
    )
