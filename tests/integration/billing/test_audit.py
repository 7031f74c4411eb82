"""The audit finds nothing in a ledger that has seen everything, and each invariant that is broken on purpose."""

import json
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from saucer.billing.domain import HoldState
from saucer.billing.service import UNUSED_LIMIT
from saucer.billing.store import records
from saucer.lib import postgres
from saucer.lib.errors import FailedPreconditionError
from saucer.lib.ids import new_id
from tests.support.ledger import HOLD_MICROS, HOUR_MS, REGION, SPEC, Ledger, correction, open_ledger, request_of
from tests.support.servers import NewDatabase

# So that what constraints, triggers and rights refuse can be done at all.
UNGUARDED = """
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT conrelid::regclass AS of_table, conname FROM pg_constraint
               WHERE contype = 'c' AND connamespace = current_schema()::regnamespace LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.of_table, one.conname);
    END LOOP;
END $$;
GRANT ALL ON account, hold, transfer, record TO CURRENT_USER;
ALTER TABLE transfer DISABLE TRIGGER USER;
ALTER TABLE hold DISABLE TRIGGER USER;
"""
ENTRIES_ARE = (
    "CREATE OR REPLACE VIEW entry AS "
    "SELECT transfer_id, 'CASH' AS book, account_id, amount_micros FROM transfer WHERE {}"
)
ONE_MORE = (
    "INSERT INTO transfer SELECT '{{id}}', kind, account_id, 99, hold_id, 1, charged_ms, available_micros, "
    "frozen_micros, reference, record_id, timestamptz '2100-01-01' FROM transfer "
    "WHERE kind = '{0}' AND hold_id = '{{{1}}}' LIMIT 1"
)


async def world(ledger: Ledger) -> dict[str, str]:
    """One of everything, by name: the ids of holds, and of two accounts and a group."""
    billing = ledger.billing
    rich, poor = await ledger.account(100 * HOLD_MICROS), await ledger.account(HOLD_MICROS)
    ids = {"rich": rich, "poor": poor}
    for account_id in (rich, await ledger.account(HOLD_MICROS)):
        await billing.holds.create(request_of(account_id))

    paid = request_of(rich)
    await billing.holds.create(paid)
    await billing.holds.use(paid.hold_id, paid.work_id, 1)
    for hour in (1, 2):
        await billing.holds.advance(paid.hold_id, hour * HOUR_MS, running=True)
    await billing.holds.resolve(paid.hold_id, 2 * HOUR_MS + HOUR_MS // 2)
    for amount in (2, 3):
        await billing.accounts.refund(paid.hold_id, amount, correction())
    await billing.accounts.adjust(rich, 7, correction())
    await billing.accounts.adjust(rich, -4, correction())

    # Its second start; the first was closed when it was used.
    restarted = request_of(rich, work_id=paid.work_id, start_number=2)
    await billing.holds.create(restarted)
    await billing.holds.use(restarted.hold_id, restarted.work_id, 2)
    await billing.holds.advance(restarted.hold_id, HOUR_MS, running=True)

    lost = request_of(poor)
    await billing.holds.create(lost)
    with pytest.raises(FailedPreconditionError):
        await billing.holds.create(refused := request_of(poor))
    await billing.holds.resolve(lost.hold_id, 3 * HOUR_MS)

    expired, buried = request_of(rich), request_of(rich)
    await billing.holds.create(expired)
    ledger.clock.advance(UNUSED_LIMIT + timedelta(seconds=1))
    await billing.holds.expire(expired.hold_id)
    await billing.holds.give_up(buried, "EUR", 0)

    ends_at = ledger.clock.time + timedelta(days=2)
    group = await billing.groups.create(rich, "G", REGION, SPEC, 2, None, ends_at, correction())
    grouped, beside, waiting = [request_of(rich, group_id=group.group_id) for _ in range(3)]
    for request in (grouped, beside, waiting):
        await billing.holds.create(request)

    ids["group"] = group.group_id
    for name, request in (
        ("paid", paid),
        ("open", restarted),
        ("lost", lost),
        ("refused", refused),
        ("expired", expired),
        ("buried", buried),
        ("grouped", grouped),
        ("waiting", waiting),
    ):
        ids[name] = request.hold_id
    return ids


async def test_a_ledger_that_has_seen_everything_is_clean(ledger: Ledger) -> None:
    await world(ledger)
    audit = await ledger.audit()
    assert audit.findings == ()
    assert audit.frozen_micros == 3 * HOLD_MICROS
    async with ledger.database.reading() as connection:
        states = {row["state"] for row in await connection.fetch("SELECT state FROM hold")}
    assert states == set(HoldState)


# By damage, to rows that world() names: every invariant that is broken then.
DAMAGES = [
    (
        "UPDATE account SET available_micros = available_micros + 1 WHERE account_id = '{rich}'",
        "balance_is_the_sum_of_entries",
    ),
    (
        "UPDATE account SET frozen_micros = frozen_micros + 1 WHERE account_id = '{rich}'",
        "balance_is_the_sum_of_entries frozen_is_the_sum_of_open_holds",
    ),
    (
        "UPDATE account SET frozen_micros = 1 WHERE account_id = '{poor}'",
        "balance_is_the_sum_of_entries frozen_is_the_sum_of_open_holds",
    ),
    (
        "UPDATE account SET available_micros = -1, frozen_micros = 1 WHERE account_id = '{poor}'",
        "balance_is_never_negative balance_is_the_sum_of_entries frozen_is_the_sum_of_open_holds",
    ),
    (
        "UPDATE account SET frozen_micros = -1 WHERE account_id = '{poor}'",
        "balance_is_never_negative balance_is_the_sum_of_entries frozen_is_the_sum_of_open_holds",
    ),
    (
        "UPDATE account SET version = version + 1 WHERE account_id = '{rich}'",
        "versions_have_no_gap",
    ),
    (
        "UPDATE transfer SET created_at = created_at - interval '1 day' WHERE account_id = '{poor}' AND kind = 'LOSS'",
        "transfers_follow_in_time",
    ),
    (
        "UPDATE transfer SET account_version = 99 WHERE account_id = '{poor}' AND kind = 'LOSS'",
        "versions_have_no_gap",
    ),
    (
        "DELETE FROM transfer WHERE account_id = '{poor}'",
        "hold_is_the_sum_of_its_transfers month_is_the_sum_of_its_transfers versions_have_no_gap",
    ),
    (
        "UPDATE transfer SET available_micros = available_micros + 1 WHERE hold_id = '{open}' AND kind = 'HOLD'",
        "balance_is_the_replay_of_transfers",
    ),
    (
        "UPDATE transfer SET frozen_micros = frozen_micros + 1 WHERE hold_id = '{open}' AND kind = 'HOLD'",
        "balance_is_the_replay_of_transfers",
    ),
    (
        "UPDATE transfer SET available_micros = -1 WHERE hold_id = '{open}' AND kind = 'HOLD'",
        "balance_is_never_negative balance_is_the_replay_of_transfers",
    ),
    (
        "UPDATE transfer SET frozen_micros = 1 WHERE account_id = '{rich}' AND account_version = 1",
        "balance_is_the_replay_of_transfers",
    ),
    (
        "UPDATE transfer SET frozen_micros = -1 WHERE hold_id = '{paid}' AND kind = 'RELEASE'",
        "balance_is_never_negative balance_is_the_replay_of_transfers",
    ),
    (
        "UPDATE transfer SET kind = 'OTHER' WHERE hold_id = '{open}' AND kind = 'HOLD'",
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries hold_is_the_sum_of_its_transfers "
        "transfer_has_its_entries",
    ),
    (
        "UPDATE transfer SET account_id = '{id}' WHERE hold_id = '{open}' AND kind = 'SETTLEMENT'",
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries month_is_the_sum_of_its_transfers "
        "versions_have_no_gap what_is_pointed_to_is_there",
    ),
    (
        "UPDATE transfer SET account_id = '{poor}', account_version = 99 WHERE hold_id = '{open}' AND kind = "
        "'SETTLEMENT'",
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries month_is_the_sum_of_its_transfers "
        "versions_have_no_gap what_is_pointed_to_is_there",
    ),
    (
        "UPDATE transfer SET hold_id = 'none' WHERE hold_id = '{open}' AND kind = 'SETTLEMENT'",
        "hold_is_the_sum_of_its_transfers what_is_pointed_to_is_there",
    ),
    (
        "UPDATE hold SET account_id = '{id}' WHERE hold_id = '{buried}'",
        "what_is_pointed_to_is_there",
    ),
    (
        "UPDATE hold SET amount_micros = amount_micros + 2 WHERE hold_id = '{open}'",
        "frozen_is_the_sum_of_open_holds hold_is_the_sum_of_its_transfers hold_is_two_hours_of_its_price",
    ),
    (
        "UPDATE hold SET amount_micros = 1 WHERE hold_id = '{refused}'",
        "hold_is_two_hours_of_its_price",
    ),
    (
        "UPDATE hold SET amount_micros = 1 WHERE hold_id = '{buried}'",
        "",
    ),
    (
        "UPDATE hold SET price_per_hour_micros = price_per_hour_micros * 2 WHERE hold_id = '{refused}'",
        "hold_is_two_hours_of_its_price",
    ),
    (
        "UPDATE hold SET count = 2 WHERE hold_id = '{refused}'",
        "hold_is_two_hours_of_its_price",
    ),
    (
        "UPDATE hold SET settled_micros = settled_micros + 1 WHERE hold_id = '{open}'",
        "hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE hold SET settled_micros = settled_micros + 1 WHERE hold_id = '{waiting}'",
        "hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE hold SET posted_micros = 1 WHERE hold_id = '{open}'",
        "hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE hold SET released_micros = 1 WHERE hold_id = '{open}'",
        "hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE hold SET lost_micros = 1 WHERE hold_id = '{open}'",
        "hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE hold SET posted_micros = posted_micros + 1 WHERE hold_id = '{paid}'",
        "hold_is_the_sum_of_its_transfers resolved_hold_pays_its_charge",
    ),
    (
        "UPDATE hold SET lost_micros = lost_micros + 1 WHERE hold_id = '{lost}'",
        "hold_is_the_sum_of_its_transfers resolved_hold_pays_its_charge",
    ),
    (
        "UPDATE hold SET released_micros = released_micros + 1 WHERE hold_id = '{expired}'",
        "hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE hold SET posted_micros = amount_micros + 1 WHERE hold_id = '{lost}'",
        "hold_is_the_sum_of_its_transfers posted_is_at_most_the_hold resolved_hold_pays_its_charge",
    ),
    (
        "UPDATE hold SET charged_ms = charged_ms + 1000 WHERE hold_id = '{paid}'",
        "resolved_hold_pays_its_charge",
    ),
    (
        "UPDATE hold SET charged_ms = 1000 WHERE hold_id = '{expired}'",
        "resolved_hold_pays_its_charge",
    ),
    (
        "UPDATE hold SET charged_ms = 3 * 3600000 WHERE hold_id = '{open}'",
        "",
    ),
    (
        "UPDATE hold SET charged_ms = 3 * 3600000 + 1000 WHERE hold_id = '{open}'",
        "unpaid_is_covered_by_the_hold",
    ),
    (
        "UPDATE hold SET charged_ms = 3 * 3600000 + 1000, stop_ordered = true WHERE hold_id = '{open}'",
        "",
    ),
    (
        "UPDATE hold SET state = 'GRANTED' WHERE hold_id = '{lost}'",
        "frozen_is_the_sum_of_open_holds unpaid_is_covered_by_the_hold",
    ),
    (
        "UPDATE hold SET state = 'WAITING', resolved_at = NULL WHERE hold_id = '{paid}'",
        "ended_start_has_no_open_hold hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE hold SET state = 'REFUSED' WHERE hold_id = '{expired}'",
        "hold_is_the_sum_of_its_transfers refused_hold_moved_nothing",
    ),
    (
        "UPDATE hold SET state = 'BURIED' WHERE hold_id = '{expired}'",
        "hold_is_the_sum_of_its_transfers refused_hold_moved_nothing",
    ),
    (
        "UPDATE hold SET used = false WHERE hold_id = '{open}'",
        "",
    ),
    (
        "UPDATE hold SET state = 'GRANTED' WHERE hold_id = '{waiting}'",
        "group_gives_no_more_than_its_capacity",
    ),
    (
        "UPDATE resource_group SET capacity = 1",
        "group_gives_no_more_than_its_capacity",
    ),
    (
        "UPDATE resource_group SET ended = true",
        "nothing_waits_for_an_ended_group",
    ),
    (
        "UPDATE resource_group SET ended = true; UPDATE hold SET state = 'BURIED' WHERE hold_id = '{waiting}'",
        "",
    ),
    (
        "UPDATE hold SET group_id = '{group}' WHERE hold_id = '{expired}'",
        "hold_of_group_moved_nothing",
    ),
    (
        "UPDATE hold SET account_id = '{poor}' WHERE hold_id = '{grouped}'",
        "hold_is_of_its_groups_account_and_spec",
    ),
    (
        "UPDATE hold SET spec_id = 'other' WHERE hold_id = '{grouped}'",
        "hold_is_of_its_groups_account_and_spec",
    ),
    (
        "UPDATE hold SET region_id = 'other' WHERE hold_id = '{waiting}'",
        "hold_is_of_its_groups_account_and_spec",
    ),
    (
        "UPDATE month_charge SET charged_micros = charged_micros + 1 WHERE account_id = '{rich}'",
        "month_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE month_charge SET month = '2020-01' WHERE account_id = '{poor}'",
        "month_is_the_sum_of_its_transfers",
    ),
    (
        "DELETE FROM month_charge WHERE account_id = '{poor}'",
        "month_is_the_sum_of_its_transfers",
    ),
    (
        "INSERT INTO month_charge (account_id, month, charged_micros) VALUES ('{rich}', '2020-01', 1)",
        "month_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE transfer SET kind = 'SETTLEMENT' WHERE hold_id = '{paid}' AND kind = 'POSTING'",
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE transfer SET kind = 'RELEASE' WHERE hold_id = '{expired}' AND kind = 'EXPIRY'",
        "",
    ),
    (
        "UPDATE hold SET state = 'WAITING', resolved_at = NULL WHERE hold_id = '{paid}'; UPDATE hold SET used"
        " = false WHERE hold_id = '{open}'",
        "hold_is_the_sum_of_its_transfers",
    ),
    (
        "UPDATE transfer SET amount_micros = 5000000 WHERE hold_id = '{paid}' AND kind = 'REFUND'",
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries month_is_the_sum_of_its_transfers "
        "refund_is_at_most_what_was_paid",
    ),
    (
        "UPDATE transfer SET amount_micros = 4500000 WHERE hold_id = '{paid}' AND kind = 'REFUND'",
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries month_is_the_sum_of_its_transfers",
    ),
    (
        ONE_MORE.format("HOLD", "open"),
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries hold_is_the_sum_of_its_transfers "
        "versions_have_no_gap",
    ),
    (
        ONE_MORE.format("SETTLEMENT", "open"),
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries hold_is_the_sum_of_its_transfers "
        "month_is_the_sum_of_its_transfers versions_have_no_gap",
    ),
    (
        ONE_MORE.format("POSTING", "paid"),
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries hold_is_the_sum_of_its_transfers "
        "month_is_the_sum_of_its_transfers versions_have_no_gap",
    ),
    (
        ONE_MORE.format("RELEASE", "paid"),
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries hold_is_the_sum_of_its_transfers "
        "versions_have_no_gap",
    ),
    (
        ONE_MORE.format("EXPIRY", "expired"),
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries hold_is_the_sum_of_its_transfers "
        "versions_have_no_gap",
    ),
    (
        ONE_MORE.format("LOSS", "lost"),
        "hold_is_the_sum_of_its_transfers versions_have_no_gap",
    ),
    (
        ENTRIES_ARE.format("true"),
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries entries_sum_to_zero ledger_sums_to_zero",
    ),
    (
        ENTRIES_ARE.format("false"),
        "balance_is_the_replay_of_transfers balance_is_the_sum_of_entries transfer_has_its_entries",
    ),
]


async def test_the_audit_names_each_invariant_that_is_broken(ledger: Ledger) -> None:
    ids = await world(ledger)
    found, rows = {}, set()
    async with ledger.database.reading() as connection:
        for damage, _ in DAMAGES:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(UNGUARDED)
            await connection.execute(damage.format(**ids, id=new_id()))
            findings = (await records.audit(connection)).findings
            await transaction.rollback()
            found[damage] = " ".join(sorted({finding.invariant for finding in findings}))
            rows |= {finding.row for finding in findings}
        views = await connection.fetch("SELECT viewname FROM pg_views WHERE viewname LIKE 'audit\\_%'")
    assert found == dict(DAMAGES)
    assert {"audit_" + name for _, names in DAMAGES for name in names.split()} >= {v["viewname"] for v in views}
    assert any(ids["open"] in row for row in rows)


# By damage, the invariant, and what a row that breaks it says was counted.
COUNTED: list[tuple[str, str, dict[str, str]]] = [
    (ENTRIES_ARE.format("true"), "entries_sum_to_zero", {"sum_micros": "SELECT sum(amount_micros) FROM transfer"}),
    (
        "UPDATE account SET available_micros = 0, frozen_micros = 1 WHERE account_id = '{rich}'",
        "balance_is_the_sum_of_entries",
        {
            "entries_available": "SELECT available_micros FROM account WHERE account_id = '{rich}'",
            "entries_frozen": "SELECT frozen_micros FROM account WHERE account_id = '{rich}'",
        },
    ),
    (
        "UPDATE account SET frozen_micros = 1 WHERE account_id = '{rich}'",
        "frozen_is_the_sum_of_open_holds",
        {
            "open_micros": "SELECT sum(amount_micros) FROM hold WHERE account_id = '{rich}' AND state = 'GRANTED'",
        },
    ),
    (
        "UPDATE transfer SET available_micros = 1, frozen_micros = 2 WHERE hold_id = '{open}' AND kind = 'SETTLEMENT'",
        "balance_is_the_replay_of_transfers",
        {
            f"replayed_{book}": f"SELECT {book}_micros FROM transfer WHERE hold_id = '{{open}}' AND kind = 'SETTLEMENT'"
            for book in ("available", "frozen")
        },
    ),
    (
        "UPDATE month_charge SET charged_micros = 1 WHERE account_id = '{rich}'",
        "month_is_the_sum_of_its_transfers",
        {"charged_by_transfers": "SELECT charged_micros FROM month_charge WHERE account_id = '{rich}'"},
    ),
    (
        "UPDATE resource_group SET capacity = 1 WHERE group_id = '{group}'",
        "group_gives_no_more_than_its_capacity",
        {"taken": "SELECT sum(count) FROM hold WHERE group_id = '{group}' AND state = 'GRANTED'"},
    ),
    (
        "UPDATE hold SET settled_micros = 1, posted_micros = 0 WHERE hold_id = '{paid}'",
        "refund_is_at_most_what_was_paid",
        {"refunded_micros": "SELECT sum(amount_micros) FROM transfer WHERE hold_id = '{paid}' AND kind = 'REFUND'"},
    ),
    (
        "UPDATE account SET version = 0 WHERE account_id = '{rich}'",
        "versions_have_no_gap",
        dict.fromkeys(("transfers", "greatest"), "SELECT version FROM account WHERE account_id = '{rich}'"),
    ),
]


@pytest.mark.parametrize(("damage", "invariant", "counted"), COUNTED, ids=[invariant for _, invariant, _ in COUNTED])
async def test_a_row_that_breaks_an_invariant_says_what_was_counted(
    ledger: Ledger, damage: str, invariant: str, counted: dict[str, str]
) -> None:
    ids = await world(ledger)
    async with ledger.database.reading() as connection:
        right = {name: await connection.fetchval(query.format(**ids)) for name, query in counted.items()}
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(UNGUARDED)
        await connection.execute(damage.format(**ids))
        findings = (await records.audit(connection)).findings
        await transaction.rollback()
    (row,) = [json.loads(finding.row) for finding in findings if finding.invariant == invariant]
    assert {name: row[name] for name in counted} == right


async def test_the_audit_says_how_many_rows_there_are_beyond_those_it_names(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world(ledger)
    monkeypatch.setattr(records, "MAX_FINDINGS", 2)
    async with ledger.database.reading() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(UNGUARDED)
        await connection.execute("UPDATE account SET version = version + 1")
        accounts = await connection.fetchval("SELECT count(*) FROM account")
        audit = await records.audit(connection)
        await transaction.rollback()
    assert [finding.invariant for finding in audit.findings] == 2 * ["versions_have_no_gap"]
    assert audit.broken == {"versions_have_no_gap": accounts}
    assert accounts > 2


async def test_the_audit_of_a_large_ledger_may_take_longer_than_other_statements(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "COMMAND_TIMEOUT_S", 2.0)
    async with AsyncExitStack() as stack:
        ledger = await open_ledger(stack, await new_database())
        async with ledger.database.reading() as connection:
            # Reads for longer than a statement may, and finds nothing.
            await connection.execute("CREATE VIEW audit_slow AS SELECT 1 AS one WHERE pg_sleep(2.5) IS NULL")
            with pytest.raises(TimeoutError):
                await connection.fetch("SELECT * FROM audit_slow")
        assert (await ledger.audit()).findings == ()
