"""Versions: another model in place, a share of the traffic, back again; and who changed what.

1. A version is proposed beside the one that serves, which goes on: the deployment's candidate, one at a time.
2. reconcile.py loads it under a name of its own into every Triton that carries the deployment, and replays test images
   there: once it serves wherever the other does it is ready, and where it does not load or agree it is rejected.
3. Ready, it takes the place of the one that serves, or has a share of the traffic until it is promoted or abandoned.
4. The endpoint picks a side for each request, so a promotion moves no model. Where one side fails, the other
   answers, as long as both have a share: with no instance of the version that serves, the deployment is DEGRADED and
   uncharged, and the candidate answers all requests but those that name the other version. What nobody wants any more
   is unloaded once every endpoint has learnt of it.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

from saucer.lib.auth import current
from saucer.lib.errors import FailedPreconditionError, NotFoundError
from saucer.lib.postgres import Database, Transaction
from saucer.publishing import domain, lifecycle
from saucer.publishing.domain import SERVED, Candidate, Deployment, UpdateAction, UpdateRecord, Version
from saucer.publishing.gate import Gate
from saucer.publishing.instances import Instance
from saucer.publishing.service.changes import Move, owned, shown, write
from saucer.publishing.service.records import SAUCER, is_retry, record
from saucer.publishing.service.starts import Starts, check_there, checked_thresholds
from saucer.publishing.store import deployments as store
from saucer.publishing.store import gates as gate_store
from saucer.publishing.store import versions as version_store

Blames = Callable[[Deployment, Instance], bool]


class Versions:
    """What a deployment serves, served and may serve."""

    def __init__(self, database: Database, starts: Starts) -> None:
        self._database = database
        self._starts = starts

    # The user's: a retry, however late, changes nothing, and a request id of another change is REQUEST_ID_USED

    async def update(
        self, request_id: str, deployment_id: str, model_id: str, thresholds: Mapping[str, float], percent: int
    ) -> Deployment:
        """Proposes a new version; `model_id` empty: the model that serves, with other thresholds.

        Raises:
            NotFoundError: deployment or model. InvalidArgumentError: a class does not fit.
            FailedPreconditionError: MODEL_NOT_EVALUATED, MODEL_DELETED, STATE_NOT_SERVED, UPDATE_IN_PROGRESS.
        """
        async with self._database.transaction() as tx:
            present = await owned(tx, deployment_id)
            # Before the model is looked at, which may have been deleted since.
            if await is_retry(tx.connection, deployment_id, UpdateAction.UPDATED, request_id):
                return present
        model_id = model_id or present.version.model_id
        model, evaluation = await self._starts.meet(present.account_id, model_id)
        chosen = domain.choose_thresholds(model.classes, checked_thresholds(thresholds, model), evaluation)

        async def make(tx: Transaction) -> Version:
            number = await version_store.last_number(tx.connection, deployment_id) + 1
            version = Version(number, model_id, evaluation.evaluation_id, model.classes, chosen)
            await version_store.insert_version(tx.connection, deployment_id, version, tx.now)
            return version

        async with self._database.transaction() as tx:
            deployment = await owned(tx, deployment_id)
            if await is_retry(tx.connection, deployment_id, UpdateAction.UPDATED, request_id):
                return deployment
            _check_free(deployment)
            return await _propose(tx, deployment, await make(tx), percent, UpdateAction.UPDATED, request_id)

    async def roll_back(self, request_id: str, deployment_id: str, number: int, percent: int) -> Deployment:
        """Proposes a former version again.

        Raises NotFoundError; FailedPreconditionError: STATE_NOT_SERVED, UPDATE_IN_PROGRESS, VERSION_SERVES,
        MODEL_DELETED.
        """
        async with self._database.transaction() as tx:
            deployment = await owned(tx, deployment_id)
            if await is_retry(tx.connection, deployment_id, UpdateAction.ROLLED_BACK, request_id):
                return deployment
            version = await version_store.get_version(tx.connection, deployment_id, number)
            if version is None:
                raise NotFoundError("deployment_version", str(number))
            _check_free(deployment)
            if number == deployment.version.number:
                raise FailedPreconditionError("VERSION_SERVES", f"Version {number} is the one that serves.")
            await check_there(tx.connection, version.model_id)
            return await _propose(tx, deployment, version, percent, UpdateAction.ROLLED_BACK, request_id)

    async def split(self, request_id: str, deployment_id: str, number: int, percent: int) -> Deployment:
        """Gives the candidate, which has to be `number` (0: whichever it is), another share.

        Raises NotFoundError, FailedPreconditionError: NO_CANDIDATE, OTHER_CANDIDATE, NOT_READY.
        """
        return await self._of_candidate(
            request_id,
            deployment_id,
            number,
            UpdateAction.SPLIT,
            lambda at, _: lifecycle.split(at, percent),
            ready=True,
        )

    async def promote(self, request_id: str, deployment_id: str, number: int) -> Deployment:
        """Gives the candidate all traffic. Raises as split() does."""
        return await self._of_candidate(request_id, deployment_id, number, UpdateAction.PROMOTED, _promote, ready=True)

    async def abandon(self, request_id: str, deployment_id: str, number: int) -> Deployment:
        """Takes the candidate away, ready or not. Raises as split() does, but not NOT_READY."""
        return await self._of_candidate(
            request_id, deployment_id, number, UpdateAction.ABANDONED, lambda at, _: lifecycle.abandon(at), ready=False
        )

    async def _of_candidate(
        self, request_id: str, deployment_id: str, number: int, action: UpdateAction, move: Move, *, ready: bool
    ) -> Deployment:
        async with self._database.transaction() as tx:
            deployment = await owned(tx, deployment_id)
            if await is_retry(tx.connection, deployment_id, action, request_id):
                return deployment
            candidate = meant_candidate(deployment, number)
            if ready and not candidate.ready:
                raise FailedPreconditionError("NOT_READY", f"Version {candidate.version.number} is not ready yet.")
            return await _move(tx, deployment, candidate, move(deployment, tx.now), action, request_id=request_id)

    # For reconcile.py

    async def pass_gate(self, deployment: Deployment) -> None:
        """The candidate is loaded, and its replays agreed, wherever the other version serves."""
        await self._report(
            deployment,
            UpdateAction.PROMOTED,
            lambda at, now: lifecycle.pass_gate(at, now) if lifecycle.may_be_ready(at) else at,
        )

    async def reject(self, deployment: Deployment, message: str) -> None:
        """The candidate did not load, did not agree, or failed since: the version that serves goes on alone."""
        await self._report(deployment, UpdateAction.REJECTED, lambda at, _: lifecycle.abandon(at), message)

    async def reject_for(self, deployment: Deployment, instance: Instance, message: str, blames: Blames) -> bool:
        """Rejects the candidate if what is there now blames it for what went wrong with its instance: whether it does.

        Of an instance that has changed since it was looked at nothing is known.
        """

        def judged(present: Deployment, _: datetime) -> Deployment:
            same = (item for item in present.instances if (item.key, item.since) == (instance.key, instance.since))
            return lifecycle.abandon(present) if any(blames(present, item) for item in same) else present

        return await self._report(deployment, UpdateAction.REJECTED, judged, message)

    async def _report(self, deployment: Deployment, action: UpdateAction, move: Move, detail: str = "") -> bool:
        """Whether it changed anything."""
        asked = deployment.candidate
        assert asked is not None
        async with self._database.transaction() as tx:
            present = await store.get(tx.connection, deployment.deployment_id, lock=True)
            assert present is not None, "deployments are not removed"
            candidate = present.candidate
            # Meanwhile it may have been abandoned, and the same version proposed again.
            if candidate is None or candidate.proposed_at != asked.proposed_at:
                return False
            moved = move(present, tx.now)
            if moved != present:
                await _move(tx, present, candidate, moved, action, detail=detail)
            return moved != present

    # Reading

    async def list_versions(
        self, deployment_id: str, *, before: int | None, limit: int
    ) -> list[tuple[Version, datetime, Gate | None]]:
        """With the times at which they were asked for and their last replays; newest first. Raises NotFoundError."""
        async with self._database.reading() as connection:
            shown(await store.get(connection, deployment_id), deployment_id)
            gates = await gate_store.gates_of(connection, deployment_id)
            found = await version_store.list_versions(connection, deployment_id, before=before, limit=limit)
        return [(version, created_at, gates.get(version.number)) for version, created_at in found]

    async def list_records(self, deployment_id: str, *, before: int | None, limit: int) -> list[UpdateRecord]:
        """Newest first. Raises NotFoundError."""
        async with self._database.reading() as connection:
            shown(await store.get(connection, deployment_id), deployment_id)
            return await version_store.list_records(connection, deployment_id, before=before, limit=limit)


def meant_candidate(deployment: Deployment, number: int) -> Candidate:
    """The candidate, if it is this version; 0: whichever it is.

    Raises FailedPreconditionError: NO_CANDIDATE, OTHER_CANDIDATE.
    """
    candidate = deployment.candidate
    if candidate is None:
        raise FailedPreconditionError("NO_CANDIDATE", "There is no version beside the one that serves.")
    if number not in (0, candidate.version.number):
        raise FailedPreconditionError(
            "OTHER_CANDIDATE", f"The candidate is version {candidate.version.number}, and not {number}."
        )
    return candidate


def _check_free(deployment: Deployment) -> None:
    if deployment.state not in SERVED:
        raise FailedPreconditionError(
            "STATE_NOT_SERVED",
            f"The deployment is {deployment.state}; one that is ACTIVE or DEGRADED can be updated.",
            state=deployment.state,
        )
    if deployment.candidate is not None:
        raise FailedPreconditionError(
            "UPDATE_IN_PROGRESS",
            f"Version {deployment.candidate.version.number} is a candidate; promote or abandon it first.",
        )


def _promote(deployment: Deployment, now: datetime) -> Deployment:
    """What was ready once may have been lost since; all traffic would then go where nothing answers."""
    assert deployment.candidate is not None
    if not lifecycle.candidate_serves(deployment):
        raise FailedPreconditionError(
            "NOT_READY",
            f"Version {deployment.candidate.version.number} does not serve now on every Triton on which version "
            f"{deployment.version.number} does, or on none; wait until it does, or abandon it.",
        )
    return lifecycle.promote(deployment, now)


async def _propose(
    tx: Transaction, deployment: Deployment, version: Version, percent: int, action: UpdateAction, request_id: str
) -> Deployment:
    proposed = lifecycle.propose(deployment, version, percent, tx.now)
    assert proposed.candidate is not None
    return await _move(tx, deployment, proposed.candidate, proposed, action, request_id=request_id)


async def _move(
    tx: Transaction,
    former: Deployment,
    candidate: Candidate,
    moved: Deployment,
    action: UpdateAction,
    *,
    request_id: str | None = None,
    detail: str = "",
) -> Deployment:
    written = await write(tx, former, moved)
    # Passing the gate with a share of the traffic is no change of which version serves.
    if action is UpdateAction.PROMOTED and written.candidate is not None:
        action = UpdateAction.SPLIT
    percent = written.candidate.percent if written.candidate else candidate.percent
    await record(
        tx,
        former,
        action,
        to_version=candidate.version.number,
        percent=percent,
        author=SAUCER if request_id is None else current().subject,
        request_id=request_id,
        detail=detail,
    )
    return written
