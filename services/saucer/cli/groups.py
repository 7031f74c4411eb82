"""`saucer group` and `saucer budget`: prepaid capacity, and limits on what is spent."""

from datetime import datetime

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import IDENTIFIER, MOMENT, MONEY, REASON, App, Topic, chosen, limit_option, listed, pass_app
from saucer.cli.output import Output, moment, money
from saucer.lib.clock import to_timestamp

GROUP = click.argument("group_id", type=IDENTIFIER, metavar="GROUP")
COLUMNS = ("group id", "name", "spec", "capacity", "taken", "waiting", "from", "until")


@click.group(cls=Topic)
def group() -> None:
    """Resource groups: capacity bought beforehand, for a time."""


@group.command()
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@click.option("--name", required=True, help="For people.")
@click.option("--region", "region_id", help="Default: the profile's.")
@click.option("--spec", "spec_id", help="Default: the profile's.")
@click.option("--capacity", type=click.IntRange(min=1), required=True, help="Of the spec, at once.")
@click.option("--from", "start", type=MOMENT, help="Local time; default: now.")
@click.option("--until", "end", type=MOMENT, required=True, help="Local time; what runs then is stopped.")
@REASON
@pass_app
def create(
    app: App,
    account_id: str,
    name: str,
    region_id: str | None,
    spec_id: str | None,
    capacity: int,
    start: datetime | None,
    end: datetime,
    reason: str,
) -> None:
    """Give an account prepaid capacity (administrator)."""
    profile = app.connection.profile
    request = billing_pb2.CreateResourceGroupRequest(
        request_id=app.request_id(),
        account_id=account_id,
        display_name=name,
        region_id=chosen(profile.region_id, region_id, "--region"),
        spec_id=chosen(profile.spec_id, spec_id, "--spec"),
        capacity=capacity,
        start_time=to_timestamp(start),
        end_time=to_timestamp(end),
        reason=reason,
    )
    _print(app.output, app.connection.billing.CreateResourceGroup(request))


@group.command()
@GROUP
@click.option("--capacity", type=click.IntRange(min=1), default=0, help="Default: as it is.")
@click.option("--until", "end", type=MOMENT, help="Local time; default: as it is.")
@REASON
@pass_app
def update(app: App, group_id: str, capacity: int, end: datetime | None, reason: str) -> None:
    """More or less capacity, or another end (administrator)."""
    request = billing_pb2.UpdateResourceGroupRequest(
        request_id=app.request_id(),
        resource_group_id=group_id,
        capacity=capacity,
        end_time=to_timestamp(end),
        reason=reason,
    )
    _print(app.output, app.connection.billing.UpdateResourceGroup(request))


@group.command()
@GROUP
@pass_app
def show(app: App, group_id: str) -> None:
    """One group, with what is taken and what waits."""
    request = billing_pb2.GetResourceGroupRequest(resource_group_id=group_id)
    _print(app.output, app.connection.billing.GetResourceGroup(request))


@group.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """Groups, newest first."""
    request = billing_pb2.ListResourceGroupsRequest(account_id=app.connection.account_id)
    found = listed(app, app.connection.billing.ListResourceGroups, request, "resource_groups", limit)
    app.output.listing("", COLUMNS, found, _row)


def _row(item: billing_pb2.ResourceGroup) -> tuple[object, ...]:
    return (
        item.resource_group_id,
        item.display_name,
        f"{item.spec_id} in {item.region_id}",
        item.capacity,
        item.taken,
        item.waiting,
        moment(item, "start_time"),
        moment(item, "end_time"),
    )


def _print(output: Output, item: billing_pb2.ResourceGroup) -> None:
    output.record("", item, list(zip(COLUMNS, _row(item), strict=True)))


@click.group(cls=Topic)
def budget() -> None:
    """What an account by the month, or a task or deployment, may cost at most."""


@budget.command("set")
@click.argument("amount", type=MONEY)
@click.option("--work", "work_id", type=IDENTIFIER, help="A task or deployment; default: the account, by the month.")
@pass_app
def set_budget(app: App, amount: int, work_id: str | None) -> None:
    """Set a budget, or remove it by 0 (owner): 250 or 12.50."""
    request = billing_pb2.SetBudgetRequest(
        account_id=app.connection.required_account(), work_id=work_id or "", amount_micros=amount
    )
    made = app.connection.billing.SetBudget(request)
    app.output.record("", made, list(zip(_BUDGET, _budget_row(made), strict=True)))


@budget.command("list")
@limit_option()
@pass_app
def list_budgets(app: App, limit: int) -> None:
    """Budgets, with what counts against each: booked, unpaid, and the reserve for finishing."""
    request = billing_pb2.ListBudgetsRequest(account_id=app.connection.required_account())
    found = listed(app, app.connection.billing.ListBudgets, request, "budgets", limit)
    app.output.listing("", _BUDGET, found, _budget_row)


_BUDGET = ("of", "budget", "booked", "unpaid", "reserve")


def _budget_row(item: billing_pb2.Budget) -> tuple[object, ...]:
    return (
        item.work_id or "each month",
        money(item.amount_micros, item.currency) if item.amount_micros else "none",
        money(item.booked_micros, item.currency),
        money(item.unpaid_micros, item.currency),
        money(item.reserve_micros, item.currency),
    )
