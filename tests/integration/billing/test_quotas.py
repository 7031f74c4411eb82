"""Quotas: set whole, told once, and nobody else's."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

from saucer.billing.domain import Quotas
from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.ids import new_id
from tests.support.ledger import Ledger, correction, refusal


async def told(ledger: Ledger, account_id: str) -> list[tuple[int, int]]:
    """Revision and weight of each event."""
    async with ledger.database.reading() as connection:
        rows = await connection.fetch(
            "SELECT data FROM outbox WHERE type = 'saucer.billing.v1.AccountQuotasChanged' ORDER BY position"
        )
    quotas = [json.loads(row["data"])["quotas"] for row in rows]
    return [(int(one["revision"]), one["weight"]) for one in quotas if one["accountId"] == account_id]


async def test_an_account_has_no_limits_until_some_are_set_and_then_those_that_were_set_last(ledger: Ledger) -> None:
    account_id, other_id = await ledger.account(0), await ledger.account(0)
    quotas = ledger.billing.quotas
    assert await quotas.get(account_id) == Quotas(account_id, weight=1, revision=0)
    limited = Quotas(account_id, weight=3, running=0, queued=2, storage_bytes=10**12)
    assert await quotas.set(limited, correction()) == replace(limited, revision=1)
    assert await ledger.second.quotas.get(account_id) == replace(limited, revision=1)
    await quotas.set(Quotas(account_id, weight=2, queued=5), correction())
    assert await quotas.get(account_id) == Quotas(account_id, weight=2, queued=5, revision=2)
    assert await quotas.get(other_id) == Quotas(other_id)
    assert await told(ledger, account_id) == [(1, 3), (2, 2)]
    assert await told(ledger, other_id) == []


async def test_a_retry_sets_nothing_anew_and_another_change_by_its_request_id_is_refused(ledger: Ledger) -> None:
    account_id, used = await ledger.account(0), correction("they asked")
    first, second = Quotas(account_id, weight=3), Quotas(account_id, weight=7)
    await ledger.billing.quotas.set(first, used)
    ledger.clock.advance(timedelta(seconds=1))
    await ledger.billing.quotas.set(second, correction())
    assert await ledger.second.quotas.set(first, used) == replace(second, revision=2)
    assert (await refusal(ledger.billing.quotas.set(replace(first, running=1), used))).reason == "REQUEST_ID_USED"
    assert await told(ledger, account_id) == [(1, 3), (2, 7)]
    records = await ledger.billing.records.list(account_id=account_id, after=None, limit=10)
    assert [(made.reason, made.author) for made in records if made.action == "SET_QUOTAS"] == [
        ("a test", "tester"),
        ("they asked", "tester"),
    ]


async def test_two_replicas_that_set_them_at_once_tell_of_both_in_order(ledger: Ledger) -> None:
    account_id = await ledger.account(0)
    await asyncio.gather(
        *(
            billing.quotas.set(Quotas(account_id, weight=weight), correction())
            for weight, billing in enumerate([ledger.billing, ledger.second] * 8, start=1)
        )
    )
    events = await told(ledger, account_id)
    assert [revision for revision, _ in events] == list(range(1, 17))
    assert sorted(weight for _, weight in events) == list(range(1, 17))
    assert (await ledger.billing.quotas.get(account_id)).weight == events[-1][1]


async def test_quotas_of_an_account_that_is_not_there_or_of_another_are_not_found(ledger: Ledger) -> None:
    account_id, nobody = await ledger.account(0), new_id()
    for call in (ledger.billing.quotas.get(nobody), ledger.billing.quotas.set(Quotas(nobody), correction())):
        assert (await refusal(call)).reason == "ACCOUNT_NOT_FOUND"
    set_current(Principal("stranger", Role.OWNER, await ledger.account(0), "t", float("inf")))
    assert (await refusal(ledger.billing.quotas.get(account_id))).reason == "ACCOUNT_NOT_FOUND"
