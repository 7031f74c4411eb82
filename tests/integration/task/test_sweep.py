"""What the sweep does to tasks that wait, whatever billing answers about one of them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from unittest.mock import AsyncMock, Mock

import pytest

from saucer.lib.clock import ManualClock
from saucer.lib.errors import DomainError, UnavailableError
from saucer.lib.ids import new_id
from saucer.lib.postgres import Database, connect, migrate
from saucer.task import service, store
from saucer.task.domain import EndReason, Task, TaskState
from saucer.task.peers import Peers
from saucer.task.service import Tasks
from saucer.task.v1 import task_pb2
from tests.integration.task.world import playing
from tests.support.servers import NewDatabase
from tests.support.services import ServiceRunner
from tests.unit.task import examples


@pytest.fixture
async def database(new_database: NewDatabase) -> AsyncIterator[Database]:
    database = await connect(await new_database(), ManualClock(datetime.now(UTC)))
    await migrate(database, "saucer.lib", "saucer.task")
    yield database
    database.pool.terminate()


async def put(database: Database, state: TaskState, waited: timedelta, **changes: object) -> Task:
    since = datetime.now(UTC) - waited
    made = replace(examples.task(), task_id=new_id(), account_id=new_id(), request_id=new_id(), state=state)
    made = replace(made, created_at=since, updated_at=since)
    made = replace(made, **changes)  # type: ignore[arg-type] # whatever a test sets
    async with database.transaction() as tx:
        await store.insert(tx.connection, made)
    return made


async def test_a_start_whose_spec_is_gone_is_refused_and_holds_up_no_other(run_service: ServiceRunner) -> None:
    url = await run_service.new_database()
    async with playing(run_service, database_url=url) as world:
        account_id, _ = await world.account(0)
        database = await connect(url, ManualClock(datetime.now(UTC)))
        gone = examples.form(spec_id="gone")
        pending = await put(database, TaskState.PENDING, 2 * service.ASK_AGAIN_AFTER, form=gone, account_id=account_id)
        waiting = await put(database, TaskState.WAITING, 2 * service.WAITING_LIMIT)
        database.pool.terminate()
        await world.reaches(waiting.task_id, task_pb2.TASK_STATE_FAILED)
        refused = await world.reaches(pending.task_id, task_pb2.TASK_STATE_REFUSED)
        assert "gone" in refused.error_message


@pytest.mark.parametrize("fault", [DomainError("INTERNAL", "fault"), UnavailableError("UNAVAILABLE", "silent")])
async def test_a_fault_of_billing_leaves_a_start_pending_and_holds_up_no_other(
    database: Database, fault: DomainError
) -> None:
    tasks = Tasks(database, Mock(spec=Peers, hold=AsyncMock(side_effect=fault)), {})
    first, second = [await put(database, TaskState.PENDING, n * service.ASK_AGAIN_AFTER) for n in (3, 2)]
    waiting = await put(database, TaskState.WAITING, 2 * service.WAITING_LIMIT)
    unscored = await put(database, TaskState.EVALUATING, 2 * service.EVALUATING_LIMIT, end_reason=EndReason.COMPLETED)
    await tasks.sweep_once()

    async def state(task: Task) -> TaskState:
        async with database.reading() as connection:
            found = await store.get(connection, task.task_id)
        assert found is not None
        return found.state

    assert [await state(task) for task in (first, second)] == [TaskState.PENDING] * 2
    assert await state(waiting) is TaskState.FAILED
    assert await state(unscored) is TaskState.SUCCEEDED
