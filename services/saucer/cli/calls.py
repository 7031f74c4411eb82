"""`saucer calls`: who did what."""

import click

from saucer.cli.app import App, Topic, limit_option, pages, pass_app, remark_rest
from saucer.cli.events import SERVICES
from saucer.cli.output import local_time
from saucer.lib.v1 import calls_pb2


@click.group(cls=Topic)
def calls() -> None:
    """Who did what (administrator)."""


@calls.command(name="list")
@click.option("--service", type=click.Choice(SERVICES), help="Only of this one.")
@click.option("--author", default="", help="Only by tokens of this subject.")
@click.option("--about", "resource_id", default="", metavar="ID", help="Only those that named or made this.")
@limit_option()
@pass_app
def list_(app: App, service: str | None, author: str, resource_id: str, limit: int) -> None:
    """Calls that change something, newest first; with --account of one account (administrator)."""
    found: list[tuple[str, calls_pb2.Call]] = []
    more = False
    for name in [service] if service else SERVICES:
        request = calls_pb2.ListCallsRequest(
            account_id=app.connection.account_id, author=author, resource_id=resource_id
        )
        found += [(name, call) for call in pages(app.connection.calls(name).ListCalls, request, "calls", limit)]
        more = more or bool(request.page_token)
    found.sort(key=lambda item: item[1].create_time.ToNanoseconds(), reverse=True)
    service_of = {call.call_id: name for name, call in found}
    app.output.listing(
        "",
        ("time", "service", "call", "author", "role", "about", "outcome"),
        [call for _, call in found[:limit]],
        lambda call: (
            local_time(call.create_time),
            service_of[call.call_id],
            call.method.rpartition("/")[2],
            call.author,
            call.role,
            " ".join(call.ids.values()),
            call.outcome or "unknown",
        ),
    )
    if more or len(found) > limit:
        remark_rest(app, limit)
