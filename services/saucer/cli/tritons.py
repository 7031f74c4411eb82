"""`saucer triton`: the servers that carry deployments; for administrators."""

import click

from saucer.cli.app import App, Topic, pass_app
from saucer.publishing.v1 import publishing_pb2

TRITON = click.argument("triton_id", metavar="TRITON")
COLUMNS = ("triton", "address", "region", "spec", "used", "room", "copies", "threads", "gpu", "answers", "draining")


@click.group(cls=Topic)
def triton() -> None:
    """Servers that carry deployments."""


@triton.command("list")
@pass_app
def list_(app: App) -> None:
    """Every Triton, and how much of its room is used."""
    found = app.connection.publishing.ListTritons(publishing_pb2.ListTritonsRequest()).tritons
    app.output.listing("", COLUMNS, found, _row)


@triton.command()
@TRITON
@click.option("--address", required=True, metavar="HOST:PORT", help="Of its gRPC, as publishing reaches it.")
@click.option("--repository", required=True, metavar="FOLDER", help="Its models, as publishing can write them.")
@click.option("--region", "region_id", required=True)
@click.option("--spec", "spec_id", required=True)
@click.option("--room", type=click.IntRange(1, 1000), required=True, help="Deployments that it takes.")
@click.option(
    "--threads", type=click.IntRange(1, 1024), required=True, help="Of the processor, that one copy of a model may use."
)
@click.option(
    "--copies", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that carry one model."
)
@click.option("--gpu", is_flag=True, help="Models compute on its first GPU (unproven).")
@pass_app
def register(
    app: App,
    triton_id: str,
    address: str,
    repository: str,
    region_id: str,
    spec_id: str,
    room: int,
    threads: int,
    copies: int,
    gpu: bool,
) -> None:
    """Let it take deployments; the same name again changes what is known of it."""
    request = publishing_pb2.RegisterTritonRequest(
        triton_id=triton_id,
        address=address,
        repository=repository,
        region_id=region_id,
        spec_id=spec_id,
        room=room,
        threads=threads,
        copies=copies,
        gpu=gpu,
    )
    _print(app, app.connection.publishing.RegisterTriton(request))


@triton.command()
@TRITON
@pass_app
def drain(app: App, triton_id: str) -> None:
    """Give it no more, and move what it has as soon as others have room, until `triton resume`."""
    _print(app, app.connection.publishing.DrainTriton(publishing_pb2.DrainTritonRequest(triton_id=triton_id)))


@triton.command()
@TRITON
@pass_app
def resume(app: App, triton_id: str) -> None:
    """Let it take deployments again."""
    request = publishing_pb2.DrainTritonRequest(triton_id=triton_id, undo=True)
    _print(app, app.connection.publishing.DrainTriton(request))


@triton.command()
@TRITON
@pass_app
def unregister(app: App, triton_id: str) -> None:
    """Forget one that carries nothing; `triton drain` first, until `triton list` says that it uses no room.

    For some seconds more it unloads models, and is refused; one that does not answer is forgotten with what it has.
    """
    request = publishing_pb2.UnregisterTritonRequest(triton_id=triton_id)
    _print(app, app.connection.publishing.UnregisterTriton(request))


def _row(triton: publishing_pb2.Triton) -> tuple[object, ...]:
    return (
        triton.triton_id,
        triton.address,
        triton.region_id,
        triton.spec_id,
        triton.used,
        triton.room,
        triton.copies,
        triton.threads,
        "yes" if triton.gpu else "no",
        "yes" if triton.live else "no",
        "yes" if triton.draining else "no",
    )


def _print(app: App, triton: publishing_pb2.Triton) -> None:
    app.output.record("", triton, list(zip(COLUMNS, _row(triton), strict=True)))
