"""What reconcile.py asks and reports: who acts, what Triton is to have, and what came of it there."""

from collections.abc import Collection
from datetime import datetime, timedelta

from saucer.lib.postgres import Database
from saucer.publishing import domain, store, triton_store
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Model, Parity, Version
from saucer.publishing.service.changes import Move, change, write

# How long an acting replica that died keeps the others waiting.
LEASE = timedelta(seconds=10)
# Queued deployments that are looked at in one round; the others' turn comes when these have found room or ended.
QUEUED_BATCH = 100

_S = DeploymentState


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
            queued = await store.in_states(tx.connection, [_S.QUEUED], limit=QUEUED_BATCH)
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

    async def deploy(self, deployment: Deployment, holder: str, dead: Collection[str] = ()) -> bool:
        """QUEUED to DEPLOYING, if there is room and the holder still acts. `dead`: Tritons that do not answer."""
        async with self._database.transaction() as tx:
            if not await store.lock_lease(tx.connection, holder):
                return False
            present = await store.get(tx.connection, deployment.deployment_id, lock=True)
            if present is None or present.state is not _S.QUEUED:
                return False
            form = present.form
            triton = await triton_store.with_room(tx.connection, form.region_id, form.spec_id, dead)
            if triton is None:
                return False
            await write(tx, present, domain.deploy(present, triton.triton_id, tx.now))
            return True

    async def activate(self, deployment: Deployment, parity: Parity, probe_key: str) -> None:
        """DEPLOYING to ACTIVE: the replay agreed."""
        await self._report(deployment, {_S.DEPLOYING}, lambda at, now: domain.activate(at, parity, probe_key, now))

    async def fail(self, deployment: Deployment, reason: EndReason, message: str, parity: Parity | None = None) -> None:
        """DEPLOYING or DEGRADED to FAILED: it cannot be served."""
        states = {_S.DEPLOYING, _S.DEGRADED}
        await self._report(deployment, states, lambda at, now: domain.fail(at, reason, message, now, parity))

    async def count(self, deployment: Deployment) -> None:
        """A good probe of an ACTIVE deployment."""
        await self._report(deployment, {_S.ACTIVE}, domain.count)

    async def used(self, deployment_ids: Collection[str]) -> None:
        """Requests have come for these."""
        if deployment_ids:
            async with self._database.transaction() as tx:
                await store.mark_used(tx.connection, deployment_ids, tx.now)

    async def degrade(self, deployment: Deployment, message: str) -> None:
        """ACTIVE to DEGRADED: a probe failed."""
        await self._report(deployment, {_S.ACTIVE}, lambda at, now: domain.degrade(at, message, now))

    async def recover(self, deployment: Deployment) -> None:
        """DEGRADED to ACTIVE: a probe is good again."""
        await self._report(deployment, {_S.DEGRADED}, domain.recover)

    async def put_off(self, deployment: Deployment, message: str) -> None:
        """An attempt failed: the next one comes after a pause."""
        states = {_S.DEPLOYING, _S.DEGRADED, _S.STOPPING}
        await self._report(deployment, states, lambda at, now: domain.retry_after(at, message, now))

    async def stopped(self, deployment: Deployment) -> None:
        """STOPPING to STOPPED: Triton has nothing of it."""
        await self._report(deployment, {_S.STOPPING}, domain.stopped)

    async def _report(self, deployment: Deployment, states: Collection[DeploymentState], move: Move) -> None:
        def of_this_version(present: Deployment, now: datetime) -> Deployment:
            return move(present, now) if _same(present, deployment) else present

        await change(self._database, deployment.deployment_id, deployment.start_number, states, of_this_version)


def _same(present: Deployment, reported: Deployment) -> bool:
    """Whether what serves is still what was looked at: not another version, nor elsewhere."""
    return (present.version.number, present.triton_id) == (reported.version.number, reported.triton_id)
