"""The use cases of deployments, by what they are about, and the only place that opens their transactions."""

import time
from datetime import datetime, timedelta

import structlog

from saucer.lib import deleted_models
from saucer.lib.auth import current
from saucer.lib.errors import FailedPreconditionError
from saucer.lib.postgres import Database
from saucer.publishing import lifecycle
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Evaluation, Model, UpdateAction
from saucer.publishing.peers import Peers
from saucer.publishing.service.changes import change, owned, shown, write
from saucer.publishing.service.gates import Gates
from saucer.publishing.service.monitoring import Monitoring
from saucer.publishing.service.records import is_retry, record
from saucer.publishing.service.serving import Serving
from saucer.publishing.service.starts import PENDING_LIMIT, Starts
from saucer.publishing.service.tritons import Tritons
from saucer.publishing.service.versions import Versions
from saucer.publishing.store import deployments as store
from saucer.publishing.store import versions as version_store
from saucer.publishing.v1 import events_pb2

__all__ = ["PENDING_LIMIT", "Deployments"]

# A deployment that is PENDING for longer asks billing again.
ASK_AGAIN_AFTER = timedelta(seconds=2)
# States that wait, how long at most, and how that ends: all WAITED_TOO_LONG, but STOPPING, which is STOPPED then; what
# Triton may still have of it is cleared away later, as an orphan.
WAITING_LIMIT = timedelta(days=7)
QUEUED_LIMIT = timedelta(hours=1)
DEPLOYING_LIMIT = timedelta(minutes=15)
DEGRADED_LIMIT = timedelta(hours=24)
STOPPING_LIMIT = timedelta(minutes=2)
# A process applies the limits of what waits for Triton only after this: a machine that was off for a night must get a
# chance to bring its deployments back first.
LIMITS_AFTER_S = 600.0
SWEEP_S = 1.0
SWEEP_BATCH = 100

log = structlog.get_logger()
_S = DeploymentState


class Deployments:
    """Models, online."""

    def __init__(self, database: Database, peers: Peers) -> None:
        self._database = database
        self.tritons = Tritons(database)
        self.starts = Starts(database, peers, self.tritons)
        self.serving = Serving(database)
        self.gates = Gates(database)
        self.monitoring = Monitoring(database)
        self.versions = Versions(database, self.starts)
        self._limits_from_s = time.monotonic() + LIMITS_AFTER_S

    # What others tell

    async def meet_model(self, model: Model) -> None:
        """A run has left a model."""
        async with self._database.transaction() as tx:
            await store.insert_model(tx.connection, model)

    async def forget_model(self, model_id: str) -> None:
        """It was deleted, and is not deployed any more; where it serves, it goes on."""
        async with self._database.transaction() as tx:
            await deleted_models.mark_deleted(tx.connection, model_id)

    async def meet_evaluation(self, evaluation: Evaluation, ended_at: datetime) -> None:
        """A model is evaluated, and can be published."""
        async with self._database.transaction() as tx:
            await store.put_evaluation(tx.connection, evaluation, ended_at)

    async def obey_stop(self, deployment_id: str, start_number: int, reason: EndReason) -> None:
        """Billing orders the stop of a start. Raises NotFoundError."""
        await change(self._database, deployment_id, start_number, None, lambda at, now: lifecycle.stop(at, reason, now))

    # Ending

    async def stop(self, request_id: str, deployment_id: str) -> Deployment:
        """Asks for the stop; at rest, while it is stopping already, or with the request id of a former call, nothing
        changes, however late it comes once more (is_retry).

        Raises NotFoundError, AlreadyExistsError: REQUEST_ID_USED.
        """
        async with self._database.transaction() as tx:
            deployment = await owned(tx, deployment_id)
            if await is_retry(tx.connection, deployment_id, UpdateAction.STOPPED, request_id):
                return deployment
            stopped = lifecycle.stop(deployment, EndReason.STOPPED_BY_USER, tx.now)
            if stopped == deployment:
                # Its retry may find another start.
                await version_store.insert_unchanged(
                    tx.connection, deployment_id, request_id, UpdateAction.STOPPED, tx.now
                )
                return deployment
            await record(tx, deployment, UpdateAction.STOPPED, author=current().subject, request_id=request_id)
            return await write(tx, deployment, stopped)

    async def delete(self, request_id: str, deployment_id: str) -> Deployment:
        """Softly: no call shows it any more, except this one again.

        Raises:
            NotFoundError. FailedPreconditionError: STATE_NOT_AT_REST. AlreadyExistsError: REQUEST_ID_USED.
        """
        async with self._database.transaction() as tx:
            found = await store.get(tx.connection, deployment_id, lock=True)
            if found is not None and found.deleted_at is not None:
                current().own("deployment", deployment_id, found.account_id)
                if await version_store.action_of(tx.connection, deployment_id, request_id) is UpdateAction.DELETED:
                    return found
            deployment = shown(found, deployment_id)
            await is_retry(tx.connection, deployment_id, UpdateAction.DELETED, request_id)
            if not deployment.at_rest:
                raise FailedPreconditionError(
                    "STATE_NOT_AT_REST", f"The deployment is {deployment.state}; stop it first.", state=deployment.state
                )
            author = current().subject
            await record(tx, deployment, UpdateAction.DELETED, author=author, request_id=request_id)
            return await write(tx, deployment, lifecycle.delete(deployment, tx.now), events_pb2.DeploymentDeleted)

    async def sweep(self) -> None:
        """Makes a round; the limits of what waits for Triton hold once this process has been up for a while."""
        await self.sweep_once(limits=time.monotonic() >= self._limits_from_s)

    async def sweep_once(self, *, limits: bool) -> None:
        """Asks again for holds that were not answered, and ends what has waited too long.

        Args:
            limits: whether those of what waits for Triton are applied.
        """
        for deployment_id in await self._unmoved(_S.PENDING, ASK_AGAIN_AFTER):
            await self.starts.ask_again(deployment_id)
        await self._end_waiting(_S.WAITING, WAITING_LIMIT, "The resource group had no free capacity in time")
        for deployment_id in await self._unmoved(_S.STOPPING, STOPPING_LIMIT):
            await change(self._database, deployment_id, None, {_S.STOPPING}, lifecycle.stopped)
        if limits:
            await self._end_waiting(_S.QUEUED, QUEUED_LIMIT, "No Triton had room in time; start it again.")
            await self._end_waiting(_S.DEPLOYING, DEPLOYING_LIMIT, "It was not online in time")
            await self._end_waiting(_S.DEGRADED, DEGRADED_LIMIT, "It did not serve again in time")

    async def _unmoved(self, state: DeploymentState, limit: timedelta) -> list[str]:
        async with self._database.transaction() as tx:
            return await store.unmoved(tx.connection, state, tx.now - limit, SWEEP_BATCH)

    async def _end_waiting(self, state: DeploymentState, limit: timedelta, message: str) -> None:
        def end(at: Deployment, now: datetime) -> Deployment:
            text = f"{message}: {at.error_message}" if at.error_message else message
            return lifecycle.fail(at, EndReason.WAITED_TOO_LONG, text, now, None)

        for deployment_id in await self._unmoved(state, limit):
            await change(self._database, deployment_id, None, {state}, end)

    # Reading

    async def get(self, deployment_id: str) -> Deployment:
        """Raises NotFoundError for another account's too."""
        async with self._database.reading() as connection:
            return shown(await store.get(connection, deployment_id), deployment_id)

    async def list_deployments(
        self, account_id: str, *, after: tuple[datetime, str] | None, limit: int
    ) -> list[Deployment]:
        """Newest first."""
        async with self._database.reading() as connection:
            return await store.list_deployments(connection, account_id, after=after, limit=limit)
