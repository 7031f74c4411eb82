"""Starts of tasks: created, restarted, asked for again.

1. The form is checked against data, scene and spec: these calls read, and nothing is stored if they refuse.
2. The task is stored PENDING, with its id and so its hold's id, before money is asked for: a retry asks with the same.
3. Billing freezes two hours, or refuses. The answer moves the task to QUEUED, or to REFUSED (a restart: back).
4. If billing does not answer, the task stays PENDING; ask_again() repeats step 3, and after a limit ends the task,
   whose TaskEnded makes billing bury the hold's id.
"""

from dataclasses import replace
from datetime import datetime, timedelta

import asyncpg
import structlog

from saucer.lib import deleted_models
from saucer.lib.errors import (
    REFUSALS,
    AlreadyExistsError,
    DomainError,
    FailedPreconditionError,
    ResourceExhaustedError,
)
from saucer.lib.postgres import Database, Transaction
from saucer.task import domain, store
from saucer.task.domain import Action, ChargeStatus, EndReason, Form, Progress, Task, TaskState
from saucer.task.messages import task_message
from saucer.task.peers import Hold, Peers
from saucer.task.service.changes import Move, is_retry, owned, publish, write
from saucer.task.service.planning import Plan, Planning, check_billing, model_deleted
from saucer.task.v1 import events_pb2

# A task that is PENDING for longer ends: FAILED, waited too long.
PENDING_LIMIT = timedelta(minutes=15)

log = structlog.get_logger()


class Starts:
    """From a form, or a task at rest, to a hold."""

    def __init__(self, database: Database, peers: Peers, planning: Planning) -> None:
        self._database = database
        self._peers = peers
        self._planning = planning

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
            plan = await self._planning.plan(account_id, form)
            former = await self._insert(request_id, account_id, task_id, form, plan)
        if former.form != form:
            raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another task.")
        if former.state is TaskState.REFUSED:
            raise _refusal(former)
        return await self._start(former) if former.state is TaskState.PENDING else former

    async def _insert(
        self,
        request_id: str,
        account_id: str,
        task_id: str,
        form: Form,
        plan: Plan,
    ) -> Task:
        try:
            async with self._database.transaction() as tx:
                task = Task(
                    task_id=task_id,
                    account_id=account_id,
                    request_id=request_id,
                    form=form,
                    config=plan.config,
                    derived=tuple((note.field, note.value, note.reason) for note in plan.derived),
                    state=TaskState.PENDING,
                    former_state=None,
                    former=None,
                    charge_status=ChargeStatus.NOT_BILLING,
                    start_number=1,
                    restart_request_id=None,
                    hold_micros=0,
                    price_per_hour_micros=plan.quote.price_per_hour_micros,
                    currency=plan.quote.currency,
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
                    await publish(tx, task, events_pb2.TaskCreated(task=task_message(task)))
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
        return await self._move(task, lambda at, now: queue(at, hold, now))

    async def _move(self, task: Task, move: Move, *, refused: bool = False) -> Task:
        """Moves a start out of PENDING, unless something else did: a stop, another replica, another retry."""
        async with self._database.transaction() as tx:
            present = await store.get(tx.connection, task.task_id, lock=True)
            assert present is not None
            if present.state is not TaskState.PENDING or present.start_number != task.start_number:
                return present
            moved = move(present, tx.now)
            if not refused or present.former_state is None:
                return await write(tx, present, moved)
            # A refused restart is where it was: nothing has ended that had not ended before.
            moved = await store.update(tx.connection, moved)
            await publish(tx, moved, events_pb2.TaskChanged(task=task_message(moved)))
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
        """A new start under a new hold. A retry starts nothing, however late: it answers as the task is, or repeats the
        refusal of the hold if no other start was asked for since.

        Args:
            billing_mode: None: that of before, with its resource group unless another is named.

        Raises:
            FailedPreconditionError: naming the state, or the hold's refusal; MODEL_DELETED, of a model that the start
                would need. InvalidArgumentError: mode and group. ResourceExhaustedError: QUOTA_QUEUED.
            AlreadyExistsError: REQUEST_ID_USED.
        """
        async with self._database.transaction() as tx:
            task = await owned(tx, task_id)
            retried = await is_retry(tx, task_id, Action.RESTARTED, request_id)
            if not retried:
                if task.state not in domain.RESTARTABLE:
                    raise FailedPreconditionError(
                        "STATE_NOT_RESTARTABLE",
                        f"The task is {task.state}; only one that is STOPPED, FAILED or REFUSED can be restarted.",
                        state=task.state,
                    )
                await _check_quota(tx, task.account_id)
                form = task.form
                if billing_mode is not None or resource_group_id:
                    mode = billing_mode or form.billing_mode
                    form = replace(form, billing_mode=mode, resource_group_id=resource_group_id)
                    check_billing(form)
                restarted = domain.restart(
                    task, request_id, form=form, from_scratch=from_scratch, max_duration_ms=max_duration_ms, now=tx.now
                )
                for model_id in restarted.needed_models:
                    if await deleted_models.is_deleted(tx.connection, model_id):
                        raise model_deleted(model_id)
                await store.insert_change(tx.connection, task_id, request_id, Action.RESTARTED)
                task = await store.update(tx.connection, restarted)
                await publish(tx, task, events_pb2.TaskChanged(task=task_message(task)))
        if retried and task.restart_request_id != request_id:
            return task
        if task.refused:
            raise _refusal(task)
        return await self._start(task) if task.state is TaskState.PENDING else task

    async def ask_again(self, task_id: str) -> None:
        """Of a task that is PENDING; one that has been for too long ends."""
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


def queue(task: Task, hold: Hold, now: datetime) -> Task:
    """Its hold is granted."""
    return domain.queue(task, hold.amount_micros, hold.price_per_hour_micros, hold.currency, now)


def _refusal(task: Task) -> FailedPreconditionError:
    reason = "INSUFFICIENT_BALANCE" if task.missing_micros else "HOLD_REFUSED"
    return FailedPreconditionError(
        reason, task.error_message, task_id=task.task_id, missing_micros=task.missing_micros, state=task.state
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
