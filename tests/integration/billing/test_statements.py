"""Lines of statements in figures: each formula, worked by hand, gives its amount.

The ledger's fixture works the lines of every test so, and test_histories.py those of any history; here is their text.
"""

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from saucer.billing import rpc
from saucer.billing.messages import monthly_statement_message
from saucer.billing.service import UNUSED_LIMIT
from saucer.billing.v1 import billing_pb2
from saucer.lib.ids import new_id
from tests.support.ledger import HOLD_MICROS, HOUR_MS, PRICE_MICROS, Ledger, correction, open_ledger, request_of
from tests.support.servers import NewDatabase
from tests.support.statements import check_lines, of_start, worked

# What a gRPC client takes by default.
ANSWER_BYTES = 4 * 1024 * 1024


# POLICY 3, 6 and 8; of a start that ends without a metered hour.
@pytest.mark.parametrize(
    ("count", "charged_ms", "more_micros", "lines"),
    [
        (
            1,
            90_999,
            0,
            [
                (90_000, "floor(3600000 × 1 × 90 s ÷ 3600) − 0 taken or lost before"),
                (7_110_000, "7200000 held − 90000 posted"),
            ],
        ),
        (
            2,
            90_000,
            0,
            [
                (180_000, "floor(3600000 × 2 × 90 s ÷ 3600) − 0 taken or lost before"),
                (14_220_000, "14400000 held − 180000 posted"),
            ],
        ),
        (
            1,
            7_201_000,
            400,
            [
                (7_200_000, "floor(3600000 × 1 × 7201 s ÷ 3600) − 0 taken or lost before, at most the 7200000 held"),
                (
                    400,
                    "floor(3600000 × 1 × 7201 s ÷ 3600) − 7200000 taken or lost before, "
                    "as far as the balance of 400 reaches",
                ),
                (
                    600,
                    "floor(3600000 × 1 × 7201 s ÷ 3600) − 7200400 taken or lost before, "
                    "which neither hold nor balance covered",
                ),
            ],
        ),
        (1, 0, 0, [(7_200_000, "7200000 held − 0 posted")]),
    ],
)
async def test_the_end_of_a_start_is_written_with_what_bounds_it(
    ledger: Ledger, count: int, charged_ms: int, more_micros: int, lines: list[tuple[int, str]]
) -> None:
    account_id = await ledger.account(count * HOLD_MICROS + more_micros)
    request = request_of(account_id, count=count)
    await ledger.billing.holds.create(request)
    await ledger.billing.holds.resolve(request.hold_id, charged_ms)
    found = await of_start(ledger.billing, account_id)
    assert found == [(count * HOLD_MICROS, f"2 h × 3600000 × {count}"), *lines]
    assert [worked(text) for _, text in found] == [amount for amount, _ in found]


async def test_each_settlement_and_the_end_name_what_was_taken_before(ledger: Ledger) -> None:
    # POLICY 4: the first hour is paid at once, the second by the top-up.
    account_id = await ledger.account(HOLD_MICROS + PRICE_MICROS)
    request = request_of(account_id)
    await ledger.billing.holds.create(request)
    await ledger.billing.holds.advance(request.hold_id, HOUR_MS, running=True)
    await ledger.billing.holds.advance(request.hold_id, 2 * HOUR_MS, running=True)
    await ledger.billing.accounts.top_up(account_id, new_id(), PRICE_MICROS)
    await ledger.billing.holds.resolve(request.hold_id, 2 * HOUR_MS + 1000)
    await ledger.billing.accounts.refund(request.hold_id, 60_000, correction("the results were wrong"))
    assert await of_start(ledger.billing, account_id) == [
        (7_200_000, "2 h × 3600000 × 1"),
        (3_600_000, "floor(3600000 × 1 × 3600 s ÷ 3600) − 0 taken or lost before"),
        (3_600_000, "floor(3600000 × 1 × 7200 s ÷ 3600) − 3600000 taken or lost before"),
        (1_000, "floor(3600000 × 1 × 7201 s ÷ 3600) − 7200000 taken or lost before"),
        (7_199_000, "7200000 held − 1000 posted"),
        (60_000, "the results were wrong (tester)"),
    ]


async def test_a_hold_that_was_not_used_says_so(ledger: Ledger) -> None:
    account_id = await ledger.account(HOLD_MICROS)
    await ledger.billing.holds.create(request_of(account_id))
    ledger.clock.advance(2 * UNUSED_LIMIT)
    await ledger.billing.sweep_once()
    assert (await of_start(ledger.billing, account_id))[1:] == [(7_200_000, "7200000 held, not used in time")]


async def test_a_months_lines_name_their_start_and_its_formula_on_whatever_page(ledger: Ledger) -> None:
    account_id = await ledger.account(3 * HOLD_MICROS)
    request = request_of(account_id)
    await ledger.billing.holds.create(request)
    for hour in (1, 2):
        await ledger.billing.holds.advance(request.hold_id, hour * HOUR_MS, running=True)
    whole = await ledger.billing.statements.of_month(account_id, "", after_version=None, limit=9)
    top_up, *lines = monthly_statement_message(whole, "").lines
    assert top_up.explanation.startswith("reference ")
    assert [line.explanation for line in lines] == [
        f"start {request.hold_id}: 2 h × 3600000 × 1",
        f"start {request.hold_id}: floor(3600000 × 1 × 3600 s ÷ 3600) − 0 taken or lost before",
        f"start {request.hold_id}: floor(3600000 × 1 × 7200 s ÷ 3600) − 3600000 taken or lost before",
    ]
    page = await ledger.billing.statements.of_month(account_id, "", after_version=3, limit=9)
    assert monthly_statement_message(page, "").lines[:] == lines[2:]


async def pages(ledger: Ledger, account_id: str) -> list[billing_pb2.ListStatementsResponse]:
    implementation: Any = rpc.servicer(ledger.billing).implementation
    found: list[billing_pb2.ListStatementsResponse] = []
    request = billing_pb2.ListStatementsRequest(account_id=account_id)
    while not found or request.page_token:
        found.append(await implementation.ListStatements(request, None))
        request.page_token = found[-1].next_page_token
    return found


async def test_a_start_of_many_thousand_lines_is_read_over_pages_and_others_stay_whole(
    new_database: NewDatabase,
) -> None:
    async with AsyncExitStack() as stack:
        ledger = await open_ledger(stack, await new_database())
        account_id = await ledger.account(3 * HOLD_MICROS)
        requests = [request_of(account_id) for _ in range(3)]
        for request in requests:
            await ledger.billing.holds.create(request)
            ledger.clock.advance(timedelta(seconds=1))
        first, long, last = (request.hold_id for request in requests)
        hours = 25_000
        async with ledger.database.reading() as connection:
            await connection.execute(
                """
                INSERT INTO transfer (transfer_id, kind, account_id, account_version, hold_id, amount_micros,
                                      charged_ms, available_micros, frozen_micros, created_at)
                SELECT gen_random_uuid(), 'SETTLEMENT', $1, 100 + hour, $2, $3, hour * $4::bigint, 0, 0, $5
                FROM generate_series(1, $6) AS hour
                """,
                account_id,
                long,
                PRICE_MICROS,
                HOUR_MS,
                ledger.clock.time,
                hours,
            )
        answers = await pages(ledger, account_id)
    shown = [[(one.hold.hold_id, len(one.lines), one.more_lines) for one in answer.statements] for answer in answers]
    assert shown == [
        [(last, 1, False)],
        [(long, 10_000, True)],
        [(long, 10_000, True)],
        [(long, hours + 1 - 20_000, False), (first, 1, False)],
    ]
    assert max(answer.ByteSize() for answer in answers) < ANSWER_BYTES
    lines = [line for answer in answers for one in answer.statements if one.hold.hold_id == long for line in one.lines]
    assert [line.charged_ms for line in lines] == [hour * HOUR_MS for hour in range(hours + 1)]
    check_lines(lines)
