"""`saucer events`: the stream as it is, and what a service could not take of it."""

import json
from typing import Any

import click

from saucer.cli.app import IDENTIFIER, App, Topic, pages, pass_app
from saucer.cli.connection import follow
from saucer.cli.output import local_time, message_dict
from saucer.gateway.v1 import gateway_pb2
from saucer.lib.v1 import dead_events_pb2

# Each serves its own dead events.
SERVICES = ("billing", "dataset", "task", "training", "evaluation", "publishing")


@click.group(cls=Topic)
def events() -> None:
    """What happened."""


@events.command()
@click.option("--work", "work_id", type=IDENTIFIER, help="Only of this task or deployment.")
@click.option("--after", "after_sequence", type=click.IntRange(min=0), default=0, help="After this sequence number.")
@click.option(
    "--follow/--until-now", "-f", "keep_following", default=True, show_default=True, help="Wait for more, or end."
)
@pass_app
def tail(app: App, work_id: str | None, after_sequence: int, keep_following: bool) -> None:
    """The account's events: those that are kept, then those that come. --json prints CloudEvents, one a line."""
    stub, account_id = app.connection.events, app.connection.account_id
    for event in follow(
        lambda last: stub.StreamEvents(
            gateway_pb2.StreamEventsRequest(
                account_id=account_id,
                work_id=work_id or "",
                after_sequence=last.sequence if last else after_sequence,
                until_now=not keep_following,
            )
        )
    ):
        if app.output.as_json:
            app.output.line(cloud_event(event))
        else:
            app.output.say(_line(event))


def cloud_event(event: gateway_pb2.CloudEvent) -> dict[str, Any]:
    """CloudEvents' own JSON format, with the stream's sequence number as an extension."""
    return {
        "specversion": event.spec_version,
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time.ToJsonString(),
        "datacontenttype": event.data_content_type,
        "sequence": event.sequence,
        "data": json.loads(event.data),
    }


def _line(event: gateway_pb2.CloudEvent) -> str:
    account_id, work_id, resource_id = event.subject.removeprefix(f"{event.type}.").split(".", 2)
    words = [str(event.sequence), local_time(event.time), event.type.removeprefix("saucer."), f"account {account_id}"]
    if work_id != "-":
        words.append(f"work {work_id}")
    if resource_id not in {account_id, work_id}:
        words.append(f"resource {resource_id}")
    return "  ".join(words)


@events.command()
@click.option("--service", type=click.Choice(SERVICES), help="Only of this one.")
@pass_app
def dead(app: App, service: str | None) -> None:
    """What could not be consumed, and why (administrator)."""
    found: list[dead_events_pb2.DeadEvent] = []
    for name in [service] if service else SERVICES:
        stub = app.connection.dead_events(name)
        found += pages(stub.ListDeadEvents, dead_events_pb2.ListDeadEventsRequest(), "dead_events", None)
    app.output.listing(
        "",
        ("service", "event id", "type", "attempts", "dead since", "error"),
        found,
        lambda item: (
            item.consumer,
            item.event_id,
            item.type,
            item.attempts,
            local_time(item.dead_time),
            item.error,
        ),
    )


@events.command()
@click.argument("service", type=click.Choice(SERVICES))
@click.argument("event_id", type=IDENTIFIER, metavar="EVENT")
@pass_app
def retry(app: App, service: str, event_id: str) -> None:
    """Let a service take a dead event again, now (administrator)."""
    request = dead_events_pb2.RetryDeadEventRequest(event_id=event_id)
    taken = app.connection.dead_events(service).RetryDeadEvent(request)
    if app.output.as_json:
        app.output.json(message_dict(taken))
    app.output.say(f"{service} has taken {taken.type} {taken.event_id}.")
