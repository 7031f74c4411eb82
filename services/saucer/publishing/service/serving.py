"""What reconcile.py asks and reports: who acts, what Triton is to have, and what came of it there."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from saucer.lib.postgres import Database
from saucer.publishing import domain, instances, lifecycle
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Model, Parity, UpdateAction, Version
from saucer.publishing.instances import Instance
from saucer.publishing.service.changes import change, write
from saucer.publishing.service.records import SAUCER, record
from saucer.publishing.store import deployments as store
from saucer.publishing.store import tritons as triton_store

# How long an acting replica that died keeps the others waiting.
LEASE = timedelta(seconds=10)
# Queued deployments of one spec that are looked at in one round; the others' turn comes when these have found room or
# ended. Those of another spec wait for none of them.
QUEUED_BATCH = 100

_S = DeploymentState
InstanceMove = Callable[[Deployment, Instance, datetime], Deployment]


class Serving:
    """Deployments in Triton, as the acting replica finds them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_lease(self, holder: str) -> bool:
        """Whether this replica is the one that acts on Triton, for LEASE from now on."""
        async with self._database.reading() as connection:
            return await store.take_lease(connection, holder, LEASE)

    async def release_lease(self, holder: str) -> None:
        """Lets another replica act at once."""
        async with self._database.reading() as connection:
            await store.release_lease(connection, holder)

    async def wanted(self) -> tuple[list[Deployment], datetime]:
        """What Triton is to have: the placed ones, then those that have been queued longest; and the time."""
        async with self._database.transaction() as tx:
            placed = await store.in_states(tx.connection, domain.PLACED)
            queued = await store.queued(tx.connection, QUEUED_BATCH)
            return [*placed, *queued], tx.now

    async def placed(self) -> list[Deployment]:
        """Every deployment of which Triton may have something."""
        async with self._database.reading() as connection:
            return await store.in_states(connection, domain.PLACED)

    async def model_of(self, version: Version) -> Model:
        """What it serves."""
        async with self._database.reading() as connection:
            model = await store.get_model(connection, version.model_id)
        assert model is not None, "it was there when the deployment was made, and models are not removed"
        return model

    async def place(
        self, deployment: Deployment, holder: str, leaving: Collection[str], failing: Collection[str] = ()
    ) -> bool:
        """Gives it the instances that it lacks where there is room, and takes away those that others replace.

        Args:
            leaving: Tritons that are drained, have not answered for a while, or are of another spec; or whose
                repository fails, where it does not serve there.
            failing: all whose repository has failed for a while.

        False: it lacks some still, since there is no room; or the holder acts no more.
        """
        async with self._database.transaction() as tx:
            if not await store.lock_lease(tx.connection, holder):
                return False
            present = await store.get(tx.connection, deployment.deployment_id, lock=True)
            assert present is not None, "deployments are not removed"
            if present.state is not _S.QUEUED and present.state not in domain.MOVABLE:
                return True
            form = present.form
            room = await triton_store.room(tx.connection, form.region_id, form.spec_id)
            refusing = await triton_store.refusing(tx.connection)
            awaited = lifecycle.awaited(present, leaving, tx.now)
            plan = instances.plan(present.own_instances, form.replicas, leaving, room, awaited, refusing, failing)
            placed = await write(tx, present, lifecycle.place(present, plan, tx.now))
            going = [item.triton_id for item in present.own_instances if item.stuck or item.triton_id in leaving]
            # Of those that go, some may have been replaced before.
            replaced = max(0, len(present.own_instances) - form.replicas)
            for source, target in zip(going[replaced:], plan.added, strict=False):
                detail = f"From {source} to {target}."
                await record(tx, present, UpdateAction.MOVED, author=SAUCER, detail=detail)
            staying = [item for item in placed.own_instances if not item.stuck and item.triton_id not in leaving]
            return len(staying) >= form.replicas

    async def activate(self, deployment: Deployment, instance: Instance, parity: Parity, probe_key: str) -> None:
        """An instance is loaded, and its replay agreed: it serves."""
        await self._report(
            deployment, instance, domain.MOVABLE, lambda at, it, now: lifecycle.activate(at, it, parity, probe_key, now)
        )

    async def rule_out(
        self, deployment: Deployment, instance: Instance, reason: EndReason, message: str, parity: Parity | None = None
    ) -> None:
        """An instance of a deployment that has never served cannot be served."""
        await self._report(
            deployment,
            instance,
            domain.MOVABLE,
            lambda at, it, now: lifecycle.rule_out(at, it, reason, message, parity, now),
        )

    async def count(self, deployment: Deployment, instance: Instance, attended: Callable[[], timedelta]) -> None:
        """A good probe of an instance. `attended` says for how long this process has been there; it is asked last."""
        await self._report(
            deployment, instance, domain.SERVED, lambda at, it, now: lifecycle.count(at, it, now, attended())
        )

    async def used(self, deployment_ids: Collection[str]) -> None:
        """Requests have come for these."""
        if deployment_ids:
            async with self._database.transaction() as tx:
                await store.mark_used(tx.connection, deployment_ids, tx.now)

    async def lose(self, deployment: Deployment, instance: Instance, message: str) -> None:
        """A probe of an instance failed."""
        await self._report(
            deployment, instance, domain.SERVED, lambda at, it, now: lifecycle.lose(at, it, message, now)
        )

    async def recover(self, deployment: Deployment, instance: Instance) -> None:
        """A probe of a lost instance is good again."""
        await self._report(deployment, instance, domain.SERVED, lifecycle.recover)

    async def put_off(self, deployment: Deployment, instance: Instance, message: str) -> None:
        """An attempt failed: the next one comes after a pause."""
        await self._report(
            deployment, instance, domain.PLACED, lambda at, it, now: lifecycle.put_off(at, it, message, now)
        )

    async def note(self, deployment: Deployment, instance: Instance, message: str) -> None:
        """Something keeps an instance from being put there, or brought back."""
        await self._report(deployment, instance, domain.MOVABLE, lambda at, it, _: lifecycle.note(at, it, message))

    async def refuse_load(self, deployment: Deployment, instance: Instance, message: str) -> None:
        """A Triton does not serve the model of an instance of the version that serves, or will."""
        await self._report(
            deployment, instance, domain.MOVABLE, lambda at, it, now: lifecycle.refuse_load(at, it, message, now)
        )

    async def unloaded(self, deployment: Deployment, instance: Instance) -> None:
        """STOPPING: a Triton has nothing of it any more."""
        await self._report(deployment, instance, {_S.STOPPING}, lifecycle.unloaded)

    async def _report(
        self, deployment: Deployment, instance: Instance, states: Collection[DeploymentState], move: InstanceMove
    ) -> None:
        """Moves a start, unless the instance that was looked at is not wanted any more, or has changed meanwhile."""

        def of_this_instance(present: Deployment, now: datetime) -> Deployment:
            for item in present.instances:
                if (item.key, item.since) == (instance.key, instance.since):
                    return move(present, item, now)
            return present

        await change(self._database, deployment.deployment_id, deployment.start_number, states, of_this_instance)
