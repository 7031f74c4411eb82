"""Who did what, on a real database: the row before the deed, the outcome after it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.message import Message
from structlog.testing import capture_logs

from saucer.billing.v1 import billing_pb2
from saucer.lib import retention
from saucer.lib.auth import Principal, Role
from saucer.lib.clock import ManualClock
from saucer.lib.ids import new_id
from saucer.lib.postgres import Database, connect, migrate
from saucer.lib.records import Recorder, list_calls
from saucer.task.v1 import task_pb2
from tests.support.servers import NewDatabase

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SOMEBODY = Principal("somebody", Role.ADMINISTRATOR, None, "token", 0.0)


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
async def database(new_database: NewDatabase, clock: ManualClock) -> AsyncIterator[Database]:
    made = await connect(await new_database(), clock)
    await migrate(made, "saucer.lib")
    yield made
    await made.pool.close()


async def calls(
    database: Database, *, account_id: str | None = None, author: str | None = None, resource_id: str | None = None
) -> list[tuple[object, ...]]:
    """Account, ids and outcome, newest first."""
    async with database.reading() as connection:
        rows = await list_calls(
            connection, account_id=account_id, author=author, resource_id=resource_id, after_call_id=None, limit=100
        )
    return [(row["account_id"], row["ids"], row["outcome"]) for row in rows]


@pytest.mark.parametrize(
    ("principal_account", "request_", "response", "account_id", "ids"),
    [
        (
            "a",
            task_pb2.StopTaskRequest(request_id="r", task_id="t"),
            task_pb2.Task(task_id="t"),
            "a",
            '{"task_id": "t"}',
        ),
        (
            None,
            task_pb2.CreateTaskRequest(request_id="r"),
            task_pb2.Task(task_id="t", account_id="b"),
            "b",
            '{"task_id": "t"}',
        ),
        (
            None,
            billing_pb2.SuspendAccountRequest(request_id="r", account_id="b"),
            billing_pb2.Account(account_id="b"),
            "b",
            "{}",
        ),
    ],
)
async def test_a_row_says_who_asks_for_what_and_then_how_it_ended(
    database: Database,
    principal_account: str | None,
    request_: Message,
    response: Message,
    account_id: str,
    ids: str,
) -> None:
    role = Role.EDITOR if principal_account else Role.ADMINISTRATOR
    principal = Principal("somebody", role, principal_account, "token", 0.0)
    recorder, call_id = Recorder(database), new_id()
    await recorder.asked(call_id, principal, "/s/M", request_)
    ((_, _, outcome),) = await calls(database)
    assert outcome is None
    with capture_logs() as lines:
        await recorder.answered(call_id, "OK", response)
    assert await calls(database) == [(account_id, ids, "OK")]
    (line,) = lines
    told = ("event", "method", "author", "role", "token_id", "account_id", "request_id")
    assert [line[name] for name in told] == ["call_made", "/s/M", "somebody", role, "token", account_id, "r"]


async def test_calls_are_found_by_account_by_author_and_by_what_they_are_about(database: Database) -> None:
    recorder = Recorder(database)
    other = Principal("another", Role.OWNER, "b", "token", 0.0)
    for principal, task_id in ((SOMEBODY, "t1"), (other, "t2"), (SOMEBODY, "t3")):
        await recorder.asked(new_id(), principal, "/s/M", task_pb2.StopTaskRequest(request_id="r", task_id=task_id))
    newest_first = [ids for _, ids, _ in await calls(database)]
    assert newest_first == ['{"task_id": "t3"}', '{"task_id": "t2"}', '{"task_id": "t1"}']
    assert [ids for _, ids, _ in await calls(database, author="somebody")] == [newest_first[0], newest_first[2]]
    assert [ids for _, ids, _ in await calls(database, account_id="b")] == [newest_first[1]]
    assert [ids for _, ids, _ in await calls(database, resource_id="t1")] == [newest_first[2]]


async def test_a_refused_call_keeps_its_outcome_and_is_no_log_line(database: Database) -> None:
    recorder, call_id = Recorder(database), new_id()
    await recorder.asked(call_id, SOMEBODY, "/s/M", task_pb2.StopTaskRequest(request_id="r", task_id="t"))
    with capture_logs() as lines:
        await recorder.answered(call_id, "FAILED_PRECONDITION")
    assert [outcome for *_, outcome in await calls(database)] == ["FAILED_PRECONDITION"]
    assert lines == []


async def test_what_was_done_stays_done_though_its_outcome_cannot_be_written(database: Database) -> None:
    recorder, call_id = Recorder(database), new_id()
    await recorder.asked(call_id, SOMEBODY, "/s/M", task_pb2.StopTaskRequest(request_id="r", task_id="t"))
    await database.pool.close()
    with capture_logs() as lines:
        await recorder.answered(call_id, "OK", task_pb2.Task(task_id="t"))
    assert [line["event"] for line in lines] == ["outcome_not_recorded"]


async def test_calls_are_forgotten_at_their_age(database: Database, clock: ManualClock) -> None:
    await Recorder(database).asked(new_id(), SOMEBODY, "/s/M", task_pb2.StopTaskRequest(request_id="r", task_id="t"))
    rules = retention.usual(30, 400)
    clock.advance(timedelta(days=400))
    await retention.forget("test", database, rules)
    assert len(await calls(database)) == 1
    clock.advance(timedelta(seconds=1))
    await retention.forget("test", database, rules)
    assert await calls(database) == []
