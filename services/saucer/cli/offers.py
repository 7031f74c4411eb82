"""`saucer region` and `saucer spec`: what is on offer where, at what price."""

from datetime import datetime

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import MOMENT, MONEY, REASON, App, Topic, pass_app
from saucer.cli.output import Output, money
from saucer.lib.clock import to_timestamp

COLUMNS = ("region", "spec", "name", "GPUs", "cores", "at most", "price an hour", "offer")


@click.group(cls=Topic)
def region() -> None:
    """Where machines stand."""


@region.command("create")
@click.argument("region_id", metavar="REGION")
@click.option("--name", help="For people; default: the id.")
@REASON
@pass_app
def create_region(app: App, region_id: str, name: str | None, reason: str) -> None:
    """Open a region (administrator)."""
    request = billing_pb2.CreateRegionRequest(
        request_id=app.request_id(), region_id=region_id, display_name=name or region_id, reason=reason
    )
    made = app.connection.billing.CreateRegion(request)
    app.output.record("", made, [("region", made.region_id), ("name", made.display_name)])


@region.command("list")
@pass_app
def list_regions(app: App) -> None:
    """All regions."""
    response = app.connection.billing.ListRegions(billing_pb2.ListRegionsRequest())
    app.output.listing("", ("region", "name"), response.regions, lambda item: (item.region_id, item.display_name))


@click.group(cls=Topic)
def spec() -> None:
    """Compute shapes."""


@spec.command("create")
@click.argument("region_id", metavar="REGION")
@click.argument("spec_id", metavar="SPEC")
@click.option("--name", help="For people; default: the id.")
@click.option("--gpus", type=int, default=0, show_default=True)
@click.option("--cpu-cores", type=int, required=True)
@click.option("--max-count", type=int, default=1, show_default=True, help="GPUs of one start, at most.")
@click.option("--price", type=MONEY, required=True, help="Of one, by the hour: 3.60.")
@click.option("--currency", default="EUR", show_default=True)
@REASON
@pass_app
def create_spec(
    app: App,
    region_id: str,
    spec_id: str,
    name: str | None,
    gpus: int,
    cpu_cores: int,
    max_count: int,
    price: int,
    currency: str,
    reason: str,
) -> None:
    """Offer a compute shape with its first price (administrator)."""
    request = billing_pb2.CreateSpecRequest(
        request_id=app.request_id(),
        region_id=region_id,
        spec_id=spec_id,
        display_name=name or spec_id,
        gpus=gpus,
        cpu_cores=cpu_cores,
        max_count=max_count,
        price_per_hour_micros=price,
        currency=currency,
        reason=reason,
    )
    _print(app.output, app.connection.billing.CreateSpec(request))


@spec.command("price")
@click.argument("region_id", metavar="REGION")
@click.argument("spec_id", metavar="SPEC")
@click.argument("price", type=MONEY)
@click.option("--from", "start", type=MOMENT, help="Local time; default: now.")
@REASON
@pass_app
def set_price(app: App, region_id: str, spec_id: str, price: int, start: datetime | None, reason: str) -> None:
    """Set a price from a time on; what runs already keeps its own (administrator)."""
    request = billing_pb2.SetPriceRequest(
        request_id=app.request_id(),
        region_id=region_id,
        spec_id=spec_id,
        price_per_hour_micros=price,
        start_time=to_timestamp(start),
        reason=reason,
    )
    _print(app.output, app.connection.billing.SetPrice(request))


@spec.command()
@click.argument("region_id", metavar="REGION")
@click.argument("spec_id", metavar="SPEC")
@REASON
@pass_app
def withdraw(app: App, region_id: str, spec_id: str, reason: str) -> None:
    """Take a spec from offer; what runs goes on, and so does what was bought beforehand (administrator)."""
    request = billing_pb2.WithdrawSpecRequest(
        request_id=app.request_id(), region_id=region_id, spec_id=spec_id, reason=reason
    )
    _print(app.output, app.connection.billing.WithdrawSpec(request))


@spec.command()
@click.argument("region_id", metavar="REGION")
@click.argument("spec_id", metavar="SPEC")
@REASON
@pass_app
def offer(app: App, region_id: str, spec_id: str, reason: str) -> None:
    """Put a withdrawn spec on offer again (administrator)."""
    request = billing_pb2.OfferSpecRequest(
        request_id=app.request_id(), region_id=region_id, spec_id=spec_id, reason=reason
    )
    _print(app.output, app.connection.billing.OfferSpec(request))


@spec.command("list")
@click.option("--region", "region_id", default="", help="Only of this one.")
@click.option("--all", "show_withdrawn", is_flag=True, help="Also what was withdrawn.")
@pass_app
def list_specs(app: App, region_id: str, show_withdrawn: bool) -> None:
    """What is on offer, at the price of now. What is free: `group list`, `queue list`, `triton list`."""
    request = billing_pb2.ListSpecsRequest(region_id=region_id, show_withdrawn=show_withdrawn)
    response = app.connection.billing.ListSpecs(request)
    app.output.listing("", COLUMNS, response.specs, _row)


def _row(spec: billing_pb2.Spec) -> tuple[object, ...]:
    return (
        spec.region_id,
        spec.spec_id,
        spec.display_name,
        spec.gpus,
        spec.cpu_cores,
        spec.max_count,
        money(spec.price_per_hour_micros, spec.currency),
        "withdrawn" if spec.withdrawn else "on offer",
    )


def _print(output: Output, spec: billing_pb2.Spec) -> None:
    output.record("", spec, list(zip(COLUMNS, _row(spec), strict=True)))
