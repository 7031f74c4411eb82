"""`saucer billing`: the ledger as a whole."""

from collections import Counter

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import App, Topic, limit_option, listed, pass_app
from saucer.cli.errors import CliError
from saucer.cli.output import moment, money

# It reads the whole ledger; as long as billing lets it.
AUDIT_TIMEOUT_S = 600.0


@click.group(cls=Topic)
def billing() -> None:
    """The ledger."""


@billing.command()
@pass_app
def audit(app: App) -> None:
    """Check every invariant of the ledger; ends with 1 and the rows at fault if one is broken (administrator)."""
    found = app.connection.billing.AuditLedger(billing_pb2.AuditLedgerRequest(), timeout=AUDIT_TIMEOUT_S)
    app.output.record(
        "",
        found,
        [
            ("accounts", found.accounts),
            ("entries", found.entries),
            ("sum of all entries", money(found.ledger_sum_micros)),
            ("frozen", money(found.frozen_micros)),
            ("broken invariants", len(found.broken)),
        ],
    )
    if not found.clean:
        if not app.output.as_json:
            _print_findings(app, found)
        raise CliError("The ledger breaks its invariants.")


def _print_findings(app: App, found: billing_pb2.Audit) -> None:
    app.output.table("", ("invariant", "row"), [(finding.invariant, finding.row) for finding in found.findings])
    named = Counter(finding.invariant for finding in found.findings)
    for one in found.broken:
        if beyond := one.rows - named[one.invariant]:
            app.output.say(f"{one.invariant}: {beyond} more rows, {one.rows} in all.")


@billing.command()
@limit_option()
@pass_app
def records(app: App, limit: int) -> None:
    """Who did what, and why, newest first; with --account of one account (administrator)."""
    request = billing_pb2.ListRecordsRequest(account_id=app.connection.account_id)
    found = listed(app, app.connection.billing.ListRecords, request, "records", limit)
    columns = ("time", "action", "subject", "author", "reason", "detail")
    app.output.listing(
        "",
        columns,
        found,
        lambda record: (
            moment(record, "create_time"),
            record.action.lower(),
            record.subject,
            record.author,
            record.reason,
            record.detail,
        ),
    )
