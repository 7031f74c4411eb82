"""What the alert HoldsWithoutWork compares holds with, read from a real database."""

from dataclasses import replace
from datetime import UTC, datetime

from saucer.lib.clock import ManualClock
from saucer.lib.gauges import read_once
from saucer.lib.ids import new_id
from saucer.lib.postgres import connect, migrate
from saucer.task import store, watching
from saucer.task.domain import TaskState
from tests.support.servers import NewDatabase
from tests.unit.task.examples import NOW, task


async def test_a_task_that_waits_for_its_hold_or_has_given_it_back_hides_no_hold(new_database: NewDatabase) -> None:
    database = await connect(await new_database(), ManualClock(datetime(2026, 11, 24, tzinfo=UTC)))
    await migrate(database, "saucer.lib", "saucer.task")
    async with database.transaction() as tx:
        for state in TaskState:
            made = replace(task(), task_id=new_id(), account_id=new_id(), request_id=new_id(), state=state)
            await store.insert(tx.connection, replace(made, ended_at=NOW if made.at_rest else None))
    await read_once(database, watching.READINGS)
    # QUEUED and TRAINING.
    assert watching.open_starts.labels("TASK")._value.get() == 2
    database.pool.terminate()
