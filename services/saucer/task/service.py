"""The use cases of tasks, and the only place that opens their transactions.

A start, step by step:
1. The form is checked against data, scene and spec: these calls read, and nothing is stored if they refuse.
2. The task is stored PENDING, with its id and so its hold's id, before money is asked for: a retry asks with the same.
3. Billing freezes two hours, or refuses. The answer moves the task to QUEUED, or to REFUSED (a restart: back).
4. If billing does not answer, the task stays PENDING; sweep() repeats step 3, and after a limit ends the task, whose
   TaskEnded makes billing bury the hold's id.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import asyncpg
import structlog
from google.protobuf.message import Message

from saucer.lib import deleted_models
from saucer.lib.auth import current
from saucer.lib.errors import (
    REFUSALS,
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database, Transaction
from saucer.task import domain, predicting, store
from saucer.task.defaults import Data, Derived, derive
from saucer.task.domain import (
    ChargeStatus,
    Config,
    EndReason,
    Form,
    KnownModel,
    Progress,
    Refused,
    Task,
    TaskKind,
    TaskState,
)
from saucer.task.estimating import LOOKED_AT, Pace, estimate_ms
from saucer.task.messages import task_message
from saucer.task.peers import Hold, Peers, Quote
from saucer.task.scenes import Scene
from saucer.task.v1 import events_pb2

# A task that is PENDING for longer asks billing again.
ASK_AGAIN_AFTER = timedelta(seconds=2)
# A task that is PENDING for longer ends: FAILED, waited too long.
PENDING_LIMIT = timedelta(minutes=15)
# A task that waits for capacity for longer ends likewise.
WAITING_LIMIT = timedelta(days=7)
# A task whose evaluation does not end within this is at rest without one.
EVALUATING_LIMIT = timedelta(hours=1)
UNSCORED_MESSAGE = "The evaluation did not end in time; the model is usable."
SWEEP_S = 1.0
SWEEP_BATCH = 100
# Between two looks of a watcher.
WATCH_POLL_S = 0.5

log = structlog.get_logger()


class Tasks:
    """AutoML jobs, from form to result."""

    def __init__(
        self, database: Database, peers: Peers, scenes: Mapping[str, Scene], *, fetches_weights: bool = False
    ) -> None:
        self._database = database
        self._fetches_weights = fetches_weights
        self._peers = peers
        self.scenes = scenes

    # Starting

    async def create(self, request_id: str, account_id: str, task_id: str, form: Form) -> Task:
        """Checks, stores, freezes, queues.

        Raises:
            InvalidArgumentError: scene, data or count do not fit. NotFoundError: data or spec.
            AlreadyExistsError: NAME_TAKEN, REQUEST_ID_USED.
            FailedPreconditionError: MODEL_DELETED; or the hold was refused, and the task is REFUSED.
            ResourceExhaustedError: QUOTA_QUEUED.
            UnavailableError: dataset or billing did not answer; nothing is stored.
        """
        async with self._database.reading() as connection:
            former = await store.of_request(connection, account_id, request_id)
        if former is None:
            config, derived, quote, _ = await self._plan(account_id, form)
            former = await self._insert(request_id, account_id, task_id, form, config, derived, quote)
        if former.form != form:
            raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another task.")
        if former.state is TaskState.REFUSED:
            raise _refusal(former)
        return await self._start(former) if former.state is TaskState.PENDING else former

    async def _plan(self, account_id: str, form: Form) -> tuple[Config, tuple[Derived, ...], Quote, Data]:
        scene = self.scenes.get(form.scene)
        if scene is None:
            raise InvalidArgumentError(
                "SCENE_UNKNOWN", f"scene: there is no {form.scene}; there are {', '.join(self.scenes)}."
            )
        _check_billing(form)
        model = await self._model_of(account_id, form)
        base = await self._own_model(account_id, form.base_model_id) if form.base_model_id else None
        owner, data = await self._peers.data(form.dataset_version_id)
        if owner != account_id:
            raise NotFoundError("dataset_version", form.dataset_version_id)
        quote = await self._peers.quote(account_id, form)
        if form.prepaid:
            quote = replace(quote, price_per_hour_micros=0, hold_micros=0, missing_micros=0)
        try:
            config, derived = (
                predicting.configure(form, model, self.scenes.get(model.scene), data)
                if model
                else derive(form, scene, data, quote.machine, base, fetches=self._fetches_weights)
            )
        except Refused as refused:
            raise InvalidArgumentError(refused.reason, refused.message) from refused
        return config, derived, quote, data

    async def _model_of(self, account_id: str, form: Form) -> KnownModel | None:
        """Of a predict task. Raises NotFoundError, InvalidArgumentError if form and kind do not fit."""
        predicts = form.kind is TaskKind.PREDICT
        if predicts != bool(form.model_id):
            raise InvalidArgumentError("MODEL_UNSUITABLE", "model_id: a predict task names a model, and no other does.")
        return await self._own_model(account_id, form.model_id) if predicts else None

    async def _own_model(self, account_id: str, model_id: str) -> KnownModel:
        """Raises NotFoundError; FailedPreconditionError: MODEL_DELETED."""
        async with self._database.reading() as connection:
            model = await store.get_model(connection, model_id)
            deleted = await deleted_models.is_deleted(connection, model_id)
        if model is None or model.account_id != account_id:
            raise NotFoundError("model", model_id)
        if deleted:
            raise _model_deleted(model_id)
        return model

    async def set_quota(self, account_id: str, queued: int | None, revision: int) -> None:
        """How many tasks may wait, as billing tells it; an older word than what is known changes nothing."""
        async with self._database.transaction() as tx:
            await store.put_quota(tx.connection, account_id, queued, revision)

    async def meet_model(self, model: KnownModel) -> None:
        """A run has left it; again changes nothing."""
        async with self._database.transaction() as tx:
            await store.insert_model(tx.connection, model)

    async def forget_model(self, model_id: str) -> None:
        """It was deleted; again changes nothing."""
        async with self._database.transaction() as tx:
            await deleted_models.mark_deleted(tx.connection, model_id)

    async def learn_pace(self, pace: Pace, *, predicts: bool) -> None:
        """A run took so long that trains or only predicts; again changes nothing."""
        async with self._database.transaction() as tx:
            await store.insert_pace(tx.connection, pace, predicts=predicts)

    async def _insert(
        self,
        request_id: str,
        account_id: str,
        task_id: str,
        form: Form,
        config: Config,
        derived: Sequence[Derived],
        quote: Quote,
    ) -> Task:
        try:
            async with self._database.transaction() as tx:
                task = Task(
                    task_id=task_id,
                    account_id=account_id,
                    request_id=request_id,
                    form=form,
                    config=config,
                    derived=tuple((note.field, note.value, note.reason) for note in derived),
                    state=TaskState.PENDING,
                    former_state=None,
                    charge_status=ChargeStatus.NOT_BILLING,
                    start_number=1,
                    restart_request_id=None,
                    hold_micros=0,
                    price_per_hour_micros=quote.price_per_hour_micros,
                    currency=quote.currency,
                    progress=Progress(),
                    stop_requested=False,
                    end_reason=None,
                    error_message="",
                    missing_micros=0,
                    model_id="",
                    evaluation_id="",
                    test_accuracy=None,
                    created_at=tx.now,
                    updated_at=tx.now,
                    ended_at=None,
                    deleted_at=None,
                    revision=1,
                )
                if await store.of_request(tx.connection, account_id, request_id) is None:
                    await _check_quota(tx, account_id)
                if await store.insert(tx.connection, task):
                    await _publish(tx, task, events_pb2.TaskCreated(task=task_message(task)))
                    return task
                former = await store.of_request(tx.connection, account_id, request_id)
                assert former is not None
                return former
        except asyncpg.UniqueViolationError as error:
            raise AlreadyExistsError(
                "NAME_TAKEN",
                f"display_name: the account has a task {form.display_name} already.",
                name=form.display_name,
            ) from error

    async def _start(self, task: Task) -> Task:
        """Asks for the hold of a PENDING task. Billing's silence, or a fault of it, leaves it PENDING."""
        try:
            hold = await self._peers.hold(task)
        except REFUSALS as error:
            missing = int(error.metadata.get("missing_micros", 0))
            message = error.message
            refused = await self._move(task, lambda at, now: domain.refuse(at, message, missing, now), refused=True)
            raise _refusal(refused) from error
        except DomainError as error:
            log.warning("billing_silent", task_id=task.task_id, error=error.message)
            return task
        if hold.waiting:
            return await self._move(task, domain.wait)
        return await self._move(task, lambda at, now: _queue(at, hold, now))

    async def _move(self, task: Task, move: Callable[[Task, datetime], Task], *, refused: bool = False) -> Task:
        """Moves a start out of PENDING, unless something else did: a stop, another replica, another retry."""
        async with self._database.transaction() as tx:
            present = await store.get(tx.connection, task.task_id, lock=True)
            assert present is not None
            if present.state is not TaskState.PENDING or present.start_number != task.start_number:
                return present
            moved = await store.update(tx.connection, move(present, tx.now))
            if refused and present.former_state is not None:
                # A refused restart is where it was: nothing has ended that had not ended before.
                await _publish(tx, moved, events_pb2.TaskChanged(task=task_message(moved)))
            else:
                await _publish_change(tx, present, moved)
            return moved

    async def restart(
        self,
        request_id: str,
        task_id: str,
        *,
        from_scratch: bool,
        max_duration_ms: int | None,
        billing_mode: str | None = None,
        resource_group_id: str = "",
    ) -> Task:
        """A new start under a new hold.

        Args:
            billing_mode: None: that of before, with its resource group.

        Raises:
            FailedPreconditionError: naming the state, or the hold's refusal; MODEL_DELETED, of a model that the start
                would need. InvalidArgumentError: mode and group. ResourceExhaustedError: QUOTA_QUEUED.
        """
        async with self._database.transaction() as tx:
            task = await _owned(tx, task_id)
            if task.restart_request_id != request_id:
                if task.state not in domain.RESTARTABLE:
                    raise FailedPreconditionError(
                        "STATE_NOT_RESTARTABLE",
                        f"The task is {task.state}; only one that is STOPPED, FAILED or REFUSED can be restarted.",
                        state=task.state,
                    )
                await _check_quota(tx, task.account_id)
                form = task.form
                # A training that resumes has what it began with in its checkpoint.
                for model_id in filter(None, (form.model_id, form.base_model_id if from_scratch else "")):
                    if await deleted_models.is_deleted(tx.connection, model_id):
                        raise _model_deleted(model_id)
                if billing_mode is not None:
                    form = replace(form, billing_mode=billing_mode, resource_group_id=resource_group_id)
                    _check_billing(form)
                restarted = domain.restart(
                    task, request_id, form=form, from_scratch=from_scratch, max_duration_ms=max_duration_ms, now=tx.now
                )
                task = await store.update(tx.connection, restarted)
                await _publish(tx, task, events_pb2.TaskChanged(task=task_message(task)))
        return await self._start(task) if task.state is TaskState.PENDING else task

    # Ending

    async def stop(self, task_id: str) -> Task:
        """Asks for the stop; at rest, or while it is evaluated, there is nothing to stop."""
        async with self._database.transaction() as tx:
            task = await _owned(tx, task_id)
            if task.at_rest or task.state is TaskState.EVALUATING or task.stop_requested:
                return task
            if task.state in domain.UNQUEUED:
                stopped = domain.end_unqueued(task, TaskState.STOPPED, EndReason.STOPPED_BY_USER, "", tx.now)
                moved = await store.update(tx.connection, stopped)
                await _publish_change(tx, task, moved)
                return moved
            asked = await store.update(tx.connection, replace(task, stop_requested=True, updated_at=tx.now))
            await _publish(tx, asked, events_pb2.TaskStopRequested(task=task_message(asked)))
            return asked

    async def delete(self, task_id: str) -> Task:
        """Softly; again changes nothing. Raises FailedPreconditionError unless at rest."""
        async with self._database.transaction() as tx:
            task = await _owned(tx, task_id, also_deleted=True)
            if task.deleted_at is not None:
                return task
            if not task.at_rest:
                raise FailedPreconditionError(
                    "STATE_NOT_AT_REST", f"The task is {task.state}; stop it first.", state=task.state
                )
            deleted = await store.update(tx.connection, replace(task, deleted_at=tx.now, updated_at=tx.now))
            await _publish(tx, deleted, events_pb2.TaskDeleted(task=task_message(deleted)))
            return deleted

    # What others tell

    async def grant(self, task_id: str, start_number: int, hold: Hold) -> None:
        """A start has its hold: one that waited for it, or whose reply was lost."""
        await self._hear(
            task_id,
            start_number,
            lambda task, now: _queue(task, hold, now) if task.state in domain.UNQUEUED else task,
        )

    async def obey_stop(self, task_id: str, start_number: int, reason: EndReason) -> None:
        """Billing orders the stop of a start; here that of one without a run, since training stops the others."""

        def end(task: Task, now: datetime) -> Task:
            if task.state not in domain.UNQUEUED:
                return task
            return domain.end_unqueued(task, domain.END_STATES[reason], reason, "", now)

        await self._hear(task_id, start_number, end)

    async def follow_run(self, task_id: str, start_number: int, progress: Progress, *, running: bool) -> None:
        """A snapshot of a run."""
        await self._hear(
            task_id, start_number, lambda task, now: domain.follow(task, progress, running=running, now=now)
        )

    async def end_run(
        self, task_id: str, start_number: int, progress: Progress, reason: EndReason, model_id: str, message: str
    ) -> None:
        """The end of a run."""
        await self._hear(
            task_id,
            start_number,
            lambda task, now: domain.end_run(task, progress, reason, model_id, message, now),
        )

    async def end_evaluation(
        self, task_id: str, model_id: str, evaluation_id: str, test_accuracy: float | None, message: str
    ) -> None:
        """The end of an evaluation; one of an earlier start's model changes nothing."""
        await self._hear(
            task_id,
            None,
            lambda task, now: (
                domain.end_evaluation(task, evaluation_id, test_accuracy, message, now)
                if task.model_id == model_id
                else task
            ),
        )

    async def _hear(self, task_id: str, start_number: int | None, move: Callable[[Task, datetime], Task]) -> None:
        async with self._database.transaction() as tx:
            task = await store.get(tx.connection, task_id, lock=True)
            if task is None:
                raise NotFoundError("task", task_id)
            if start_number is not None and start_number != task.start_number:
                return
            moved = move(task, tx.now)
            if moved == task:
                return
            moved = await store.update(tx.connection, moved)
            await _publish_change(tx, task, moved)

    async def sweep(self) -> None:
        """Until cancelled: asks again for holds that were not answered, and ends what has waited too long."""
        while True:
            try:
                await self.sweep_once()
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, DomainError) as error:
                log.warning("sweep_failed", error=repr(error))
            await asyncio.sleep(SWEEP_S)

    async def sweep_once(self) -> None:
        """One round; several replicas may make it at once."""
        async with self._database.transaction() as tx:
            pending = await store.unsettled(tx.connection, TaskState.PENDING, tx.now - ASK_AGAIN_AFTER, SWEEP_BATCH)
            waiting = await store.unsettled(tx.connection, TaskState.WAITING, tx.now - WAITING_LIMIT, SWEEP_BATCH)
            unscored = await store.unsettled(
                tx.connection, TaskState.EVALUATING, tx.now - EVALUATING_LIMIT, SWEEP_BATCH
            )
        for task_id in pending:
            await self._ask_again(task_id)
        for task_id in waiting:
            await self._hear(task_id, None, _waited_for_capacity)
        for task_id in unscored:
            await self._hear(
                task_id, None, lambda task, now: domain.end_evaluation(task, "", None, UNSCORED_MESSAGE, now)
            )

    async def _ask_again(self, task_id: str) -> None:
        async with self._database.transaction() as tx:
            task = await store.get(tx.connection, task_id)
            now = tx.now
        assert task is not None
        if now - task.updated_at > PENDING_LIMIT:
            message = "Billing did not answer in time; restart the task."
            await self._move(
                task,
                lambda at, now: domain.end_unqueued(at, TaskState.FAILED, EndReason.WAITED_TOO_LONG, message, now),
            )
            return
        try:
            await self._start(task)
        except FailedPreconditionError as error:
            log.info("start_refused", task_id=task_id, reason=error.reason)

    # Reading

    async def quote(self, account_id: str, form: Form) -> tuple[Quote, Config, tuple[Derived, ...], int]:
        """What it would cost, and how long it would take in ms. Raises as create() does."""
        config, derived, quote, data = await self._plan(account_id, form)
        async with self._database.reading() as connection:
            paces = await store.paces(
                connection, form.region_id, form.spec_id, form.count, LOOKED_AT, predicts=bool(config.model_id)
            )
        return quote, config, derived, estimate_ms(form, config, data, quote.machine, paces)

    async def get(self, task_id: str) -> Task:
        """Raises NotFoundError for another account's too."""
        async with self._database.reading() as connection:
            task = await store.get(connection, task_id)
        if task is None or task.deleted_at is not None:
            raise NotFoundError("task", task_id)
        current().own("task", task_id, task.account_id)
        return task

    async def watch(self, task_id: str) -> AsyncIterator[Task]:
        """Snapshots, from the present one until the task is at rest."""
        seen = 0
        while True:
            task = await self.get(task_id)
            if task.revision > seen:
                seen = task.revision
                yield task
            if task.at_rest:
                return
            await asyncio.sleep(WATCH_POLL_S)

    async def list_tasks(
        self, account_id: str, *, states: Sequence[TaskState], after: tuple[datetime, str] | None, limit: int
    ) -> list[Task]:
        """Newest first."""
        async with self._database.reading() as connection:
            return await store.list_tasks(connection, account_id, states=states, after=after, limit=limit)

    async def name_exists(self, account_id: str, display_name: str) -> bool:
        """Among those not deleted."""
        async with self._database.reading() as connection:
            return await store.name_exists(connection, account_id, display_name)


def _check_billing(form: Form) -> None:
    if form.prepaid and not form.resource_group_id:
        raise InvalidArgumentError("RESOURCE_GROUP_REQUIRED", "resource_group_id: PREPAID takes capacity of one.")
    if form.resource_group_id and not form.prepaid:
        raise InvalidArgumentError("RESOURCE_GROUP_UNEXPECTED", "resource_group_id: only PREPAID takes one.")


def _queue(task: Task, hold: Hold, now: datetime) -> Task:
    return domain.queue(task, hold.amount_micros, hold.price_per_hour_micros, hold.currency, now)


def _waited_for_capacity(task: Task, now: datetime) -> Task:
    if task.state is not TaskState.WAITING:
        return task
    message = "The resource group had no free capacity in time; restart the task."
    return domain.end_unqueued(task, TaskState.FAILED, EndReason.WAITED_TOO_LONG, message, now)


def _refusal(task: Task) -> FailedPreconditionError:
    reason = "INSUFFICIENT_BALANCE" if task.missing_micros else "HOLD_REFUSED"
    return FailedPreconditionError(
        reason, task.error_message, task_id=task.task_id, missing_micros=task.missing_micros, state=task.state
    )


def _model_deleted(model_id: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "MODEL_DELETED", f"The model {model_id} was deleted; choose another one.", model_id=model_id
    )


async def _check_quota(tx: Transaction, account_id: str) -> None:
    """Before one more task waits. Raises ResourceExhaustedError."""
    limit = await store.lock_quota(tx.connection, account_id)
    if limit is None:
        return
    waiting = await store.count_waiting(tx.connection, account_id)
    if waiting >= limit:
        raise ResourceExhaustedError(
            "QUOTA_QUEUED",
            f"{waiting} of the account's tasks wait, and its quota is {limit}; try again when one has begun.",
            limit=limit,
        )


async def _owned(tx: Transaction, task_id: str, *, also_deleted: bool = False) -> Task:
    task = await store.get(tx.connection, task_id, lock=True)
    if task is None or (task.deleted_at is not None and not also_deleted):
        raise NotFoundError("task", task_id)
    current().own("task", task_id, task.account_id)
    return task


async def _publish_change(tx: Transaction, former: Task, task: Task) -> None:
    """The one event that says what a move is: at rest, queued, or another state or charge status."""
    message = task_message(task)
    if task.at_rest and not former.at_rest:
        await _publish(tx, task, events_pb2.TaskEnded(task=message))
    elif task.state is TaskState.QUEUED and former.state is not TaskState.QUEUED:
        await _publish(tx, task, events_pb2.TaskQueued(task=message))
    elif (task.state, task.charge_status) != (former.state, former.charge_status):
        await _publish(tx, task, events_pb2.TaskChanged(task=message))


async def _publish(tx: Transaction, task: Task, message: Message) -> None:
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, task.task_id, task.revision),
        message,
        account_id=task.account_id,
        work_id=task.task_id,
        resource_id=task.task_id,
    )
