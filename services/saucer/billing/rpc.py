"""Messages to use cases and back; nothing else."""

import asyncio
from collections.abc import Sequence

from saucer.billing.domain import HoldRequest, Quotas, Region, Spec, Statement, WorkKind
from saucer.billing.messages import (
    account_message,
    audit_message,
    budget_message,
    group_message,
    hold_message,
    monthly_statement_message,
    quotas_message,
    quote_message,
    record_message,
    region_message,
    spec_message,
    statement_message,
    top_up_message,
)
from saucer.billing.service import Billing, Correction
from saucer.billing.store.records import AUDIT_TIMEOUT_S
from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.lib.auth import Role, current
from saucer.lib.clock import from_timestamp
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.ids import derived_id
from saucer.lib.paging import read_page


def servicer(billing: Billing) -> Servicer:
    """What main.py serves."""
    return Servicer(
        _BillingRpc(billing),
        billing_pb2_grpc.add_BillingServiceServicer_to_server,
        billing_pb2.DESCRIPTOR.services_by_name["BillingService"],
        limits_s={"AuditLedger": AUDIT_TIMEOUT_S},
    )


class _BillingRpc(billing_pb2_grpc.BillingServiceServicer):
    def __init__(self, billing: Billing) -> None:
        self._billing = billing

    async def CreateAccount(self, request: billing_pb2.CreateAccountRequest, context: Context) -> billing_pb2.Account:
        account = await self._billing.accounts.create(
            derived_id("account", request.request_id),
            request.display_name,
            request.currency,
            request.time_zone or "UTC",
            Correction(request.request_id, request.reason),
        )
        return account_message(account)

    async def GetAccount(self, request: billing_pb2.GetAccountRequest, context: Context) -> billing_pb2.Account:
        return account_message(await self._billing.accounts.get(request.account_id))

    async def ListAccounts(
        self, request: billing_pb2.ListAccountsRequest, context: Context
    ) -> billing_pb2.ListAccountsResponse:
        page = read_page(request)
        accounts = await self._billing.accounts.list(after=page.after_id, limit=page.limit)
        shown, following = page.cut(accounts, lambda row: (row.account_id,))
        return billing_pb2.ListAccountsResponse(
            accounts=[account_message(account) for account in shown],
            next_page_token=following,
        )

    async def TopUpAccount(self, request: billing_pb2.TopUpAccountRequest, context: Context) -> billing_pb2.TopUp:
        top_up = await self._billing.accounts.top_up(
            request.account_id, request.external_reference, request.amount_micros
        )
        return top_up_message(top_up)

    async def SuspendAccount(self, request: billing_pb2.SuspendAccountRequest, context: Context) -> billing_pb2.Account:
        correction = Correction(request.request_id, request.reason)
        return account_message(await self._billing.accounts.suspend(request.account_id, correction))

    async def ResumeAccount(self, request: billing_pb2.ResumeAccountRequest, context: Context) -> billing_pb2.Account:
        correction = Correction(request.request_id, request.reason)
        return account_message(await self._billing.accounts.resume(request.account_id, correction))

    async def AdjustAccount(self, request: billing_pb2.AdjustAccountRequest, context: Context) -> billing_pb2.Account:
        correction = Correction(request.request_id, request.reason)
        return account_message(
            await self._billing.accounts.adjust(request.account_id, request.amount_micros, correction)
        )

    async def RefundHold(self, request: billing_pb2.RefundHoldRequest, context: Context) -> billing_pb2.Hold:
        correction = Correction(request.request_id, request.reason)
        return hold_message(await self._billing.accounts.refund(request.hold_id, request.amount_micros, correction))

    async def ListRecords(
        self, request: billing_pb2.ListRecordsRequest, context: Context
    ) -> billing_pb2.ListRecordsResponse:
        page = read_page(request)
        records = await self._billing.records.list(
            account_id=request.account_id or None, after=page.after_moment, limit=page.limit
        )
        shown, following = page.cut(records, lambda row: (row.created_at, row.record_id))
        return billing_pb2.ListRecordsResponse(
            records=[record_message(record) for record in shown],
            next_page_token=following,
        )

    async def GetAccountQuotas(
        self, request: billing_pb2.GetAccountQuotasRequest, context: Context
    ) -> billing_pb2.AccountQuotas:
        return quotas_message(await self._billing.quotas.get(request.account_id))

    async def SetAccountQuotas(
        self, request: billing_pb2.SetAccountQuotasRequest, context: Context
    ) -> billing_pb2.AccountQuotas:
        quotas = Quotas(
            request.account_id,
            request.weight or 1,
            request.running if request.HasField("running") else None,
            request.queued if request.HasField("queued") else None,
            request.storage_bytes if request.HasField("storage_bytes") else None,
        )
        correction = Correction(request.request_id, request.reason)
        return quotas_message(await self._billing.quotas.set(quotas, correction))

    async def CreateRegion(self, request: billing_pb2.CreateRegionRequest, context: Context) -> billing_pb2.Region:
        correction = Correction(request.request_id, request.reason)
        region = Region(request.region_id, request.display_name)
        return region_message(await self._billing.offers.create_region(region, correction))

    async def ListRegions(
        self, request: billing_pb2.ListRegionsRequest, context: Context
    ) -> billing_pb2.ListRegionsResponse:
        regions = await self._billing.offers.list_regions()
        return billing_pb2.ListRegionsResponse(regions=[region_message(region) for region in regions])

    async def CreateSpec(self, request: billing_pb2.CreateSpecRequest, context: Context) -> billing_pb2.Spec:
        spec = Spec(
            request.region_id,
            request.spec_id,
            request.display_name,
            request.gpus,
            request.cpu_cores,
            request.max_count,
            request.price_per_hour_micros,
            request.currency,
        )
        correction = Correction(request.request_id, request.reason)
        return spec_message(await self._billing.offers.create_spec(spec, correction))

    async def SetPrice(self, request: billing_pb2.SetPriceRequest, context: Context) -> billing_pb2.Spec:
        start = from_timestamp(request.start_time) if request.HasField("start_time") else None
        correction = Correction(request.request_id, request.reason)
        spec = await self._billing.offers.set_price(
            request.region_id, request.spec_id, request.price_per_hour_micros, start, correction
        )
        return spec_message(spec)

    async def WithdrawSpec(self, request: billing_pb2.WithdrawSpecRequest, context: Context) -> billing_pb2.Spec:
        correction = Correction(request.request_id, request.reason)
        return spec_message(await self._billing.offers.withdraw(request.region_id, request.spec_id, correction))

    async def OfferSpec(self, request: billing_pb2.OfferSpecRequest, context: Context) -> billing_pb2.Spec:
        correction = Correction(request.request_id, request.reason)
        return spec_message(await self._billing.offers.offer(request.region_id, request.spec_id, correction))

    async def ListSpecs(self, request: billing_pb2.ListSpecsRequest, context: Context) -> billing_pb2.ListSpecsResponse:
        specs = await self._billing.offers.list_specs(request.region_id or None, show_withdrawn=request.show_withdrawn)
        return billing_pb2.ListSpecsResponse(specs=[spec_message(spec) for spec in specs])

    async def GetQuote(self, request: billing_pb2.GetQuoteRequest, context: Context) -> billing_pb2.Quote:
        account_id = current().account(request.account_id)
        quote = await self._billing.offers.quote(
            account_id, request.region_id, request.spec_id, request.count, prepaid=bool(request.resource_group_id)
        )
        return quote_message(quote)

    async def CreateHold(self, request: billing_pb2.CreateHoldRequest, context: Context) -> billing_pb2.Hold:
        asked = HoldRequest(
            request.hold_id,
            request.account_id,
            WorkKind(billing_pb2.WorkKind.Name(request.work_kind).removeprefix("WORK_KIND_")),
            request.work_id,
            request.start_number,
            request.region_id,
            request.spec_id,
            request.count,
            request.resource_group_id or None,
        )
        return hold_message(await self._billing.holds.create(asked, request.budget_micros))

    async def CreateResourceGroup(
        self, request: billing_pb2.CreateResourceGroupRequest, context: Context
    ) -> billing_pb2.ResourceGroup:
        group = await self._billing.groups.create(
            request.account_id,
            request.display_name,
            request.region_id,
            request.spec_id,
            request.capacity,
            from_timestamp(request.start_time) if request.HasField("start_time") else None,
            from_timestamp(request.end_time),
            Correction(request.request_id, request.reason),
        )
        return group_message(group)

    async def UpdateResourceGroup(
        self, request: billing_pb2.UpdateResourceGroupRequest, context: Context
    ) -> billing_pb2.ResourceGroup:
        group = await self._billing.groups.update(
            request.resource_group_id,
            request.capacity or None,
            from_timestamp(request.end_time) if request.HasField("end_time") else None,
            Correction(request.request_id, request.reason),
        )
        return group_message(group)

    async def GetResourceGroup(
        self, request: billing_pb2.GetResourceGroupRequest, context: Context
    ) -> billing_pb2.ResourceGroup:
        return group_message(await self._billing.groups.get(request.resource_group_id))

    async def ListResourceGroups(
        self, request: billing_pb2.ListResourceGroupsRequest, context: Context
    ) -> billing_pb2.ListResourceGroupsResponse:
        every = not request.account_id and current().role is Role.ADMINISTRATOR
        account_id = None if every else current().account(request.account_id)
        page = read_page(request)
        groups = await self._billing.groups.list(account_id, after=page.after_moment, limit=page.limit)
        shown, following = page.cut(groups, lambda row: (row.created_at, row.group_id))
        return billing_pb2.ListResourceGroupsResponse(
            resource_groups=[group_message(group) for group in shown],
            next_page_token=following,
        )

    async def SetBudget(self, request: billing_pb2.SetBudgetRequest, context: Context) -> billing_pb2.Budget:
        account = await self._billing.accounts.get(request.account_id)
        budget, spending = await self._billing.budgets.set(
            request.account_id, request.work_id or None, request.amount_micros
        )
        return budget_message(budget, spending, account.currency)

    async def ListBudgets(
        self, request: billing_pb2.ListBudgetsRequest, context: Context
    ) -> billing_pb2.ListBudgetsResponse:
        page = read_page(request)
        account = await self._billing.accounts.get(request.account_id)
        budgets = await self._billing.budgets.list(request.account_id, after=page.after_id, limit=page.limit)
        shown, following = page.cut(budgets, lambda row: (row[0].budget_id,))
        return billing_pb2.ListBudgetsResponse(
            budgets=[budget_message(budget, spending, account.currency) for budget, spending in shown],
            next_page_token=following,
        )

    async def ListStatements(
        self, request: billing_pb2.ListStatementsRequest, context: Context
    ) -> billing_pb2.ListStatementsResponse:
        page = read_page(request)
        after, after_version = page.after_line
        statements, more = await self._billing.statements.list(
            request.account_id,
            work_id=request.work_id or None,
            after=after,
            after_version=after_version,
            limit=page.size,
        )
        return billing_pb2.ListStatementsResponse(
            statements=await asyncio.to_thread(lambda: list(map(statement_message, statements))),
            next_page_token=page.token(_place(statements[-1]) if more else None),
        )

    async def GetMonthlyStatement(
        self, request: billing_pb2.GetMonthlyStatementRequest, context: Context
    ) -> billing_pb2.MonthlyStatement:
        page = read_page(request)
        # The month is part of the token: a list that begins in the present one goes on in it after midnight.
        month, after_version = page.read_after(lambda month, version: (month, int(version))) or (request.month, None)
        statement = await self._billing.statements.of_month(
            request.account_id, month, after_version=after_version, limit=page.size
        )
        last = statement.transfers[-1] if statement.more else None
        token = page.token([statement.period.name, last.account_version] if last else None)
        return monthly_statement_message(statement, token)

    async def AuditLedger(self, request: billing_pb2.AuditLedgerRequest, context: Context) -> billing_pb2.Audit:
        return audit_message(await self._billing.statements.audit())


def _place(last: Statement) -> Sequence[str | int]:
    """Of a statement, or of its last line where more of them follow."""
    start = [last.hold.created_at.isoformat(), last.hold.hold_id]
    return [*start, last.transfers[-1].account_version] if last.more else start
