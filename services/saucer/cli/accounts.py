"""`saucer account`."""

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import IDENTIFIER, MONEY, App, Topic, limit_option, pages, pass_app
from saucer.cli.output import Output, duration, enum_word, local_time, message_dict, moment, money

ACCOUNT = click.argument("account_id", required=False, type=IDENTIFIER, metavar="[ACCOUNT]")


@click.group(cls=Topic)
def account() -> None:
    """Who pays: accounts, their balance and their statements."""


@account.command()
@click.option("--name", required=True, help="For people.")
@click.option("--currency", default="EUR", show_default=True, help="ISO 4217.")
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name; months are counted in it.")
@pass_app
def create(app: App, name: str, currency: str, time_zone: str) -> None:
    """Open an account (administrator)."""
    request = billing_pb2.CreateAccountRequest(
        request_id=app.request_id(), display_name=name, currency=currency, time_zone=time_zone
    )
    _print(app.output, app.connection.billing.CreateAccount(request))


@account.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """All accounts (administrator)."""
    found = pages(app.connection.billing.ListAccounts, billing_pb2.ListAccountsRequest(), "accounts", limit)
    app.output.listing("", ("account id", "name", "state", "available", "frozen", "created"), found, _row)


@account.command()
@ACCOUNT
@pass_app
def show(app: App, account_id: str | None) -> None:
    """Balance and state."""
    request = billing_pb2.GetAccountRequest(account_id=account_id or app.connection.required_account())
    _print(app.output, app.connection.billing.GetAccount(request))


@account.command()
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@click.argument("amount", type=MONEY)
@click.option("--reference", help="The payment's own; the same one twice adds nothing. Default: a new one.")
@pass_app
def topup(app: App, account_id: str, amount: int, reference: str | None) -> None:
    """Add money, in units of the account's currency: 20 or 12.50 (payment system, administrator)."""
    request = billing_pb2.TopUpAccountRequest(
        account_id=account_id, external_reference=reference or app.request_id(), amount_micros=amount
    )
    top_up = app.connection.billing.TopUpAccount(request)
    app.output.record(
        "",
        top_up,
        [
            ("account id", top_up.account_id),
            ("added", money(top_up.amount_micros)),
            ("available", money(top_up.available_micros)),
            ("reference", top_up.external_reference),
        ],
    )


@account.command()
@ACCOUNT
@click.option("--work", "work_id", type=IDENTIFIER, help="Only of this task or deployment.")
@limit_option()
@pass_app
def statement(app: App, account_id: str | None, work_id: str | None, limit: int) -> None:
    """What each start cost, line by line, so that it can be recomputed; newest first."""
    request = billing_pb2.ListStatementsRequest(
        account_id=account_id or app.connection.required_account(), work_id=work_id or ""
    )
    found: list[billing_pb2.Statement] = pages(app.connection.billing.ListStatements, request, "statements", limit)
    if app.output.as_json:
        app.output.json([message_dict(item) for item in found])
        return
    for item in found:
        print_statement(app.output, item)
    if not found:
        app.output.say("Nothing was started yet.")


def print_statement(output: Output, statement: billing_pb2.Statement) -> None:
    """One start: how its charge follows from its meter, and what was booked."""
    hold = statement.hold
    currency = hold.currency
    price = money(hold.price_per_hour_micros, currency)
    output.say(
        f"{enum_word(hold, 'work_kind').capitalize()} {hold.work_id}, start {hold.start_number}: {hold.spec_id} in "
        f"{hold.region_id}, {enum_word(hold, 'state')}, {enum_word(hold, 'charge_status')}"
    )
    output.say(
        f"  {price} an hour × {hold.count} × {hold.charged_ms // 1000} s ÷ 3600 s = "
        f"{money(hold.charge_micros, currency)}   (hold {money(hold.amount_micros, currency)})"
    )
    output.table(
        "",
        ("time", "line", "amount", "charged time", "explanation"),
        [
            (
                local_time(line.create_time),
                enum_word(line, "kind"),
                money(line.amount_micros, currency),
                duration(line.charged_ms / 1000),
                line.explanation,
            )
            for line in statement.lines
        ],
    )


def _row(account: billing_pb2.Account) -> tuple[object, ...]:
    return (
        account.account_id,
        account.display_name,
        enum_word(account, "state"),
        money(account.available_micros, account.currency),
        money(account.frozen_micros, account.currency),
        moment(account, "create_time"),
    )


def _print(output: Output, account: billing_pb2.Account) -> None:
    names = ("account id", "name", "state", "available", "frozen", "created")
    rows = [*zip(names, _row(account), strict=True), ("time zone", account.time_zone)]
    output.record("", account, rows)
