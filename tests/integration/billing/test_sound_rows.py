"""What PostgreSQL refuses of a hold and a transfer, state by state and kind by kind (schema/009_sound_rows.sql)."""

import json
from collections.abc import Mapping
from itertools import combinations_with_replacement, product

import asyncpg
import pytest

from saucer.billing.domain import HoldState, Refusal
from saucer.billing.ledger import TransferKind
from tests.support.ledger import Ledger

ID, TIME = "0" * 32, "2026-03-01T00:00:00Z"
Columns = Mapping[str, object]
PLAIN: Columns = {
    "work_kind": "TASK", "start_number": 1, "count": 1, "price_per_hour_micros": 5, "amount_micros": 10,
    "charge_status": "NOT_BILLING", "missing_micros": 0, "charged_ms": 0, "settled_micros": 0, "posted_micros": 0,
    "released_micros": 0, "lost_micros": 0,
}  # fmt: skip
FREE: Columns = {"group_id": ID, "price_per_hour_micros": 0, "amount_micros": 0}
CLOSED: Columns = {"resolved_at": TIME, "granted_at": TIME}
# Of each state, what makes its row a sound one.
OF_STATE: Mapping[HoldState, Columns] = {
    HoldState.WAITING: FREE,
    HoldState.GRANTED: {"granted_at": TIME},
    HoldState.REFUSED: {"refusal": "INSUFFICIENT_BALANCE"},
    HoldState.RESOLVED: {**CLOSED, "settled_micros": 7, "posted_micros": 4, "released_micros": 6, "lost_micros": 1},
    HoldState.EXPIRED: {**CLOSED, "released_micros": 10},
    HoldState.BURIED: {"amount_micros": 0},
}
UNSOUND: list[tuple[HoldState, Columns]] = [
    *((state, {"work_kind": "LUNCH"}) for state in HoldState),
    *((state, {"start_number": 0}) for state in HoldState),
    *((state, {"count": 0, "amount_micros": 0}) for state in HoldState),
    *((state, {"charge_status": "FREE"}) for state in HoldState),
    *(
        (state, {column: -1})
        for state in HoldState
        for column in (
            "missing_micros",
            "charged_ms",
            "settled_micros",
            "posted_micros",
            "released_micros",
            "lost_micros",
        )
    ),
    *((state, {"amount_micros": 9}) for state in set(HoldState) - {HoldState.BURIED}),
    (HoldState.GRANTED, {"group_id": ID}),
    (HoldState.BURIED, {"group_id": ID, "amount_micros": 10}),
    *((state, {"refusal": "GROUP_ENDED"}) for state in set(HoldState) - {HoldState.REFUSED}),
    (HoldState.REFUSED, {"refusal": None}),
    (HoldState.REFUSED, {"refusal": "TOO_LATE"}),
    *((state, {"resolved_at": TIME}) for state in set(HoldState) - {HoldState.RESOLVED, HoldState.EXPIRED}),
    (HoldState.RESOLVED, {"resolved_at": None}),
    (HoldState.EXPIRED, {"resolved_at": None}),
    (HoldState.RESOLVED, {"posted_micros": 5}),
    (HoldState.EXPIRED, {"released_micros": 9}),
    (HoldState.EXPIRED, {"settled_micros": 1}),
    (HoldState.EXPIRED, {"posted_micros": 1, "released_micros": 9}),
    (HoldState.EXPIRED, {"posted_micros": 1, "settled_micros": 1}),
    # What has come out of it, in one way and in two: neither makes up for the other.
    *(
        (state, dict.fromkeys(columns, 1))
        for state in (HoldState.WAITING, HoldState.GRANTED, HoldState.REFUSED, HoldState.BURIED)
        for columns in combinations_with_replacement(("posted_micros", "released_micros", "lost_micros"), 2)
    ),
    (HoldState.GRANTED, {"granted_at": None}),
    (HoldState.WAITING, {"group_id": None}),
]


async def is_sound(ledger: Ledger, table: str, row: Columns) -> bool:
    async with ledger.database.reading() as connection:
        sound: bool = await connection.fetchval(
            f"SELECT is_sound(jsonb_populate_record(NULL::{table}, $1))",
            json.dumps(dict(row)),
        )
    return sound


def row_of(state: HoldState) -> dict[str, object]:
    return {**PLAIN, "state": state, **OF_STATE[state]}


async def test_every_state_has_a_sound_row_and_no_other_is_one(ledger: Ledger) -> None:
    for state in HoldState:
        assert await is_sound(ledger, "hold", row_of(state)), state
    assert not await is_sound(ledger, "hold", row_of(HoldState.BURIED) | {"state": "LOST"})
    for refusal in Refusal:
        assert await is_sound(ledger, "hold", row_of(HoldState.REFUSED) | {"refusal": refusal}), refusal


@pytest.mark.parametrize("column", ["settled_micros", "charged_ms"])
async def test_what_is_granted_counts_and_settles(ledger: Ledger, column: str) -> None:
    assert await is_sound(ledger, "hold", row_of(HoldState.GRANTED) | {column: 1})


async def test_what_breaks_one_rule_is_unsound(ledger: Ledger) -> None:
    sound = [
        (state, change) for state, change in UNSOUND if await is_sound(ledger, "hold", {**row_of(state), **change})
    ]
    assert sound == []


async def test_a_transfer_names_what_its_kind_is_of(ledger: Ledger) -> None:
    """By kind: whether it has a hold, a record and a reference. Any other combination is refused."""
    of_a_hold = dict.fromkeys(("HOLD", "SETTLEMENT", "POSTING", "RELEASE", "EXPIRY", "LOSS"), (True, False, False))
    named = of_a_hold | {
        "TOP_UP": (False, False, True),
        "CREDIT": (False, True, False),
        "DEBIT": (False, True, False),
        "REFUND": (True, True, False),
    }
    assert set(named) == set(TransferKind)
    for kind, (hold, record, reference) in product((*named, "GIFT"), product((True, False), repeat=3)):
        row = {
            "kind": kind,
            "amount_micros": 1,
            "hold_id": "a" if hold else None,
            "record_id": ID if record else None,
            "reference": "a" if reference else None,
        }
        right = named.get(kind) == (hold, record, reference)
        assert await is_sound(ledger, "transfer", row) == right, row
        assert not await is_sound(ledger, "transfer", row | {"amount_micros": 0})


@pytest.mark.parametrize("table", ["hold", "transfer"])
async def test_an_unsound_row_is_refused(ledger: Ledger, table: str) -> None:
    unsound = row_of(HoldState.GRANTED) | {
        "granted_at": None, "hold_id": "a", "account_id": ID, "work_id": ID, "region_id": "r", "spec_id": "s",
        "currency": "EUR", "used": False, "stop_ordered": False, "created_at": TIME, "revision": 1,
        "account_version": 0, "transfer_id": ID, "kind": "GIFT", "available_micros": 0, "frozen_micros": 0,
    }  # fmt: skip
    async with ledger.database.reading() as connection:
        with pytest.raises(asyncpg.CheckViolationError, match=f"{table}_is_sound"):
            await connection.execute(
                f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, $1)",
                json.dumps(unsound),
            )
