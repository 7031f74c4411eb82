"""Regions, specs and prices: what is on offer where, and what a start would freeze."""

from dataclasses import asdict, replace
from datetime import datetime, timedelta

from saucer.billing import metering
from saucer.billing.domain import Quote, Region, Spec
from saucer.billing.service.records import Correction, is_recorded, record
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

    async def create_region(self, region: Region, correction: Correction) -> Region:
        """The same region twice changes nothing.

        Raises AlreadyExistsError: the id is another region's; the request id was used before.
        """
        detail = {"display_name": region.display_name}
        async with self._database.transaction() as tx:
            if await is_recorded(tx, correction, "CREATE_REGION", region.region_id, detail):
                return region
            if await store.insert_region(tx.connection, region):
                await record(tx, correction, "CREATE_REGION", region.region_id, None, detail)
            elif region not in await store.list_regions(tx.connection):
                raise AlreadyExistsError("REGION_EXISTS", f"There is another region {region.region_id}.")
        return region

    async def list_regions(self) -> list[Region]:
        """By id."""
        async with self._database.reading() as connection:
            return await store.list_regions(connection)

    async def create_spec(self, spec: Spec, correction: Correction) -> Spec:
        """With its first price. The same spec twice changes nothing.

        Raises:
            NotFoundError: the region. AlreadyExistsError: the id is another spec's; the request id was used before.
        """
        subject, detail = f"{spec.region_id}/{spec.spec_id}", asdict(spec)
        async with self._database.transaction() as tx:
            # Before the comparison: the spec that this very call made may have another price by now.
            if await is_recorded(tx, correction, "CREATE_SPEC", subject, detail):
                return await spec_of(tx, spec.region_id, spec.spec_id)
            if not await store.region_exists(tx.connection, spec.region_id):
                raise NotFoundError("region", spec.region_id)
            if not await store.insert_spec(tx.connection, spec):
                former = await spec_of(tx, spec.region_id, spec.spec_id)
                if replace(former, withdrawn=spec.withdrawn) != spec:
                    raise AlreadyExistsError("SPEC_EXISTS", f"There is another spec {spec.spec_id}; set its price.")
                return former
            await store.insert_price(tx.connection, spec.region_id, spec.spec_id, tx.now, spec.price_per_hour_micros)
            await record(tx, correction, "CREATE_SPEC", subject, None, detail)
        return spec

    async def set_price(
        self,
        region_id: str,
        spec_id: str,
        price_per_hour_micros: int,
        starts_at: datetime | None,
        correction: Correction,
    ) -> Spec:
        """From a time on; None: from now. Answers the price of now. The same call twice sets it once.

        Raises:
            InvalidArgumentError: START_IN_THE_PAST; PRICE_IN_FORCE_LATER: it would never count.
            NotFoundError: the spec.
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
            in_force_since = await store.price_start(tx.connection, region_id, spec_id, tx.now)
            if start < in_force_since:
                raise InvalidArgumentError(
                    "PRICE_IN_FORCE_LATER",
                    f"start_time: the price in force began at {in_force_since.isoformat()}, so one before it would "
                    "never count; leave start_time out for now, or name a later time.",
                    in_force_since=in_force_since.isoformat(),
                )
            if not await store.insert_price(tx.connection, region_id, spec_id, start, price_per_hour_micros):
                raise AlreadyExistsError("PRICE_EXISTS", "There is a price from that very time already.")
            return await spec_of(tx, region_id, spec_id)

    async def withdraw(self, region_id: str, spec_id: str, correction: Correction) -> Spec:
        """From offer: nothing new starts but with capacity bought before; what runs goes on.

        Raises NotFoundError, AlreadyExistsError: the request id was used for something else.
        """
        return await self._put_on_offer(region_id, spec_id, correction, "WITHDRAW_SPEC", withdrawn=True)

    async def offer(self, region_id: str, spec_id: str, correction: Correction) -> Spec:
        """Again, after it was withdrawn. Raises NotFoundError, AlreadyExistsError."""
        return await self._put_on_offer(region_id, spec_id, correction, "OFFER_SPEC", withdrawn=False)

    async def _put_on_offer(
        self, region_id: str, spec_id: str, correction: Correction, action: str, *, withdrawn: bool
    ) -> Spec:
        async with self._database.transaction() as tx:
            spec = await spec_of(tx, region_id, spec_id)
            if not await record(tx, correction, action, f"{region_id}/{spec_id}", None, {}):
                return spec
            await store.set_withdrawn(tx.connection, region_id, spec_id, withdrawn=withdrawn)
            return replace(spec, withdrawn=withdrawn)

    async def list_specs(self, region_id: str | None, *, show_withdrawn: bool = False) -> list[Spec]:
        """At the price of now."""
        async with self._database.transaction() as tx:
            specs = await store.list_specs(tx.connection, tx.now, region_id=region_id)
        return [spec for spec in specs if show_withdrawn or not spec.withdrawn]

    async def quote(self, account_id: str, region_id: str, spec_id: str, count: int, *, prepaid: bool = False) -> Quote:
        """What a start would freeze now; prepaid: what it would cost, though its spec be withdrawn.

        Raises:
            NotFoundError. InvalidArgumentError: a count above the spec's. FailedPreconditionError: SPEC_WITHDRAWN.
        """
        async with self._database.transaction() as tx:
            account = await accounts_store.get_account(tx.connection, account_id)
            if account is None:
                raise NotFoundError("account", account_id)
            spec = await spec_of(tx, region_id, spec_id)
            if not prepaid:
                spec.check_offered()
            spec.check_count(count)
            amount = metering.hold_micros(spec.price_per_hour_micros, count)
            return Quote(spec, amount, account.available_micros)


async def spec_of(tx: Transaction, region_id: str, spec_id: str) -> Spec:
    """At its price of now. Raises NotFoundError."""
    specs = await store.list_specs(tx.connection, tx.now, region_id=region_id, spec_id=spec_id)
    if not specs:
        raise NotFoundError("spec", f"{region_id}/{spec_id}")
    return specs[0]
