"""Domain to message, for replies and events alike."""

from saucer.billing.domain import (
    Account,
    Audit,
    Budget,
    Group,
    Hold,
    MonthlyStatement,
    Quotas,
    Quote,
    Record,
    Region,
    Spec,
    Spending,
    Statement,
    TopUp,
    Transfer,
)
from saucer.billing.explaining import explanations
from saucer.billing.v1 import billing_pb2
from saucer.lib.clock import to_timestamp


def account_message(account: Account) -> billing_pb2.Account:
    """An account as it is now."""
    return billing_pb2.Account(
        account_id=account.account_id,
        display_name=account.display_name,
        currency=account.currency,
        time_zone=account.time_zone,
        state=billing_pb2.AccountState.Value(f"ACCOUNT_STATE_{account.state}"),
        available_micros=account.available_micros,
        frozen_micros=account.frozen_micros,
        create_time=to_timestamp(account.created_at),
        revision=account.revision,
    )


def top_up_message(top_up: TopUp) -> billing_pb2.TopUp:
    """Money added."""
    return billing_pb2.TopUp(
        account_id=top_up.account_id,
        external_reference=top_up.external_reference,
        amount_micros=top_up.amount_micros,
        available_micros=top_up.available_micros,
        account_version=top_up.account_version,
        create_time=to_timestamp(top_up.created_at),
    )


def region_message(region: Region) -> billing_pb2.Region:
    """Where machines stand."""
    return billing_pb2.Region(region_id=region.region_id, display_name=region.display_name)


def spec_message(spec: Spec) -> billing_pb2.Spec:
    """What is on offer."""
    return billing_pb2.Spec(
        region_id=spec.region_id,
        spec_id=spec.spec_id,
        display_name=spec.display_name,
        gpus=spec.gpus,
        cpu_cores=spec.cpu_cores,
        max_count=spec.max_count,
        price_per_hour_micros=spec.price_per_hour_micros,
        currency=spec.currency,
        withdrawn=spec.withdrawn,
    )


def quote_message(quote: Quote) -> billing_pb2.Quote:
    """What a start would freeze."""
    return billing_pb2.Quote(
        price_per_hour_micros=quote.spec.price_per_hour_micros,
        hold_micros=quote.hold_micros,
        available_micros=quote.available_micros,
        missing_micros=quote.missing_micros,
        currency=quote.spec.currency,
        gpus=quote.spec.gpus,
        cpu_cores=quote.spec.cpu_cores,
    )


def hold_message(hold: Hold) -> billing_pb2.Hold:
    """A hold with its meter."""
    return billing_pb2.Hold(
        hold_id=hold.hold_id,
        account_id=hold.account_id,
        work_kind=billing_pb2.WorkKind.Value(f"WORK_KIND_{hold.work_kind}"),
        work_id=hold.work_id,
        start_number=hold.start_number,
        region_id=hold.region_id,
        spec_id=hold.spec_id,
        count=hold.count,
        price_per_hour_micros=hold.price_per_hour_micros,
        amount_micros=hold.amount_micros,
        state=billing_pb2.HoldState.Value(f"HOLD_STATE_{hold.state}"),
        charge_status=billing_pb2.ChargeStatus.Value(f"CHARGE_STATUS_{hold.charge_status}"),
        charged_ms=hold.charged_ms,
        charge_micros=hold.meter.charge_micros,
        settled_micros=hold.settled_micros,
        posted_micros=hold.posted_micros,
        released_micros=hold.released_micros,
        lost_micros=hold.lost_micros,
        create_time=to_timestamp(hold.created_at),
        resolve_time=to_timestamp(hold.resolved_at),
        revision=hold.revision,
        missing_micros=hold.missing_micros,
        currency=hold.currency,
        resource_group_id=hold.group_id or "",
        account_version=hold.account_version,
    )


def group_message(group: Group) -> billing_pb2.ResourceGroup:
    """Capacity, and who has it."""
    return billing_pb2.ResourceGroup(
        resource_group_id=group.group_id,
        account_id=group.account_id,
        display_name=group.display_name,
        region_id=group.region_id,
        spec_id=group.spec_id,
        capacity=group.capacity,
        taken=group.taken,
        waiting=group.waiting,
        start_time=to_timestamp(group.starts_at),
        end_time=to_timestamp(group.ends_at),
        ended=group.ended,
        create_time=to_timestamp(group.created_at),
        revision=group.revision,
    )


def budget_message(budget: Budget, spending: Spending, currency: str) -> billing_pb2.Budget:
    """A limit, and what counts against it."""
    return billing_pb2.Budget(
        account_id=budget.account_id,
        work_id=budget.work_id or "",
        amount_micros=budget.amount_micros,
        currency=currency,
        booked_micros=spending.booked_micros,
        unpaid_micros=spending.unpaid_micros,
        reserve_micros=spending.reserve_micros,
        update_time=to_timestamp(budget.updated_at),
    )


def statement_message(statement: Statement) -> billing_pb2.Statement:
    """A start with its lines."""
    hold, transfers = statement.hold, statement.transfers
    explained = explanations(transfers, {hold.hold_id: hold}, {hold.hold_id: statement.borne_micros})
    return billing_pb2.Statement(
        hold=hold_message(hold), lines=list(map(_line, transfers, explained)), more_lines=statement.more
    )


def monthly_statement_message(statement: MonthlyStatement, next_page_token: str) -> billing_pb2.MonthlyStatement:
    """A page of a month."""
    explained = [
        f"start {transfer.hold_id}: {text}" if transfer.hold_id else text
        for transfer, text in zip(
            statement.transfers,
            explanations(statement.transfers, statement.holds, statement.borne_micros),
            strict=True,
        )
    ]
    return billing_pb2.MonthlyStatement(
        account_id=statement.account.account_id,
        currency=statement.account.currency,
        time_zone=statement.account.time_zone,
        month=statement.period.name,
        start_time=to_timestamp(statement.period.start),
        end_time=to_timestamp(statement.period.end),
        opening_available_micros=statement.opening_available_micros,
        opening_frozen_micros=statement.opening_frozen_micros,
        lines=list(map(_line, statement.transfers, explained)),
        closing_available_micros=statement.closing_available_micros,
        closing_frozen_micros=statement.closing_frozen_micros,
        charged_micros=statement.charged_micros,
        next_page_token=next_page_token,
    )


def _line(transfer: Transfer, explanation: str) -> billing_pb2.StatementLine:
    return billing_pb2.StatementLine(
        transfer_id=transfer.transfer_id,
        kind=billing_pb2.StatementLineKind.Value(f"STATEMENT_LINE_KIND_{transfer.kind}"),
        amount_micros=transfer.amount_micros,
        charged_ms=transfer.charged_ms,
        create_time=to_timestamp(transfer.created_at),
        explanation=explanation,
        hold_id=transfer.hold_id or "",
        available_micros=transfer.available_micros,
        frozen_micros=transfer.frozen_micros,
    )


def record_message(record: Record) -> billing_pb2.Record:
    """What an administrator did."""
    return billing_pb2.Record(
        record_id=record.record_id,
        action=record.action,
        subject=record.subject,
        account_id=record.account_id or "",
        author=record.author,
        reason=record.reason,
        detail=record.detail,
        create_time=to_timestamp(record.created_at),
    )


def audit_message(audit: Audit) -> billing_pb2.Audit:
    """The ledger, checked."""
    return billing_pb2.Audit(
        clean=not audit.findings,
        findings=[billing_pb2.AuditFinding(invariant=found.invariant, row=found.row) for found in audit.findings],
        ledger_sum_micros=audit.ledger_sum_micros,
        frozen_micros=audit.frozen_micros,
        accounts=audit.accounts,
        entries=audit.entries,
        broken=[
            billing_pb2.BrokenInvariant(invariant=invariant, rows=rows) for invariant, rows in audit.broken.items()
        ],
    )


def quotas_message(quotas: Quotas) -> billing_pb2.AccountQuotas:
    """Of an account."""
    return billing_pb2.AccountQuotas(
        account_id=quotas.account_id,
        weight=quotas.weight,
        running=quotas.running,
        queued=quotas.queued,
        storage_bytes=quotas.storage_bytes,
        revision=quotas.revision,
    )
