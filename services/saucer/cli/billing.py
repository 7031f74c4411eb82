"""`saucer billing`: the ledger as a whole."""

import click

from saucer.billing.v1 import billing_pb2
from saucer.cli.app import App, Topic, pass_app
from saucer.cli.errors import CliError
from saucer.cli.output import money


@click.group(cls=Topic)
def billing() -> None:
    """The ledger."""


@billing.command()
@pass_app
def audit(app: App) -> None:
    """Check every invariant of the ledger; ends with 1 and the rows at fault if one is broken (administrator)."""
    found = app.connection.billing.AuditLedger(billing_pb2.AuditLedgerRequest())
    app.output.record(
        "",
        found,
        [
            ("accounts", found.accounts),
            ("entries", found.entries),
            ("sum of all entries", money(found.ledger_sum_micros)),
            ("frozen", money(found.frozen_micros)),
            ("broken invariants", len(found.findings)),
        ],
    )
    if not found.clean:
        if not app.output.as_json:
            app.output.table("", ("invariant", "row"), [(finding.invariant, finding.row) for finding in found.findings])
        raise CliError("The ledger breaks its invariants.")
