"""Regions, specs and prices: what is on offer where, and what a start would freeze."""

from dataclasses import asdict, replace
from datetime import datetime, timedelta

from saucer.billing import metering
from saucer.billing.domain import Quote, Spec
from saucer.billing.service.records import Correction, record
from saucer.billing.store import accounts as accounts_store
from saucer.billing.store import offers as store
from saucer.lib.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from saucer.lib.postgres import Database, Transaction

# A price may begin this long before the call that sets it, for clocks that differ.
PRICE_CLOCK_SKEW = timedelta(minutes=1)


class Offers:
    """What an administrator sells."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_region(self, region_id: str, display_name: str, correction: Correction) -> None:
        """The same region twice changes nothing. Raises AlreadyExistsError: the request id was used before."""
        async with self._database.transaction() as tx:
            if await store.insert_region(tx.connection, region_id, display_name):
                await record(tx, correction, "CREATE_REGION", region_id, None, {"display_name": display_name})

    async def create_spec(self, spec: Spec, correction: Correction) -> Spec:
        """With its first price. The same spec twice changes nothing.

        Raises:
            NotFoundError: the region. AlreadyExistsError: the id is another spec's; the request id was used before.
        """
        async with self._database.transaction() as tx:
            if not await store.region_exists(tx.connection, spec.region_id):
                raise NotFoundError("region", spec.region_id)
            if not await store.insert_spec(tx.connection, spec):
                former = await store.list_specs(tx.connection, tx.now, region_id=spec.region_id, spec_id=spec.spec_id)
                if former != [spec]:
                    raise AlreadyExistsError("SPEC_EXISTS", f"There is another spec {spec.spec_id}; set its price.")
                return spec
            await store.insert_price(tx.connection, spec.region_id, spec.spec_id, tx.now, spec.price_per_hour_micros)
            await record(tx, correction, "CREATE_SPEC", f"{spec.region_id}/{spec.spec_id}", None, asdict(spec))
        return spec

    async def set_price(
        self,
        region_id: str,
        spec_id: str,
        price_per_hour_micros: int,
        starts_at: datetime | None,
        correction: Correction,
    ) -> Spec:
        """From a time on; None: from now. The same call twice sets it once.

        Raises:
            InvalidArgumentError: START_IN_THE_PAST. NotFoundError: the spec.
            AlreadyExistsError: PRICE_EXISTS from that very time; the request id was used for something else.
        """
        detail = {
            "price_per_hour_micros": price_per_hour_micros,
            "start_time": starts_at.isoformat() if starts_at else None,
        }
        async with self._database.transaction() as tx:
            spec = await spec_of(tx, region_id, spec_id)
            if not await record(tx, correction, "SET_PRICE", f"{region_id}/{spec_id}", None, detail):
                return spec
            start = starts_at or tx.now
            if start < tx.now - PRICE_CLOCK_SKEW:
                raise InvalidArgumentError("START_IN_THE_PAST", "start_time: a price cannot begin in the past.")
            if not await store.insert_price(tx.connection, region_id, spec_id, start, price_per_hour_micros):
                raise AlreadyExistsError("PRICE_EXISTS", "There is a price from that very time already.")
            return replace(spec, price_per_hour_micros=price_per_hour_micros) if start <= tx.now else spec

    async def list_specs(self, region_id: str | None) -> list[Spec]:
        """At the price of now."""
        async with self._database.transaction() as tx:
            return await store.list_specs(tx.connection, tx.now, region_id=region_id)

    async def quote(self, account_id: str, region_id: str, spec_id: str, count: int) -> Quote:
        """What a start would freeze now. Raises NotFoundError, InvalidArgumentError for a count above the spec's."""
        async with self._database.transaction() as tx:
            account = await accounts_store.get_account(tx.connection, account_id)
            if account is None:
                raise NotFoundError("account", account_id)
            spec = await spec_of(tx, region_id, spec_id)
            spec.check_count(count)
            amount = metering.hold_micros(spec.price_per_hour_micros, count)
            return Quote(spec, amount, account.available_micros)


async def spec_of(tx: Transaction, region_id: str, spec_id: str) -> Spec:
    """At its price of now. Raises NotFoundError."""
    specs = await store.list_specs(tx.connection, tx.now, region_id=region_id, spec_id=spec_id)
    if not specs:
        raise NotFoundError("spec", f"{region_id}/{spec_id}")
    return specs[0]
