"""What the alert HoldsWithoutWork compares holds with, read from a real database."""

from dataclasses import replace
from datetime import UTC, datetime

from saucer.lib.clock import ManualClock
from saucer.lib.gauges import read_once
from saucer.lib.ids import new_id
from saucer.lib.postgres import connect, migrate
from saucer.publishing import lifecycle, watching
from saucer.publishing.domain import AT_REST, HOLDING, SERVED, DeploymentState
from saucer.publishing.store import deployments as store
from tests.support.servers import NewDatabase
from tests.unit.publishing.examples import EVALUATION, FORM, NOW


async def test_a_deployment_that_waits_for_its_hold_or_has_given_it_back_hides_no_hold(
    new_database: NewDatabase,
) -> None:
    database = await connect(await new_database(), ManualClock(datetime(2026, 11, 24, tzinfo=UTC)))
    await migrate(database, "saucer.lib", "saucer.publishing")
    async with database.transaction() as tx:
        for state in set(DeploymentState) - SERVED:
            form, evaluation = replace(FORM, model_id=new_id()), replace(EVALUATION, evaluation_id=new_id())
            made = lifecycle.create(new_id(), new_id(), new_id(), form, evaluation, ("cup",), (("cup", 0.3),), NOW)
            ended_at = NOW if state in AT_REST else None
            await store.insert(tx.connection, replace(made, state=state, ended_at=ended_at))
    await read_once(database, [each for each in watching.READINGS if each.gauge is watching.open_starts])
    # QUEUED, DEPLOYING and STOPPING.
    assert watching.open_starts.labels("DEPLOYMENT")._value.get() == 3
    assert SERVED <= HOLDING
    database.pool.terminate()
