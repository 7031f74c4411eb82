"""The use cases of deployments, and the only place that opens their transactions.

A start, step by step:
1. The model must be known and evaluated, and the spec one that a Triton here serves; nothing is stored if not.
2. The deployment is stored PENDING, with its id and so its hold's id, before money is asked for.
3. Billing freezes two hours, or refuses. The answer moves the deployment to QUEUED, or to REFUSED (a new start: back).
4. If billing does not answer, it stays PENDING; sweep() repeats step 3, and after a limit ends it, whose
   DeploymentEnded makes billing bury the hold's id.
5. From QUEUED on, reconcile.py acts on Triton and says here what came of it.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import asyncpg
import structlog
from google.protobuf.message import Message
from prometheus_client import Counter

from saucer.lib.auth import current
from saucer.lib.errors import (
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database, Transaction
from saucer.publishing import domain, spans, store
from saucer.publishing.domain import (
    Deployment,
    DeploymentState,
    EndReason,
    Evaluation,
    Form,
    Model,
    Parity,
)
from saucer.publishing.messages import deployment_message
from saucer.publishing.peers import Hold, Peers
from saucer.publishing.v1 import events_pb2

# A deployment that is PENDING for longer asks billing again.
ASK_AGAIN_AFTER = timedelta(seconds=2)
# States that wait, how long at most, and how that ends: all WAITED_TOO_LONG, but STOPPING, which is STOPPED then; what
# Triton may still have of it is cleared away later, as an orphan.
PENDING_LIMIT = timedelta(minutes=15)
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
# The events of training and evaluation may be a moment behind what the user has seen of them: so long is waited.
MEET_GRACE_S = 2.0
MEET_POLL_S = 0.1
# One Triton server is registered, and it holds one of each model.
MAX_REPLICAS = 1
# How long an acting replica that died keeps the others waiting.
LEASE = timedelta(seconds=10)
# Answers by which billing says that this start can never have its hold.
REFUSALS = (FailedPreconditionError, InvalidArgumentError, NotFoundError, AlreadyExistsError)

log = structlog.get_logger()
ended_total = Counter("saucer_publishing_ended_total", "Deployments that came to rest", ["reason"])

_S = DeploymentState
Move = Callable[[Deployment, datetime], Deployment]
Event = Callable[..., Message]


@dataclass(frozen=True)
class Offer:
    """The Triton server that is registered: what it is, and how many models it takes."""

    region_id: str
    spec_id: str
    room: int


class Deployments:
    """Models, online."""

    def __init__(self, database: Database, peers: Peers, offer: Offer) -> None:
        self._database = database
        self._peers = peers
        self.offer = offer

    # What others tell

    async def meet_model(self, model: Model) -> None:
        """A run has left a model."""
        async with self._database.transaction() as tx:
            await store.insert_model(tx.connection, model)

    async def meet_evaluation(self, evaluation: Evaluation, ended_at: datetime) -> None:
        """A model is evaluated, and can be published."""
        async with self._database.transaction() as tx:
            await store.put_evaluation(tx.connection, evaluation, ended_at)

    async def obey_stop(self, deployment_id: str, start_number: int, reason: EndReason) -> None:
        """Billing orders the stop of a start. Raises NotFoundError."""
        await self._change(deployment_id, start_number, None, lambda at, now: domain.stop(at, reason, now))

    async def grant(self, deployment_id: str, start_number: int, hold: Hold) -> None:
        """A start has its hold: one that waited for it, or whose reply was lost. Raises NotFoundError."""
        waiting = {_S.PENDING, _S.WAITING}
        await self._change(deployment_id, start_number, waiting, lambda at, now: _queue(at, hold, now))

    # Starting

    async def create(self, request_id: str, account_id: str, deployment_id: str, form: Form) -> Deployment:
        """Checks, stores, freezes, queues.

        Raises:
            NotFoundError: the model. InvalidArgumentError: spec, replicas, billing mode or a class do not fit.
            AlreadyExistsError: NAME_TAKEN, REQUEST_ID_USED.
            FailedPreconditionError: MODEL_NOT_EVALUATED; or the hold was refused, and the deployment is REFUSED.
        """
        async with self._database.reading() as connection:
            former = await store.of_request(connection, account_id, request_id)
        if former is None:
            self._check_offer(form)
            model, evaluation = await self._meet(account_id, form.model_id)
            former = await self._insert(request_id, account_id, deployment_id, form, model, evaluation)
        if former.form != form:
            raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another deployment.")
        if former.state is _S.REFUSED:
            raise _refusal(former)
        return await self._start(former) if former.state is _S.PENDING else former

    def _check_offer(self, form: Form) -> None:
        _check_billing(form)
        if (form.region_id, form.spec_id) != (self.offer.region_id, self.offer.spec_id):
            raise InvalidArgumentError(
                "SPEC_NOT_SERVED",
                f"spec_id: no Triton serves on {form.spec_id} in {form.region_id}; one does on {self.offer.spec_id} in "
                f"{self.offer.region_id}.",
            )
        if form.replicas > MAX_REPLICAS:
            raise InvalidArgumentError(
                "REPLICAS_UNAVAILABLE",
                f"replicas: the one Triton on {self.offer.spec_id} has room for {self.offer.room} models, and for "
                f"{MAX_REPLICAS} replica of each; not {form.replicas}.",
            )

    async def _meet(self, account_id: str, model_id: str) -> tuple[Model, Evaluation]:
        deadline = asyncio.get_running_loop().time() + MEET_GRACE_S
        while True:
            async with self._database.reading() as connection:
                model = await store.get_model(connection, model_id)
                evaluation = await store.evaluation_of(connection, model_id)
            mine = model is not None and model.account_id == account_id
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
    ) -> Deployment:
        thresholds = domain.choose_thresholds(model.classes, _given(form, model), evaluation)
        try:
            async with self._database.transaction() as tx:
                deployment = domain.create(
                    deployment_id, account_id, request_id, form, evaluation, model.classes, thresholds, tx.now
                )
                if await store.insert(tx.connection, deployment):
                    await spans.begin(tx.connection, deployment_id)
                    await _publish(tx, deployment, events_pb2.DeploymentCreated)
                    return deployment
                former = await store.of_request(tx.connection, account_id, request_id)
                assert former is not None
                return former
        except asyncpg.UniqueViolationError as error:
            raise _name_taken(form) from error

    async def _start(self, deployment: Deployment) -> Deployment:
        """Asks for the hold of a PENDING deployment. Billing's silence leaves it PENDING."""
        try:
            hold = await self._peers.hold(deployment)
        except REFUSALS as error:
            missing = int(error.metadata.get("missing_micros", 0))
            message = error.message
            # A refused new start is where it was: nothing has ended that had not ended before.
            event = events_pb2.DeploymentChanged if deployment.former_state else None
            refused = await self._answer(deployment, lambda at, now: domain.refuse(at, message, missing, now), event)
            raise _refusal(refused) from error
        except DomainError as error:
            log.warning("billing_silent", deployment_id=deployment.deployment_id, error=error.message)
            return deployment
        if hold.waiting:
            return await self._answer(deployment, domain.wait)
        return await self._answer(deployment, lambda at, now: _queue(at, hold, now))

    async def _answer(self, deployment: Deployment, move: Move, event: Event | None = None) -> Deployment:
        """Moves a start out of PENDING, unless something else did: a stop, another replica, another retry."""
        return await self._change(deployment.deployment_id, deployment.start_number, {_S.PENDING}, move, event)

    async def start(
        self, request_id: str, deployment_id: str, billing_mode: str | None = None, resource_group_id: str = ""
    ) -> Deployment:
        """A new start under a new hold.

        Args:
            billing_mode: None: that of before, with its resource group.

        Raises:
            FailedPreconditionError: naming the state, or the hold's refusal. InvalidArgumentError: mode and group.
        """
        try:
            async with self._database.transaction() as tx:
                deployment = await _owned(tx, deployment_id)
                if deployment.start_request_id != request_id:
                    if not deployment.at_rest:
                        raise FailedPreconditionError(
                            "STATE_NOT_AT_REST",
                            f"The deployment is {deployment.state}; only one that is STOPPED, FAILED or REFUSED can be "
                            "started.",
                            state=deployment.state,
                        )
                    form = deployment.form
                    if billing_mode is not None:
                        form = replace(form, billing_mode=billing_mode, resource_group_id=resource_group_id)
                        _check_billing(form)
                    started = domain.start_again(deployment, request_id, tx.now, form)
                    deployment = await store.update(tx.connection, started)
                    await spans.begin(tx.connection, deployment_id)
                    await _publish(tx, deployment, events_pb2.DeploymentChanged)
        except asyncpg.UniqueViolationError as error:
            raise _name_taken(deployment.form) from error
        return await self._start(deployment) if deployment.state is _S.PENDING else deployment

    # Ending

    async def stop(self, deployment_id: str) -> Deployment:
        """Asks for the stop; at rest, or while it is stopping already, nothing changes."""
        async with self._database.transaction() as tx:
            deployment = await _owned(tx, deployment_id)
            return await _write(tx, deployment, domain.stop(deployment, EndReason.STOPPED_BY_USER, tx.now))

    async def sweep(self) -> None:
        """Until cancelled: asks again for holds that were not answered, and ends what has waited too long."""
        limits_from = asyncio.get_running_loop().time() + LIMITS_AFTER_S
        while True:
            try:
                await self.sweep_once(limits=asyncio.get_running_loop().time() >= limits_from)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, DomainError) as error:
                log.warning("sweep_failed", error=repr(error))
            await asyncio.sleep(SWEEP_S)

    async def sweep_once(self, *, limits: bool) -> None:
        """One round. `limits`: whether those of what waits for Triton are applied."""
        for deployment_id in await self._unmoved(_S.PENDING, ASK_AGAIN_AFTER):
            await self._ask_again(deployment_id)
        await self._end_waiting(_S.WAITING, WAITING_LIMIT, "The resource group had no free capacity in time")
        for deployment_id in await self._unmoved(_S.STOPPING, STOPPING_LIMIT):
            await self._change(deployment_id, None, {_S.STOPPING}, domain.stopped)
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
            return domain.fail(at, EndReason.WAITED_TOO_LONG, text, now, None)

        for deployment_id in await self._unmoved(state, limit):
            await self._change(deployment_id, None, {state}, end)

    async def _ask_again(self, deployment_id: str) -> None:
        async with self._database.transaction() as tx:
            deployment = await store.get(tx.connection, deployment_id)
            now = tx.now
        assert deployment is not None
        if now - deployment.moved_at > PENDING_LIMIT:
            message = "Billing did not answer in time; start it again."
            await self._answer(
                deployment, lambda at, now: domain.fail(at, EndReason.WAITED_TOO_LONG, message, now, None)
            )
            return
        try:
            await self._start(deployment)
        except FailedPreconditionError as error:
            log.info("start_refused", deployment_id=deployment_id, reason=error.reason)

    # For reconcile.py, which says what came of Triton

    async def take_lease(self, holder: str) -> bool:
        """Whether this replica is the one that acts on Triton, for LEASE from now on."""
        async with self._database.reading() as connection:
            return await store.take_lease(connection, holder, LEASE)

    async def release_lease(self, holder: str) -> None:
        """Lets another replica act at once."""
        async with self._database.reading() as connection:
            await store.release_lease(connection, holder)

    async def wanted(self) -> tuple[list[Deployment], datetime]:
        """What Triton is to have: the placed ones, then as many queued ones as could ever find room; and the time."""
        async with self._database.transaction() as tx:
            placed = await store.in_states(tx.connection, domain.PLACED)
            queued = await store.in_states(tx.connection, [_S.QUEUED], limit=self.offer.room)
            return [*placed, *queued], tx.now

    async def placed(self) -> list[Deployment]:
        """Every deployment of which Triton may have something."""
        async with self._database.reading() as connection:
            return await store.in_states(connection, domain.PLACED)

    async def model_of(self, deployment: Deployment) -> Model:
        """What it serves."""
        async with self._database.reading() as connection:
            model = await store.get_model(connection, deployment.form.model_id)
        assert model is not None, "it was there when the deployment was made, and models are not removed"
        return model

    async def deploy(self, deployment: Deployment, holder: str) -> bool:
        """QUEUED to DEPLOYING, if there is room and the holder still acts."""
        async with self._database.transaction() as tx:
            if not await store.lock_lease(tx.connection, holder):
                return False
            present = await store.get(tx.connection, deployment.deployment_id, lock=True)
            if present is None or present.state is not _S.QUEUED:
                return False
            if await store.placed(tx.connection) >= self.offer.room:
                return False
            await _write(tx, present, domain.deploy(present, tx.now))
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
        await self._change(deployment.deployment_id, deployment.start_number, states, move)

    async def _change(
        self,
        deployment_id: str,
        start_number: int | None,
        states: Collection[DeploymentState] | None,
        move: Move,
        event: Event | None = None,
    ) -> Deployment:
        """Moves a start if it is in one of the states; otherwise it stays as it is. Raises NotFoundError."""
        async with self._database.transaction() as tx:
            present = await store.get(tx.connection, deployment_id, lock=True)
            if present is None:
                raise NotFoundError("deployment", deployment_id)
            if start_number is not None and start_number != present.start_number:
                return present
            if states is not None and present.state not in states:
                return present
            return await _write(tx, present, move(present, tx.now), event)

    # Reading

    async def get(self, deployment_id: str) -> Deployment:
        """Raises NotFoundError for another account's too."""
        async with self._database.reading() as connection:
            deployment = await store.get(connection, deployment_id)
        if deployment is None:
            raise NotFoundError("deployment", deployment_id)
        current().own("deployment", deployment_id, deployment.account_id)
        return deployment

    async def list_deployments(
        self, account_id: str, *, after: tuple[datetime, str] | None, limit: int
    ) -> list[Deployment]:
        """Newest first."""
        async with self._database.reading() as connection:
            return await store.list_deployments(connection, account_id, after=after, limit=limit)


def _check_billing(form: Form) -> None:
    if form.prepaid and not form.resource_group_id:
        raise InvalidArgumentError("RESOURCE_GROUP_REQUIRED", "resource_group_id: PREPAID takes capacity of one.")
    if form.resource_group_id and not form.prepaid:
        raise InvalidArgumentError("RESOURCE_GROUP_UNEXPECTED", "resource_group_id: only PREPAID takes one.")


def _queue(deployment: Deployment, hold: Hold, now: datetime) -> Deployment:
    return domain.queue(deployment, hold.amount_micros, hold.price_per_hour_micros, hold.currency, now)


def _given(form: Form, model: Model) -> dict[str, float]:
    given = dict(form.thresholds)
    if len(given) < len(form.thresholds):
        raise InvalidArgumentError("CLASS_TWICE", "thresholds: a class is named twice.")
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


async def _owned(tx: Transaction, deployment_id: str) -> Deployment:
    deployment = await store.get(tx.connection, deployment_id, lock=True)
    if deployment is None:
        raise NotFoundError("deployment", deployment_id)
    current().own("deployment", deployment_id, deployment.account_id)
    return deployment


async def _write(tx: Transaction, former: Deployment, moved: Deployment, event: Event | None = None) -> Deployment:
    """Stores a change, with the one event that tells it."""
    if moved == former:
        return former
    written = await store.update(tx.connection, moved)
    event = event or _event_of(former, written)
    if event is not None:
        await _publish(tx, written, event, await spans.passed(tx.connection, former, written))
    if written.at_rest:
        ended_total.labels(written.end_reason or "REFUSED").inc()
    return written


def _event_of(former: Deployment, moved: Deployment) -> Event | None:
    if moved.state is former.state:
        return None if moved.progressed_at == former.progressed_at else events_pb2.DeploymentProgressed
    return events_pb2.DeploymentEnded if moved.at_rest else _EVENTS.get(moved.state, events_pb2.DeploymentChanged)


_EVENTS: dict[DeploymentState, Event] = {
    _S.QUEUED: events_pb2.DeploymentQueued,
    _S.ACTIVE: events_pb2.DeploymentActivated,
    _S.DEGRADED: events_pb2.DeploymentDegraded,
    _S.STOPPING: events_pb2.DeploymentStopRequested,
}


async def _publish(tx: Transaction, deployment: Deployment, event: Event, traceparent: str | None = None) -> None:
    message = event(deployment=deployment_message(deployment))
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, deployment.deployment_id, deployment.revision),
        message,
        account_id=deployment.account_id,
        work_id=deployment.deployment_id,
        resource_id=deployment.deployment_id,
        traceparent=traceparent,
    )
