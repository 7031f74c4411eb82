"""`saucer account`."""

from collections.abc import Iterable
from typing import Literal

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import (
    IDENTIFIER,
    MONEY,
    PAGE_SIZE,
    REASON,
    App,
    Topic,
    limit_option,
    listed,
    pass_app,
    remark_rest,
)
from saucer.cli.output import Output, duration, enum_word, local_time, message_dict, moment, money
from saucer.lib.csv_lines import csv_line

ACCOUNT = click.argument("account_id", required=False, type=IDENTIFIER, metavar="[ACCOUNT]")

QUOTAS: tuple[Literal["running", "queued", "storage_bytes"], ...] = ("running", "queued", "storage_bytes")


@click.group(cls=Topic)
def account() -> None:
    """Who pays: accounts, their balance and their statements."""


@account.command()
@click.option("--name", required=True, help="For people.")
@click.option("--currency", default="EUR", show_default=True, help="ISO 4217.")
@click.option("--time-zone", default="UTC", show_default=True, help="IANA name; months are counted in it.")
@REASON
@pass_app
def create(app: App, name: str, currency: str, time_zone: str, reason: str) -> None:
    """Open an account (administrator)."""
    request = billing_pb2.CreateAccountRequest(
        request_id=app.request_id(), display_name=name, currency=currency, time_zone=time_zone, reason=reason
    )
    _print(app.output, app.connection.billing.CreateAccount(request))


@account.command("list")
@limit_option()
@pass_app
def list_(app: App, limit: int) -> None:
    """All accounts (administrator)."""
    found = listed(app, app.connection.billing.ListAccounts, billing_pb2.ListAccountsRequest(), "accounts", limit)
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
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, amounts in micros.")
@limit_option(None)
@pass_app
def statement(app: App, account_id: str | None, work_id: str | None, as_csv: bool, limit: int | None) -> None:
    """What each start cost, line by line, so that it can be recomputed; newest first, all unless --limit says fewer."""
    request = billing_pb2.ListStatementsRequest(
        account_id=account_id or app.connection.required_account(), work_id=work_id or ""
    )
    found = _starts(app, request, limit)
    if as_csv:
        _print_csv([line for item in found for line in item.lines])
        return
    if app.output.as_json:
        app.output.json([message_dict(item) for item in found])
        return
    for item in found:
        print_statement(app.output, item)
    if work_id and found:
        cost = sum(_cost_micros(item) for item in found)
        which = "Of these" if request.page_token else "In all"
        app.output.say(f"{which}, {len(found)} starts: {money(cost, found[0].hold.currency)}")
    if not found:
        app.output.say("Nothing was started yet.")


def _cost_micros(statement: billing_pb2.Statement) -> int:
    """What is paid or to be paid of a start with all its lines."""
    refund = billing_pb2.STATEMENT_LINE_KIND_REFUND
    refunded = sum(line.amount_micros for line in statement.lines if line.kind == refund)
    return statement.hold.charge_micros - statement.hold.lost_micros - refunded


def _starts(app: App, request: billing_pb2.ListStatementsRequest, limit: int | None) -> list[billing_pb2.Statement]:
    """One statement a start with all its lines, of which a page may have a part; a remark where those are not all.

    Beyond the limit, the request keeps the token of the rest.
    """
    found: list[billing_pb2.Statement] = []
    while True:
        goes_on = bool(found) and found[-1].more_lines
        if len(found) == limit and not goes_on:
            break
        # The start whose lines go on is on the next page once more.
        request.page_size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found) + goes_on)
        answer = app.connection.billing.ListStatements(request)
        for statement in answer.statements:
            if found and found[-1].more_lines:
                found[-1].lines.extend(statement.lines)
                found[-1].more_lines = statement.more_lines
            else:
                found.append(statement)
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found
    remark_rest(app, len(found))
    return found


@account.command()
@ACCOUNT
@click.option(
    "--month", "month", default="", help="Like 2026-11, in the account's time zone; default: the present one."
)
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, amounts in micros.")
@limit_option(None)
@pass_app
def month(app: App, account_id: str | None, month: str, as_csv: bool, limit: int | None) -> None:
    """Everything that was booked in a month, with the balance after each line."""
    request = billing_pb2.GetMonthlyStatementRequest(
        account_id=account_id or app.connection.required_account(), month=month
    )
    answers: list[billing_pb2.MonthlyStatement] = []

    def call(asked: billing_pb2.GetMonthlyStatementRequest) -> billing_pb2.MonthlyStatement:
        answers.append(app.connection.billing.GetMonthlyStatement(asked))
        return answers[-1]

    lines = listed(app, call, request, "lines", limit)
    statement, last = answers[0], answers[-1]
    statement.ClearField("lines")
    statement.lines.extend(lines)
    statement.closing_available_micros = last.closing_available_micros
    statement.closing_frozen_micros = last.closing_frozen_micros
    statement.next_page_token = last.next_page_token
    if as_csv:
        _print_csv(statement.lines)
    else:
        _print_month(app.output, statement)


def _print_month(output: Output, statement: billing_pb2.MonthlyStatement) -> None:
    currency = statement.currency
    if output.as_json:
        output.json(message_dict(statement))
        return
    output.table(
        f"{statement.month}, {statement.time_zone}",
        ("time", "line", "amount", "available", "frozen", "explanation"),
        [
            (
                local_time(line.create_time),
                enum_word(line, "kind"),
                money(line.amount_micros, currency),
                money(line.available_micros, currency),
                money(line.frozen_micros, currency),
                line.explanation,
            )
            for line in statement.lines
        ],
    )
    output.say(f"Charged in this month: {money(statement.charged_micros, currency)}")


CSV_COLUMNS = (
    "time",
    "kind",
    "amount_micros",
    "available_micros",
    "frozen_micros",
    "hold_id",
    "charged_ms",
    "transfer_id",
    "explanation",
)


def _print_csv(lines: Iterable[billing_pb2.StatementLine]) -> None:
    click.echo(csv_line(CSV_COLUMNS), nl=False)
    for line in lines:
        values = (getattr(line, name) for name in CSV_COLUMNS[2:])
        click.echo(csv_line((line.create_time.ToJsonString(), enum_word(line, "kind"), *values)), nl=False)


@account.command()
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@REASON
@pass_app
def suspend(app: App, account_id: str, reason: str) -> None:
    """No new start; what runs is stopped with its checkpoint (administrator)."""
    request = billing_pb2.SuspendAccountRequest(request_id=app.request_id(), account_id=account_id, reason=reason)
    _print(app.output, app.connection.billing.SuspendAccount(request))


@account.command()
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@REASON
@pass_app
def resume(app: App, account_id: str, reason: str) -> None:
    """Lift a suspension (administrator)."""
    request = billing_pb2.ResumeAccountRequest(request_id=app.request_id(), account_id=account_id, reason=reason)
    _print(app.output, app.connection.billing.ResumeAccount(request))


@account.command()
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@click.argument("amount", type=MONEY)
@REASON
@pass_app
def adjust(app: App, account_id: str, amount: int, reason: str) -> None:
    """Give to an account, or take from it: 5, or `-- ACCOUNT -5` (administrator)."""
    request = billing_pb2.AdjustAccountRequest(
        request_id=app.request_id(), account_id=account_id, amount_micros=amount, reason=reason
    )
    _print(app.output, app.connection.billing.AdjustAccount(request))


@account.command()
@ACCOUNT
@pass_app
def quotas(app: App, account_id: str | None) -> None:
    """What it may have at once."""
    request = billing_pb2.GetAccountQuotasRequest(account_id=account_id or app.connection.required_account())
    _print_quotas(app.output, app.connection.billing.GetAccountQuotas(request))


@account.command("set-quotas")
@click.argument("account_id", type=IDENTIFIER, metavar="ACCOUNT")
@click.option("--weight", type=click.IntRange(1, 1000), default=1, show_default=True, help="Its share of the workers.")
@click.option("--running", type=click.IntRange(0), help="Runs at work at most.")
@click.option("--queued", type=click.IntRange(0), help="Tasks that wait at most.")
@click.option("--storage-bytes", type=click.IntRange(0), help="Of images and uploads at most.")
@REASON
@pass_app
def set_quotas(
    app: App,
    account_id: str,
    weight: int,
    running: int | None,
    queued: int | None,
    storage_bytes: int | None,
    reason: str,
) -> None:
    """Set all its quotas anew; what is left out has no limit (administrator)."""
    request = billing_pb2.SetAccountQuotasRequest(
        request_id=app.request_id(),
        account_id=account_id,
        weight=weight,
        running=running,
        queued=queued,
        storage_bytes=storage_bytes,
        reason=reason,
    )
    _print_quotas(app.output, app.connection.billing.SetAccountQuotas(request))


def _print_quotas(output: Output, found: billing_pb2.AccountQuotas) -> None:
    limits: list[tuple[str, object]] = [
        (name.replace("_", " "), getattr(found, name) if found.HasField(name) else "no limit") for name in QUOTAS
    ]
    output.record("", found, [("account id", found.account_id), ("weight", found.weight), *limits])


@account.command()
@click.argument("hold_id", metavar="HOLD")
@click.argument("amount", type=MONEY)
@REASON
@pass_app
def refund(app: App, hold_id: str, amount: int, reason: str) -> None:
    """Give back of what a start paid; its hold is named <work id>-<start number> (administrator)."""
    request = billing_pb2.RefundHoldRequest(
        request_id=app.request_id(), hold_id=hold_id, amount_micros=amount, reason=reason
    )
    hold = app.connection.billing.RefundHold(request)
    app.output.record("", hold, [("hold", hold.hold_id), ("refunded", money(amount, hold.currency))])


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
