"""The ledger under retries, races, time and administrators: real PostgreSQL, two replicas, a clock that is set."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from saucer.billing.domain import Hold, HoldRequest, HoldState
from saucer.billing.ledger import MOVES, TransferKind
from saucer.billing.service.holds import Counted, Ended
from saucer.billing.store.holds import bury_hold
from saucer.lib.errors import DomainError, FailedPreconditionError
from saucer.lib.ids import new_id
from tests.support.events import until
from tests.support.ledger import (
    HOLD_MICROS,
    HOUR_MS,
    PRICE_MICROS,
    RACES,
    Ledger,
    granted,
    refusal,
    request_of,
)

# Made until one turns away the session that it is to.
DEADLOCKS = 5
# Locks that are waited for in this database. That of a row is another transaction's id, which is of no database, and
# the list of sessions is as old as the transaction that reads it.
WAITING = """pg_locks AS waiting WHERE NOT granted AND EXISTS (
    SELECT FROM pg_locks AS held JOIN pg_database ON oid = held.database
    WHERE held.pid = waiting.pid AND datname = current_database()
)"""


# Races


@RACES
async def test_of_64_callers_of_two_replicas_racing_for_the_last_balance_one_wins_every_time(
    ledger: Ledger, races: int
) -> None:
    for _ in range(races):
        account_id = await ledger.account(HOLD_MICROS)
        calls = [
            replica.holds.create(request_of(account_id))
            for _ in range(32)
            for replica in (ledger.billing, ledger.second)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, Hold) for answer in answers) == 1
        refusals = [answer for answer in answers if isinstance(answer, DomainError)]
        assert {(error.reason, error.metadata["missing_micros"]) for error in refusals} == {
            ("INSUFFICIENT_BALANCE", str(HOLD_MICROS))
        }
        assert await ledger.balance(account_id) == (0, HOLD_MICROS)


async def test_holds_that_go_together_are_told_the_account_versions_of_their_transfers(ledger: Ledger) -> None:
    account_id = await ledger.account(7 * HOLD_MICROS)
    # The first goes alone, the others together.
    requests = [request_of(account_id) for _ in range(5)]
    holds = await asyncio.gather(*(ledger.billing.holds.create(request) for request in requests))
    again = [await ledger.second.holds.create(request) for request in requests]
    async with ledger.database.reading() as connection:
        rows = await connection.fetch("SELECT hold_id, account_version FROM transfer WHERE kind = 'HOLD'")
    booked = {row["hold_id"]: row["account_version"] for row in rows}
    assert [hold.account_version for hold in holds] == [booked[hold.hold_id] for hold in holds]
    assert again == holds
    assert sorted(booked.values()) == [2, 3, 4, 5, 6]


async def test_a_hold_that_is_short_waits_for_a_top_up_that_is_under_way(ledger: Ledger) -> None:
    request = request_of(await ledger.account(HOLD_MICROS - 1))
    async with ledger.database.reading() as connection:
        other = connection.transaction()
        await other.start()
        await connection.execute("SELECT 1 FROM account WHERE account_id = $1 FOR UPDATE", request.account_id)
        waiting = f"SELECT count(*) >= $1 FROM {WAITING}"
        top_up = asyncio.create_task(ledger.second.accounts.top_up(request.account_id, new_id(), 1))
        await until(lambda: connection.fetchval(waiting, 1))
        create = asyncio.create_task(ledger.billing.holds.create(request))
        await until(lambda: connection.fetchval(waiting, 2))
        await other.rollback()
    assert (await top_up).available_micros == HOLD_MICROS
    assert (await create).state is HoldState.GRANTED


async def deadlock(ledger: Ledger, request: HoldRequest) -> bool:
    """Asks for a hold, which is turned away by a deadlock and granted then; False: this session was turned away."""
    async with ledger.database.reading() as connection:
        other = connection.transaction()
        await other.start()
        await connection.execute("SELECT 1 FROM account WHERE account_id = $1 FOR UPDATE", request.account_id)
        create = asyncio.create_task(ledger.billing.holds.create(request))
        await until(lambda: connection.fetchval(f"SELECT pid FROM {WAITING}"))
        try:
            await bury_hold(connection, request, "EUR", ledger.clock.time)
            turned_away = True
        except asyncpg.DeadlockDetectedError:
            turned_away = False
        finally:
            await other.rollback()
    assert (await create).state is HoldState.GRANTED
    return turned_away


async def test_a_hold_that_a_deadlock_turned_away_is_asked_for_again(ledger: Ledger) -> None:
    # Who has waited for a second looks for a deadlock, once: on a slow machine it may be found by the other one.
    for _ in range(DEADLOCKS):
        if await deadlock(ledger, request_of(await ledger.account(HOLD_MICROS))):
            return
    pytest.fail(f"None of {DEADLOCKS} deadlocks turned the hold away.")


@RACES
async def test_the_same_hold_asked_for_at_once_of_two_replicas_freezes_once(ledger: Ledger, races: int) -> None:
    for _ in range(races):
        request = request_of(await ledger.account(3 * HOLD_MICROS))
        calls = [replica.holds.create(request) for _ in range(4) for replica in (ledger.billing, ledger.second)]
        assert len(set(await asyncio.gather(*calls))) == 1
        assert await ledger.balance(request.account_id) == (2 * HOLD_MICROS, HOLD_MICROS)


@RACES
async def test_a_reply_lost_before_or_after_the_commit_leaves_one_hold(ledger: Ledger, races: int) -> None:
    for attempt in range(races):
        request = request_of(await ledger.account(3 * HOLD_MICROS))
        call = asyncio.create_task(ledger.billing.holds.create(request))
        await asyncio.sleep(0.0002 * (attempt % 50))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await ledger.second.holds.create(request)
        await ledger.billing.holds.create(request)
        assert await ledger.balance(request.account_id) == (2 * HOLD_MICROS, HOLD_MICROS)


async def test_of_holds_that_go_together_one_refused_refuses_no_neighbour(ledger: Ledger) -> None:
    account_id = await ledger.account(3 * HOLD_MICROS)
    first = request_of(account_id)
    requests = [
        first,
        request_of(account_id, count=3),
        request_of(account_id),
        request_of(account_id, count=5),
        replace(first, count=2),
        replace(request_of(account_id), spec_id="none"),
        request_of(account_id),
        first,
        request_of(account_id),
    ]
    answers = await asyncio.gather(
        *(ledger.billing.holds.create(request) for request in requests), return_exceptions=True
    )
    assert [answer.reason if isinstance(answer, DomainError) else "granted" for answer in answers] == [
        "granted",
        "INSUFFICIENT_BALANCE",
        "granted",
        "COUNT_TOO_LARGE",
        "HOLD_ID_USED",
        "SPEC_NOT_FOUND",
        "granted",
        "granted",
        "INSUFFICIENT_BALANCE",
    ]
    assert await ledger.balance(account_id) == (0, 3 * HOLD_MICROS)


async def test_counters_of_one_account_that_come_together_go_to_the_database_together(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    account_id = await ledger.account(100 * HOLD_MICROS)
    requests = [request_of(account_id) for _ in range(20)]
    for request in requests:
        await ledger.billing.holds.create(request)
    rounds: list[int] = []
    meter_all = ledger.billing.holds._metered._send

    async def counted(key: str, together: Sequence[Counted | Ended]) -> Sequence[Hold | Exception]:
        rounds.append(len(together))
        return await meter_all(key, together)

    monkeypatch.setattr(ledger.billing.holds._metered, "_send", counted)
    await asyncio.gather(
        *(ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True) for request in requests[:10]),
        *(ledger.billing.holds.resolve(request.hold_id, HOUR_MS) for request in requests[10:]),
    )
    assert sum(rounds) == len(requests)
    assert len(rounds) < len(requests) / 2
    holds = [await ledger.hold(request) for request in requests]
    assert all(hold.settled_micros + hold.posted_micros == PRICE_MICROS for hold in holds)
    assert await ledger.balance(account_id) == (80 * HOLD_MICROS, 10 * HOLD_MICROS)


async def test_a_second_transaction_on_an_account_waits_for_the_first(ledger: Ledger) -> None:
    account_id = await ledger.account(HOLD_MICROS)
    async with ledger.database.transaction() as tx:
        await tx.connection.fetchrow("SELECT FROM account WHERE account_id = $1 FOR UPDATE", account_id)
        waiting = asyncio.create_task(ledger.second.holds.create(request_of(account_id)))
        await ledger.until_some_wait_for_a_lock()
        assert not waiting.done()
    await waiting


async def test_a_top_up_and_a_metered_hour_at_once_end_with_the_hour_paid_once(ledger: Ledger) -> None:
    for _ in range(10):
        request = await granted(ledger)
        await asyncio.gather(
            ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True),
            ledger.second.accounts.top_up(request.account_id, new_id(), PRICE_MICROS),
            ledger.second.holds.advance(request.hold_id, HOUR_MS, running=True),
        )
        assert await ledger.balance(request.account_id) in {(0, HOLD_MICROS), (PRICE_MICROS, HOLD_MICROS)}
        await ledger.billing.accounts.top_up(request.account_id, new_id(), 1)
        assert await ledger.balance(request.account_id) == (1, HOLD_MICROS)


# What cannot be changed

# By rights, by trigger, and, of entries, since they only show what transfers say.
REFUSED = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.RaiseError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.WrongObjectTypeError,
)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET amount_micros = amount_micros + 1",
        "DELETE FROM entry",
        "TRUNCATE entry",
        "UPDATE transfer SET amount_micros = 1",
        "UPDATE transfer SET transfer_id = gen_random_uuid()",
        "DELETE FROM transfer",
        "UPDATE price SET price_per_hour_micros = 1",
        "DELETE FROM price",
        "UPDATE record SET reason = 'other'",
        "DELETE FROM record",
        "UPDATE hold SET amount_micros = 0",
        "UPDATE hold SET price_per_hour_micros = 1",
        "DELETE FROM hold",
    ],
)
async def test_what_was_booked_cannot_be_changed_by_the_services_own_role(ledger: Ledger, statement: str) -> None:
    await granted(ledger)
    async with ledger.database.reading() as connection:
        with pytest.raises(REFUSED):
            await connection.execute(statement)


@pytest.mark.parametrize("table", ["transfer", "price", "record", "hold"])
async def test_nor_by_a_role_that_has_the_right(ledger: Ledger, table: str) -> None:
    async with ledger.database.reading() as connection:
        await connection.execute("GRANT ALL ON transfer, price, record, hold TO CURRENT_USER")
        for statement in (f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
            with pytest.raises(asyncpg.RaiseError, match="append-only"):
                await connection.execute(statement)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        "hold_id = 'other'",
        "account_id = gen_random_uuid()",
        "work_kind = 'DEPLOYMENT'",
        "work_id = gen_random_uuid()",
        "start_number = 2",
        "region_id = 'other'",
        "spec_id = 'other'",
        "count = 2",
        "currency = 'USD'",
        "price_per_hour_micros = 1",
        "amount_micros = 1",
        "group_id = gen_random_uuid()",
        "created_at = created_at + interval '1 second'",
    ],
)
async def test_what_a_hold_was_asked_for_is_changed_by_no_role(ledger: Ledger, change: str, closed: bool) -> None:
    request = await granted(ledger)
    if closed:
        await ledger.billing.holds.resolve(request.hold_id, 0)
    async with ledger.database.reading() as connection:
        await connection.execute("GRANT ALL ON hold TO CURRENT_USER")
        with pytest.raises(asyncpg.RaiseError, match="stays what it was asked for"):
            # A counter that comes late may change what is closed.
            await connection.execute(f"UPDATE hold SET charged_ms = charged_ms + 1, {change}")


async def test_a_closed_hold_never_opens_again(ledger: Ledger) -> None:
    request = await granted(ledger)
    await ledger.billing.holds.resolve(request.hold_id, 0)
    async with ledger.database.reading() as connection:
        with pytest.raises(asyncpg.RaiseError, match="RESOLVED"):
            await connection.execute("UPDATE hold SET state = 'GRANTED', resolved_at = NULL, released_micros = 0")


async def test_a_hold_that_was_granted_is_never_refused_later(ledger: Ledger) -> None:
    await granted(ledger)
    async with ledger.database.reading() as connection:
        with pytest.raises(asyncpg.RaiseError, match="GRANTED"):
            await connection.execute("UPDATE hold SET state = 'REFUSED', refusal = 'ACCOUNT_SUSPENDED'")


# Statements


async def test_a_months_statement_is_that_of_the_accounts_time_zone_and_follows_line_by_line(ledger: Ledger) -> None:
    # In Berlin, March 2026 ends on summer time: 2026-02-28T23:00Z to 2026-03-31T22:00Z.
    ledger.clock.time = datetime(2026, 2, 28, 22, 59, tzinfo=UTC)
    account_id = await ledger.account(7, "Europe/Berlin")
    for moment, amount in (
        (datetime(2026, 2, 28, 23, 0, tzinfo=UTC), 2 * HOLD_MICROS),
        (datetime(2026, 3, 31, 21, 59, tzinfo=UTC), 20),
        (datetime(2026, 3, 31, 22, 0, tzinfo=UTC), 30),
    ):
        ledger.clock.time = moment
        await ledger.billing.accounts.top_up(account_id, new_id(), amount)
        if amount == 2 * HOLD_MICROS:
            request = request_of(account_id)
            await ledger.billing.holds.create(request)
            await ledger.billing.holds.resolve(request.hold_id, 90_000)
    march = await ledger.billing.statements.of_month(account_id, "2026-03", after_version=None, limit=100)
    assert (march.opening_available_micros, march.opening_frozen_micros) == (7, 0)
    assert [line.kind for line in march.transfers] == ["TOP_UP", "HOLD", "POSTING", "RELEASE", "TOP_UP"]
    assert march.charged_micros == 90_000
    assert march.closing_available_micros == 7 + 2 * HOLD_MICROS - 90_000 + 20
    assert march.closing_frozen_micros == 0
    first = await ledger.billing.statements.of_month(account_id, "2026-03", after_version=None, limit=2)
    rest = await ledger.billing.statements.of_month(
        account_id, "2026-03", after_version=first.transfers[-1].account_version, limit=100
    )
    assert first.transfers + rest.transfers == march.transfers
    exact = await ledger.billing.statements.of_month(account_id, "2026-03", after_version=None, limit=5)
    assert (first.more, rest.more, march.more, exact.more) == (True, False, False, False)
    assert (first.closing_available_micros, first.closing_frozen_micros) == (
        rest.opening_available_micros,
        rest.opening_frozen_micros,
    )
    april = await ledger.billing.statements.of_month(account_id, "", after_version=None, limit=100)
    assert (april.period.name, [line.amount_micros for line in april.transfers]) == ("2026-04", [30])
    assert april.opening_available_micros == march.closing_available_micros
    empty = await ledger.billing.statements.of_month(account_id, "2027-01", after_version=None, limit=100)
    assert (empty.transfers, empty.opening_available_micros) == ((), april.closing_available_micros)


async def test_what_is_booked_after_a_months_first_line_is_never_in_the_month_before(ledger: Ledger) -> None:
    april, march = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC)
    ledger.clock.time = april
    account_id = await ledger.account(2 * HOLD_MICROS)
    # As a transaction that read the clock before, and then waited for the account; or after the clock was set back.
    ledger.clock.time = march
    rich = request_of(account_id)
    await ledger.billing.holds.create(rich)
    # One is granted, one refused, by one statement.
    answers = await ledger.billing.holds._create_all(account_id, [request_of(account_id) for _ in range(2)])
    assert {str(hold.state) for hold in answers if isinstance(hold, Hold)} == {"GRANTED", "REFUSED"}
    await ledger.billing.holds.resolve(rich.hold_id, 90_000)
    topped_up = await ledger.billing.accounts.top_up(account_id, "late", 5)
    assert topped_up.created_at == april
    assert await ledger.billing.accounts.top_up(account_id, "late", 5) == topped_up

    ledger.clock.time = april + timedelta(days=1)
    closed, current = [
        await ledger.billing.statements.of_month(account_id, month, after_version=None, limit=100)
        for month in ("2026-03", "2026-04")
    ]
    assert (closed.transfers, closed.charged_micros) == ((), 0)
    assert [line.account_version for line in current.transfers] == [1, 2, 3, 4, 5, 6]
    assert current.opening_available_micros == closed.closing_available_micros == 0
    assert current.charged_micros == 90_000


# The audit itself


async def test_entries_are_those_that_the_ledger_says(ledger: Ledger) -> None:
    account_id = await ledger.account(HOLD_MICROS)
    async with ledger.database.reading() as connection:
        transaction = connection.transaction()
        await transaction.start()
        for version, kind in enumerate(TransferKind, start=2):
            await connection.execute(
                """
                INSERT INTO transfer (transfer_id, kind, account_id, account_version, amount_micros, available_micros,
                                      frozen_micros, created_at, hold_id, reference, record_id)
                SELECT gen_random_uuid(), $1::text, $2, $3, 7, 0, 0, now(),
                       CASE WHEN $1 NOT IN ('TOP_UP', 'CREDIT', 'DEBIT') THEN 'hold' END,
                       CASE WHEN $1 = 'TOP_UP' THEN 'reference' END,
                       CASE WHEN $1 IN ('CREDIT', 'DEBIT', 'REFUND') THEN (SELECT record_id FROM record LIMIT 1) END
                """,
                kind,
                account_id,
                version,
            )
        rows = await connection.fetch(
            "SELECT t.kind, e.book, e.amount_micros FROM entry e JOIN transfer t USING (transfer_id) "
            "WHERE t.account_version > 1"
        )
        await transaction.rollback()
    shown = {kind: {(r["book"], r["amount_micros"]) for r in rows if r["kind"] == kind} for kind in TransferKind}
    assert shown == {kind: {(source, -7), (target, 7)} for kind, (source, target) in MOVES.items()}


async def test_a_refused_hold_leaves_only_its_id(ledger: Ledger) -> None:
    request = request_of(await ledger.account(HOLD_MICROS - 1))
    for _ in range(2):
        error = await refusal(ledger.billing.holds.create(request))
        assert isinstance(error, FailedPreconditionError)
        assert error.metadata["missing_micros"] == "1"
    assert (await ledger.hold(request)).state is HoldState.REFUSED
    assert await ledger.balance(request.account_id) == (HOLD_MICROS - 1, 0)
