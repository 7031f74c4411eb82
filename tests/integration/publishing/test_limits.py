"""Every state that waits has a limit and a typed end, on a clock that the test moves; and one replica acts."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import grpc
import pytest

from saucer.lib.auth import Role
from saucer.lib.clock import ManualClock
from saucer.lib.grpc_client import TokenFile
from saucer.lib.ids import new_id
from saucer.lib.postgres import Database, connect, migrate
from saucer.publishing import domain, service, store
from saucer.publishing.domain import Deployment, DeploymentState, EndReason
from saucer.publishing.peers import Peers
from saucer.publishing.service import Deployments, Offer
from tests.support.servers import NewDatabase
from tests.support.services import Tokens
from tests.unit.publishing.examples import EVALUATION, FORM, NOW, PARITY

# Nobody listens there: a billing that does not answer.
SILENT = "127.0.0.1:1"
MOMENT = timedelta(seconds=1)


@dataclass
class World:
    database: Database
    clock: ManualClock
    deployments: Deployments

    async def put(self, move: Callable[[Deployment], Deployment]) -> str:
        """A deployment in the state that `move` gives it."""
        form, evaluation = replace(FORM, model_id=new_id()), replace(EVALUATION, evaluation_id=new_id())
        made = domain.create(new_id(), new_id(), new_id(), form, evaluation, ("cup",), (("cup", 0.3),), self.clock.time)
        async with self.database.transaction() as tx:
            await tx.connection.execute("TRUNCATE deployment CASCADE")
            await store.insert(tx.connection, made)
            present = await store.get(tx.connection, made.deployment_id)
            assert present is not None
            moved = move(present)
            if moved != present:
                await store.update(tx.connection, moved)
        return made.deployment_id

    async def get(self, deployment_id: str) -> Deployment:
        async with self.database.reading() as connection:
            found = await store.get(connection, deployment_id)
        assert found is not None
        return found

    async def events(self) -> list[str]:
        async with self.database.reading() as connection:
            rows = await connection.fetch("SELECT type FROM outbox ORDER BY position")
        return [row["type"].rpartition(".")[2] for row in rows]


@pytest.fixture
async def world(new_database: NewDatabase, tokens: Tokens) -> AsyncIterator[World]:
    clock = ManualClock(NOW)
    database = await connect(await new_database(), clock, pool_size=2)
    await migrate(database, "saucer.lib", "saucer.publishing")
    async with grpc.aio.insecure_channel(SILENT) as channel:
        peers = Peers(channel, TokenFile(tokens.file(Role.SERVICE)))
        yield World(database, clock, Deployments(database, peers, Offer("local", "cpu-2", 1)))
    await database.pool.close()


def stay(deployment: Deployment) -> Deployment:
    return deployment


def queue(deployment: Deployment) -> Deployment:
    return domain.queue(deployment, 7_200_000, 3_600_000, "EUR", NOW)


def deploy(deployment: Deployment) -> Deployment:
    return domain.retry_after(domain.deploy(queue(deployment), NOW), "no such graph", NOW)


def activate(deployment: Deployment) -> Deployment:
    return domain.activate(domain.deploy(queue(deployment), NOW), PARITY, "system/a/images/0", NOW)


def degrade(deployment: Deployment) -> Deployment:
    return domain.degrade(activate(deployment), "Triton does not answer", NOW)


def stopping(deployment: Deployment) -> Deployment:
    return domain.stop(activate(deployment), EndReason.STOPPED_BY_USER, NOW)


@pytest.mark.parametrize(
    ("move", "limit", "state", "reason", "message"),
    [
        (stay, service.PENDING_LIMIT, "FAILED", "WAITED_TOO_LONG", "Billing did not answer"),
        (queue, service.QUEUED_LIMIT, "FAILED", "WAITED_TOO_LONG", "No Triton had room"),
        (deploy, service.DEPLOYING_LIMIT, "FAILED", "WAITED_TOO_LONG", "not online in time: no such graph"),
        (degrade, service.DEGRADED_LIMIT, "FAILED", "WAITED_TOO_LONG", "in time: Triton does not answer"),
        (stopping, service.STOPPING_LIMIT, "STOPPED", "STOPPED_BY_USER", ""),
    ],
)
async def test_what_waits_ends_at_its_limit_and_not_before(
    world: World,
    move: Callable[[Deployment], Deployment],
    limit: timedelta,
    state: str,
    reason: str,
    message: str,
) -> None:
    deployment_id = await world.put(move)
    before = await world.get(deployment_id)
    world.clock.advance(limit - MOMENT)
    await world.deployments.sweep_once(limits=True)
    assert await world.get(deployment_id) == before
    world.clock.advance(2 * MOMENT)
    await world.deployments.sweep_once(limits=True)
    ended = await world.get(deployment_id)
    assert (ended.state, ended.end_reason) == (DeploymentState(state), EndReason(reason))
    assert message in ended.error_message
    assert await world.events() == ["DeploymentEnded"]


@pytest.mark.parametrize("move", [queue, deploy, degrade])
async def test_a_process_that_has_just_begun_gives_triton_a_chance_first(
    world: World, move: Callable[[Deployment], Deployment]
) -> None:
    deployment_id = await world.put(move)
    before = await world.get(deployment_id)
    world.clock.advance(timedelta(days=3))
    await world.deployments.sweep_once(limits=False)
    assert await world.get(deployment_id) == before


async def test_one_replica_acts_until_it_gives_the_lease_back(world: World) -> None:
    deployments = world.deployments
    deployment_id = await world.put(queue)
    assert await deployments.serving.take_lease("first")
    assert not await deployments.serving.take_lease("second")
    assert not await deployments.serving.deploy(await world.get(deployment_id), "second")
    assert await deployments.serving.take_lease("first")
    await deployments.serving.release_lease("first")
    assert await deployments.serving.take_lease("second")
    assert not await deployments.serving.deploy(await world.get(deployment_id), "first")
    assert await deployments.serving.deploy(await world.get(deployment_id), "second")
    assert (await world.get(deployment_id)).state is DeploymentState.DEPLOYING


async def test_what_an_action_reports_late_changes_nothing(world: World) -> None:
    deployment_id = await world.put(activate)
    snapshot = await world.get(deployment_id)
    await world.deployments.obey_stop(deployment_id, 1, EndReason.ARREARS)
    before = await world.get(deployment_id)
    world.clock.advance(MOMENT)
    for report in (
        world.deployments.serving.count(snapshot),
        world.deployments.serving.degrade(snapshot, "late"),
        world.deployments.serving.recover(snapshot),
        world.deployments.serving.activate(snapshot, PARITY, "late"),
        world.deployments.serving.fail(snapshot, EndReason.FAILED, "late"),
    ):
        await report
    assert await world.get(deployment_id) == before
    assert await world.events() == ["DeploymentStopRequested"]
