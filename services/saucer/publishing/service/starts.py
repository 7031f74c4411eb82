"""A start: what is checked, stored and asked of billing, until it is QUEUED or refused.

1. The model must be known and evaluated, and the spec one that a Triton here serves; nothing is stored if not.
2. The deployment is stored PENDING, with its id and so its hold's id, before money is asked for.
3. Billing freezes two hours, or refuses. The answer moves the deployment to QUEUED, or to REFUSED (a new start: back).
4. If billing does not answer, it stays PENDING; the sweep repeats step 3, and after a limit ends it, whose
   DeploymentEnded makes billing bury the hold's id.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import asyncpg
import structlog

from saucer.lib import deleted_models
from saucer.lib.auth import current
from saucer.lib.errors import (
    REFUSALS,
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from saucer.lib.postgres import Connection, Database
from saucer.publishing import domain, lifecycle, spans
from saucer.publishing.domain import Deployment, DeploymentState, EndReason, Evaluation, Form, Model, UpdateAction
from saucer.publishing.peers import Hold, Peers
from saucer.publishing.service.changes import Event, Move, change, owned, publish
from saucer.publishing.service.records import is_retry, record
from saucer.publishing.service.tritons import Tritons
from saucer.publishing.store import deployments as store
from saucer.publishing.store import versions as version_store
from saucer.publishing.v1 import events_pb2

# How long billing may be silent; then the start has WAITED_TOO_LONG.
PENDING_LIMIT = timedelta(minutes=15)
# The events of training and evaluation may be a moment behind what the user has seen of them: so long is waited.
MEET_GRACE_S = 2.0
MEET_POLL_S = 0.1

log = structlog.get_logger()
_S = DeploymentState


class Starts:
    """Deployments on their way to Triton."""

    def __init__(self, database: Database, peers: Peers, tritons: Tritons) -> None:
        self._database = database
        self._peers = peers
        self._tritons = tritons

    async def grant(self, deployment_id: str, start_number: int, hold: Hold) -> None:
        """A start has its hold: one that waited for it, or whose reply was lost. Raises NotFoundError."""
        waiting = {_S.PENDING, _S.WAITING}
        await change(self._database, deployment_id, start_number, waiting, lambda at, now: _queue(at, hold, now))

    async def create(self, request_id: str, account_id: str, deployment_id: str, form: Form) -> Deployment:
        """Checks, stores, freezes, queues.

        Raises:
            NotFoundError: the model. InvalidArgumentError: spec, replicas, billing mode or a class do not fit.
            AlreadyExistsError: NAME_TAKEN, REQUEST_ID_USED.
            FailedPreconditionError: MODEL_NOT_EVALUATED, MODEL_DELETED; or the hold was refused, and the deployment
                is REFUSED.
        """
        async with self._database.reading() as connection:
            former = await store.of_request(connection, account_id, request_id)
        if former is None:
            _check_billing(form)
            await self._tritons.check(form)
            model, evaluation = await self.meet(account_id, form.model_id)
            former = await self._insert(request_id, account_id, deployment_id, form, model, evaluation)
        deployment, asked = former
        if asked != form:
            raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another deployment.")
        if deployment.state is _S.REFUSED:
            raise _refusal(deployment)
        return await self._start(deployment) if deployment.state is _S.PENDING else deployment

    async def meet(self, account_id: str, model_id: str) -> tuple[Model, Evaluation]:
        """An account's model that is evaluated.

        Raises NotFoundError; FailedPreconditionError: MODEL_NOT_EVALUATED, MODEL_DELETED.
        """
        deadline = asyncio.get_running_loop().time() + MEET_GRACE_S
        while True:
            async with self._database.reading() as connection:
                model = await store.get_model(connection, model_id)
                evaluation = await store.evaluation_of(connection, model_id)
                mine = model is not None and model.account_id == account_id
                if mine:
                    await check_there(connection, model_id)
            if model is not None and mine and evaluation is not None:
                return model, evaluation
            # Another's model is waited for like one that there is not, so that the time tells nothing either.
            if asyncio.get_running_loop().time() > deadline:
                if not mine:
                    raise NotFoundError("model", model_id)
                raise FailedPreconditionError(
                    "MODEL_NOT_EVALUATED",
                    f"The model {model_id} is not evaluated; only an evaluated one can be published.",
                    model_id=model_id,
                )
            await asyncio.sleep(MEET_POLL_S)

    async def _insert(
        self, request_id: str, account_id: str, deployment_id: str, form: Form, model: Model, evaluation: Evaluation
    ) -> tuple[Deployment, Form]:
        thresholds = domain.choose_thresholds(
            model.classes, checked_thresholds(dict(form.thresholds), model), evaluation
        )
        try:
            async with self._database.transaction() as tx:
                deployment = lifecycle.create(
                    deployment_id, account_id, request_id, form, evaluation, model.classes, thresholds, tx.now
                )
                if await store.insert(tx.connection, deployment):
                    await version_store.insert_version(tx.connection, deployment_id, deployment.version, tx.now)
                    await spans.begin(tx.connection, deployment_id)
                    author = current().subject
                    await record(tx, deployment, UpdateAction.CREATED, author=author, request_id=request_id)
                    await publish(tx, deployment, events_pb2.DeploymentCreated)
                    return deployment, form
                former = await store.of_request(tx.connection, account_id, request_id)
                assert former is not None
                return former
        except asyncpg.UniqueViolationError as error:
            raise _name_taken(form) from error

    async def _start(self, deployment: Deployment) -> Deployment:
        """Asks for the hold of a PENDING deployment. Billing's silence, or a fault of it, leaves it PENDING."""
        try:
            hold = await self._peers.hold(deployment)
        except REFUSALS as error:
            missing = int(error.metadata.get("missing_micros", 0))
            message = error.message
            # A refused new start is where it was: nothing has ended that had not ended before.
            event = events_pb2.DeploymentChanged if deployment.former_state else None
            refused = await self._answer(deployment, lambda at, now: lifecycle.refuse(at, message, missing, now), event)
            raise _refusal(refused) from error
        except DomainError as error:
            log.warning("billing_silent", deployment_id=deployment.deployment_id, error=error.message)
            return deployment
        if hold.waiting:
            return await self._answer(deployment, lifecycle.wait)
        return await self._answer(deployment, lambda at, now: _queue(at, hold, now))

    async def _answer(self, deployment: Deployment, move: Move, event: Event | None = None) -> Deployment:
        """Moves a start out of PENDING, unless something else did: a stop, another replica, another retry."""
        return await change(
            self._database, deployment.deployment_id, deployment.start_number, {_S.PENDING}, move, event
        )

    async def start(
        self, request_id: str, deployment_id: str, billing_mode: str | None = None, resource_group_id: str = ""
    ) -> Deployment:
        """A new start under a new hold. A retry starts nothing, however late: it answers as the deployment is, or
        repeats the refusal of the hold if no other start was asked for since.

        Args:
            billing_mode: None: that of before, with its resource group unless another is named.

        Raises:
            FailedPreconditionError: naming the state, or the hold's refusal; MODEL_DELETED.
            InvalidArgumentError: mode and group. AlreadyExistsError: NAME_TAKEN, REQUEST_ID_USED.
        """
        try:
            async with self._database.transaction() as tx:
                deployment = await owned(tx, deployment_id)
                retried = await is_retry(tx.connection, deployment_id, UpdateAction.STARTED, request_id)
                if not retried:
                    if not deployment.at_rest:
                        raise FailedPreconditionError(
                            "STATE_NOT_AT_REST",
                            f"The deployment is {deployment.state}; only one that is STOPPED, FAILED or REFUSED can be "
                            "started.",
                            state=deployment.state,
                        )
                    await check_there(tx.connection, deployment.version.model_id)
                    form = deployment.form
                    if billing_mode is not None or resource_group_id:
                        mode = billing_mode or form.billing_mode
                        form = replace(form, billing_mode=mode, resource_group_id=resource_group_id)
                        _check_billing(form)
                    started = lifecycle.start_again(deployment, request_id, tx.now, form)
                    author = current().subject
                    await record(tx, deployment, UpdateAction.STARTED, author=author, request_id=request_id)
                    deployment = await store.update(tx.connection, started)
                    await spans.begin(tx.connection, deployment_id)
                    await publish(tx, deployment, events_pb2.DeploymentChanged)
        except asyncpg.UniqueViolationError as error:
            raise _name_taken(deployment.form) from error
        if retried and deployment.start_request_id != request_id:
            return deployment
        if deployment.refused:
            raise _refusal(deployment)
        return await self._start(deployment) if deployment.state is _S.PENDING else deployment

    async def ask_again(self, deployment_id: str) -> None:
        async with self._database.transaction() as tx:
            deployment = await store.get(tx.connection, deployment_id)
            now = tx.now
        assert deployment is not None
        if now - deployment.moved_at > PENDING_LIMIT:
            message = "Billing did not answer in time; start it again."
            await self._answer(
                deployment, lambda at, now: lifecycle.fail(at, EndReason.WAITED_TOO_LONG, message, now, None)
            )
            return
        try:
            await self._start(deployment)
        except FailedPreconditionError as error:
            log.info("start_refused", deployment_id=deployment_id, reason=error.reason)


def _check_billing(form: Form) -> None:
    if form.prepaid and not form.resource_group_id:
        raise InvalidArgumentError("RESOURCE_GROUP_REQUIRED", "resource_group_id: PREPAID takes capacity of one.")
    if form.resource_group_id and not form.prepaid:
        raise InvalidArgumentError("RESOURCE_GROUP_UNEXPECTED", "resource_group_id: only PREPAID takes one.")


def _queue(deployment: Deployment, hold: Hold, now: datetime) -> Deployment:
    return lifecycle.queue(deployment, hold.amount_micros, hold.price_per_hour_micros, hold.currency, now)


async def check_there(connection: Connection, model_id: str) -> None:
    """Raises FailedPreconditionError: MODEL_DELETED."""
    if await deleted_models.is_deleted(connection, model_id):
        raise FailedPreconditionError(
            "MODEL_DELETED", f"The model {model_id} was deleted; deploy another one.", model_id=model_id
        )


def checked_thresholds(given: Mapping[str, float], model: Model) -> Mapping[str, float]:
    """The same. Raises InvalidArgumentError: CLASS_UNKNOWN."""
    unknown = sorted(set(given) - set(model.classes))
    if unknown:
        raise InvalidArgumentError(
            "CLASS_UNKNOWN", f"thresholds: the model has no class {unknown[0]}; it has {', '.join(model.classes)}."
        )
    return given


def _name_taken(form: Form) -> AlreadyExistsError:
    return AlreadyExistsError(
        "NAME_TAKEN",
        f"display_name: the account has a deployment {form.display_name} that is not at rest.",
        name=form.display_name,
    )


def _refusal(deployment: Deployment) -> FailedPreconditionError:
    reason = "INSUFFICIENT_BALANCE" if deployment.missing_micros else "HOLD_REFUSED"
    return FailedPreconditionError(
        reason,
        deployment.error_message,
        deployment_id=deployment.deployment_id,
        missing_micros=deployment.missing_micros,
        state=deployment.state,
    )
