"""Every state that waits has a limit and a typed end, on a clock that the test moves; one replica acts; Tritons go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.clock import ManualClock
from saucer.lib.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from saucer.lib.grpc_client import TokenFile
from saucer.lib.ids import new_id
from saucer.lib.postgres import Database, connect, migrate
from saucer.publishing import lifecycle, service
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Triton
from saucer.publishing.instances import LEAVE_ATTEMPTS, Instance, InstanceState, Plan
from saucer.publishing.main import register_own
from saucer.publishing.peers import Peers
from saucer.publishing.service import Deployments
from saucer.publishing.service import serving as serving_service
from saucer.publishing.store import deployments as store
from saucer.publishing.store import monitoring as monitoring_store
from saucer.publishing.store import tritons as triton_store
from saucer.publishing.traffic import Piece
from tests.support.servers import NewDatabase
from tests.support.services import Tokens
from tests.unit.publishing.examples import EVALUATION, FORM, NOW, PARITY, at, attended, beside

# Nobody listens there: a billing that does not answer.
SILENT = "127.0.0.1:1"
MOMENT = timedelta(seconds=1)
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
LOCAL = Triton("local", "127.0.0.1:1", "/nowhere", "local", "cpu-2", 1, 1)
APART = replace(LOCAL, triton_id="second", address="127.0.0.1:2", repository="/elsewhere")


@dataclass
class World:
    database: Database
    clock: ManualClock
    deployments: Deployments

    async def put(self, move: Callable[[Deployment], Deployment], *, alone: bool = True) -> str:
        """A deployment in the state that `move` gives it; if alone, in place of all others."""
        form, evaluation = replace(FORM, model_id=new_id()), replace(EVALUATION, evaluation_id=new_id())
        made = lifecycle.create(
            new_id(), new_id(), new_id(), form, evaluation, ("cup",), (("cup", 0.3),), self.clock.time
        )
        async with self.database.transaction() as tx:
            if alone:
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
    database = await connect(await new_database(), clock, pool_size=4)
    await migrate(database, "saucer.lib", "saucer.publishing")
    async with grpc.aio.insecure_channel(SILENT) as channel:
        peers = Peers(channel, TokenFile(tokens.file(Role.SERVICE)))
        deployments = Deployments(database, peers)
        await deployments.tritons.register(LOCAL)
        yield World(database, clock, deployments)
    await database.pool.close()


def stay(deployment: Deployment) -> Deployment:
    return deployment


def queue(deployment: Deployment) -> Deployment:
    return lifecycle.queue(deployment, 7_200_000, 3_600_000, "EUR", NOW)


def queue_elsewhere(deployment: Deployment) -> Deployment:
    return queue(replace(deployment, form=replace(deployment.form, spec_id="gpu-1")))


def place(deployment: Deployment) -> Deployment:
    return lifecycle.place(queue(deployment), Plan(("local",)), NOW)


def deploy(deployment: Deployment) -> Deployment:
    placed = place(deployment)
    return lifecycle.put_off(placed, at(placed), "no such graph", NOW)


def refuse(deployment: Deployment) -> Deployment:
    placed = place(deployment)
    for _ in range(LEAVE_ATTEMPTS):
        placed = lifecycle.refuse_load(placed, at(placed), "no such graph", NOW)
    return placed


def activate(deployment: Deployment) -> Deployment:
    placed = place(deployment)
    return lifecycle.activate(placed, at(placed), PARITY, "system/a/images/0", NOW)


def degrade(deployment: Deployment) -> Deployment:
    active = activate(deployment)
    return lifecycle.lose(active, at(active), "Triton does not answer", NOW)


def stopping(deployment: Deployment) -> Deployment:
    return lifecycle.stop(activate(deployment), EndReason.STOPPED_BY_USER, NOW)


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
    await deployments.tritons.report("local", live=True)
    deployment_id = await world.put(queue)
    assert await deployments.serving.take_lease("first")
    assert not await deployments.serving.take_lease("second")
    assert not await deployments.serving.place(await world.get(deployment_id), "second", ())
    assert await deployments.serving.take_lease("first")
    await deployments.serving.release_lease("first")
    assert await deployments.serving.take_lease("second")
    assert not await deployments.serving.place(await world.get(deployment_id), "first", ())
    assert await deployments.serving.place(await world.get(deployment_id), "second", ())
    assert (await world.get(deployment_id)).state is DeploymentState.DEPLOYING


async def test_a_triton_is_unregistered_once_it_has_nothing_and_nothing_is_about_to_be_placed_there(
    world: World,
) -> None:
    tritons = world.deployments.tritons
    await tritons.report("local", live=True)
    queued = await world.get(await world.put(queue))
    async with world.database.transaction() as tx:
        assert await triton_store.room(tx.connection, "local", "cpu-2") == {"local": 1}
        unregistering = asyncio.create_task(tritons.unregister("local", ()))
        assert not (await asyncio.wait({unregistering}, timeout=0.5))[0]
        await store.update(tx.connection, lifecycle.place(queued, Plan(("local",)), NOW))
    with pytest.raises(FailedPreconditionError, match=r"are on local: 1\. Drain it first") as refusal:
        await unregistering
    assert refusal.value.reason == "TRITON_IN_USE"
    await world.put(stay)
    with pytest.raises(FailedPreconditionError, match=r"nobody wants any more: 1\. Unregister it once") as refusal:
        await tritons.unregister("local", ["deployment_1"])
    assert refusal.value.reason == "TRITON_IN_USE"
    assert (await tritons.unregister("local", ())).triton_id == "local"
    assert await tritons.list_tritons() == []
    with pytest.raises(NotFoundError):
        await tritons.unregister("local", ())


async def test_a_triton_takes_something_once_it_has_answered_at_its_present_address(world: World) -> None:
    deployments = world.deployments
    deployment_id = await world.put(queue)
    await deployments.serving.take_lease("first")
    moved = replace(LOCAL, address="127.0.0.1:2")
    assert not await deployments.serving.place(await world.get(deployment_id), "first", ())
    await deployments.tritons.report("local", live=True)
    assert not (await deployments.tritons.register(moved)).live
    assert not await deployments.serving.place(await world.get(deployment_id), "first", ())
    await deployments.tritons.report("local", live=True)
    assert (await deployments.tritons.register(moved)).live
    assert await deployments.serving.place(await world.get(deployment_id), "first", ())


@pytest.mark.parametrize(
    "shared",
    [
        {"address": LOCAL.address},
        {"repository": "/nowhere"},
        {"repository": "/nowhere/"},
        {"repository": "/elsewhere/../nowhere/within"},
        {"repository": "/"},
    ],
)
async def test_a_triton_with_the_address_or_files_of_another_is_refused_and_publishing_starts_without_it(
    world: World, shared: dict[str, str]
) -> None:
    tritons = world.deployments.tritons
    twin = replace(APART, **shared)  # type: ignore[arg-type] # one dict for all types
    with pytest.raises(InvalidArgumentError, match="unregister local first") as refusal:
        await tritons.register(twin)
    assert refusal.value.reason == "TRITON_NOT_APART"
    await register_own(world.deployments, twin)
    assert await tritons.list_tritons() == [(LOCAL, 0)]
    assert (await tritons.register(replace(LOCAL, room=2))).room == 2, "it may be registered again itself"


async def test_of_two_tritons_with_one_repository_that_are_registered_at_once_one_is_refused(world: World) -> None:
    await world.deployments.tritons.unregister("local", ())
    twins = LOCAL, replace(APART, repository=LOCAL.repository)
    results = await asyncio.gather(*map(world.deployments.tritons.register, twins), return_exceptions=True)
    assert [type(result) for result in results if result not in twins] == [InvalidArgumentError]
    assert len(await world.deployments.tritons.list_tritons()) == 1


async def test_what_waits_for_a_full_spec_keeps_no_deployment_of_another_from_its_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_service, "QUEUED_BATCH", 2)
    # Equal times: the first by id are those that have waited longest.
    waiting = sorted([await world.put(queue, alone=False) for _ in range(3)])
    last = await world.put(queue_elsewhere, alone=False)
    found, _ = await world.deployments.serving.wanted()
    assert [item.deployment_id for item in found] == sorted([*waiting[:2], last])


async def test_where_others_are_stuck_nothing_is_placed_while_another_triton_has_room(world: World) -> None:
    deployments = world.deployments
    await deployments.serving.take_lease("first")
    for triton in (replace(LOCAL, room=8), APART):
        await deployments.tritons.register(triton)
        await deployments.tritons.report(triton.triton_id, live=True)
    queued = await world.put(queue)
    await world.put(refuse, alone=False)
    for wanted in ("second", "local"):
        assert await deployments.serving.place(await world.get(queued), "first", ())
        assert [item.triton_id for item in (await world.get(queued)).instances] == [wanted]
        queued = await world.put(queue, alone=False)


async def test_what_happens_again_in_one_start_is_one_event_with_a_count(world: World) -> None:
    deployment_id, serving = await world.put(activate), world.deployments.serving
    for _ in range(3):
        world.clock.advance(MOMENT)
        found = await world.get(deployment_id)
        await serving.lose(found, at(found), "it does not answer")
        found = await world.get(deployment_id)
        await serving.recover(found, at(found))
    async with world.database.reading() as connection:
        events = await monitoring_store.list_events(connection, deployment_id, 10)
    assert {(event.kind, event.message, event.count) for event in events} == {
        ("DEGRADED", "it does not answer", 3),
        ("ACTIVE", "", 3),
    }
    assert {(event.first_at, event.last_at) for event in events} == {(NOW + MOMENT, NOW + 3 * MOMENT)}


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (FIRST, LAST, 0),  # cut at its end, long before
        (None, FIRST, 0),
        (LAST, None, 0),
        (LAST, LAST, 0),
        (FIRST, None, 0),
        (NOW, LAST, 1),
        (None, None, 1),
    ],
)
async def test_the_first_and_the_last_time_that_there_is_may_be_asked_for(
    world: World, start: datetime | None, end: datetime | None, found: int
) -> None:
    deployment_id, monitoring = await world.put(activate), world.deployments.monitoring
    account_id = (await world.get(deployment_id)).account_id
    set_current(Principal("someone", Role.VIEWER, account_id, "token", float("inf")))
    await monitoring.store_pieces("replica", [Piece(deployment_id, 1, NOW, requests=1)])
    assert len(await monitoring.list_pieces(deployment_id, start, end)) == found


async def test_what_an_action_reports_late_changes_nothing(world: World) -> None:
    deployment_id = await world.put(activate)
    snapshot = await world.get(deployment_id)
    await world.deployments.obey_stop(deployment_id, 1, EndReason.ARREARS)
    before = await world.get(deployment_id)
    world.clock.advance(MOMENT)
    serving, instance = world.deployments.serving, at(snapshot)
    for report in (
        serving.count(snapshot, instance, attended),
        serving.lose(snapshot, instance, "late"),
        serving.recover(snapshot, instance),
        serving.activate(snapshot, instance, PARITY, "late"),
        serving.refuse_load(snapshot, instance, "late"),
        serving.rule_out(snapshot, instance, EndReason.FAILED, "late"),
    ):
        await report
    assert await world.get(deployment_id) == before
    assert await world.events() == ["DeploymentStopRequested"]


async def test_what_an_action_reports_of_an_instance_that_has_changed_meanwhile_changes_nothing(world: World) -> None:
    deployment_id = await world.put(activate)
    snapshot, serving = await world.get(deployment_id), world.deployments.serving
    world.clock.advance(MOMENT)
    await serving.lose(snapshot, at(snapshot), "it does not answer")
    lost = await world.get(deployment_id)
    world.clock.advance(MOMENT)
    await serving.count(snapshot, at(snapshot), attended)
    assert await world.get(deployment_id) == lost


async def test_reports_of_several_instances_at_once_count_each_second_of_each_once(world: World) -> None:
    def two(deployment: Deployment) -> Deployment:
        form = replace(deployment.form, replicas=2)
        placed = lifecycle.place(queue(replace(deployment, form=form)), Plan(("first", "second")), NOW)
        for triton_id in ("first", "second"):
            placed = lifecycle.activate(placed, at(placed, triton_id), PARITY, "system/a/images/0", NOW)
        return placed

    deployment_id, serving = await world.put(two), world.deployments.serving
    for _ in range(30):
        world.clock.advance(MOMENT)
        found = await world.get(deployment_id)
        reports = [serving.count(found, instance, attended) for instance in found.instances]
        await asyncio.gather(*reports, serving.used({deployment_id}))
    counted = await world.get(deployment_id)
    assert (counted.charged_ms, len(counted.instances)) == (30_000, 2)


async def test_what_former_code_writes_of_its_one_triton_is_an_instance(world: World) -> None:
    deployment_id = await world.put(activate)
    probed_at = NOW + MOMENT

    async def former(sql: str, *values: object) -> Deployment:
        async with world.database.transaction() as tx:
            await tx.connection.execute(f"UPDATE deployment SET {sql} WHERE deployment_id = $1", deployment_id, *values)
        return await world.get(deployment_id)

    async with world.database.transaction() as tx:
        await tx.connection.execute("DELETE FROM instance")
    adopted = await former("triton_id = triton_id")
    assert adopted.instances == (Instance(1, "local", InstanceState.SERVING, NOW, NOW),)
    counted = await former("probed_at = $2, charged_ms = 1000", probed_at)
    assert (counted.probed_at, counted.charged_ms) == (probed_at, 1000)
    candidate = '{"version": {"number": 2, "model_id": "m", "evaluation_id": "e", "classes": [], "thresholds": []'
    candidate += ', "parity": null, "probe_key": ""}, "triton_id": "%s", "percent": 0, "ready": false'
    candidate += ', "proposed_at": "2026-11-23T00:00:00+00:00"}'
    proposed = await former("candidate = $2", candidate % "local")
    assert beside(proposed).state is InstanceState.LOADING
    promoted = await former("candidate = NULL, version_number = 2")
    assert promoted.instances == (Instance(2, "local", InstanceState.SERVING, NOW, probed_at),)
    # What it moves is a candidate of the same number for it.
    moving = await former("candidate = $2", candidate % "other")
    assert moving.candidate is None
    assert {item.triton_id for item in moving.own_instances} == {"local", "other"}
    degraded = await former(
        "state = 'DEGRADED', charge_status = 'NOT_BILLING', probed_at = NULL, error_message = 'dead', candidate = NULL"
    )
    assert [(item.state, item.message) for item in degraded.instances] == [(InstanceState.LOST, "dead")]
    stopped = await former("state = 'STOPPED', triton_id = '', ended_at = moved_at, end_reason = 'STOPPED_BY_USER'")
    assert stopped.instances == ()
