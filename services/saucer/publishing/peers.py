"""What publishing asks of other services: is there money. Everything else comes as an event."""

from dataclasses import dataclass

import grpc

from saucer.billing.v1 import billing_pb2, billing_pb2_grpc
from saucer.lib.grpc_client import TokenFile, call
from saucer.publishing.domain import Deployment


@dataclass(frozen=True)
class Hold:
    """Frozen money, or capacity of a resource group: that costs nothing, and may have to be waited for."""

    amount_micros: int
    price_per_hour_micros: int
    currency: str
    waiting: bool


class Peers:
    """Billing. A call raises what the other side raised, UnavailableError if it does not answer."""

    def __init__(self, billing: grpc.aio.Channel, token: TokenFile) -> None:
        self._billing = billing_pb2_grpc.BillingServiceStub(billing)
        self._token = token

    async def hold(self, deployment: Deployment) -> Hold:
        """Freezes two hours for the present start, or takes capacity; the same start gets the same hold."""
        request = billing_pb2.CreateHoldRequest(
            hold_id=deployment.hold_id,
            account_id=deployment.account_id,
            work_kind=billing_pb2.WORK_KIND_DEPLOYMENT,
            work_id=deployment.deployment_id,
            start_number=deployment.start_number,
            region_id=deployment.form.region_id,
            spec_id=deployment.form.spec_id,
            count=deployment.form.replicas,
            resource_group_id=deployment.form.resource_group_id,
            budget_micros=deployment.form.budget_micros,
        )
        return read_hold(await call(self._billing.CreateHold, request, self._token))


def read_hold(hold: billing_pb2.Hold) -> Hold:
    """As billing answers, or tells in an event."""
    waiting = hold.state == billing_pb2.HOLD_STATE_WAITING
    return Hold(hold.amount_micros, hold.price_per_hour_micros, hold.currency, waiting)
