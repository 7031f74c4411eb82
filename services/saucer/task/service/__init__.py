"""The use cases of tasks, by what they are about, and the only place that opens their transactions."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from saucer.lib import deleted_models
from saucer.lib.errors import FailedPreconditionError
from saucer.lib.postgres import Database
from saucer.task import domain, store
from saucer.task.domain import Action, EndReason, Evaluated, KnownModel, Progress, Task, TaskState
from saucer.task.estimating import Pace
from saucer.task.messages import task_message
from saucer.task.peers import Hold, Peers
from saucer.task.scenes import Scene
from saucer.task.service.changes import change, is_retry, owned, publish, shown, write
from saucer.task.service.planning import Planning, model_deleted
from saucer.task.service.starts import Starts, queue
from saucer.task.v1 import events_pb2

# A task that is PENDING for longer asks billing again.
ASK_AGAIN_AFTER = timedelta(seconds=2)
# A task that waits for capacity for longer ends: FAILED, waited too long.
WAITING_LIMIT = timedelta(days=7)
# A task whose evaluation does not end within this is at rest without one.
EVALUATING_LIMIT = timedelta(hours=1)
UNSCORED_MESSAGE = "The evaluation did not end in time; the model is usable."
SWEEP_S = 1.0
SWEEP_BATCH = 100
# Between two looks of a watcher.
WATCH_POLL_S = 0.5


class Tasks:
    """AutoML jobs, from form to result."""

    def __init__(
        self, database: Database, peers: Peers, scenes: Mapping[str, Scene], *, fetches_weights: bool = False
    ) -> None:
        self._database = database
        self.scenes = scenes
        self.planning = Planning(database, peers, scenes, fetches_weights=fetches_weights)
        self.starts = Starts(database, peers, self.planning)

    # Ending

    async def stop(self, request_id: str, task_id: str) -> Task:
        """Asks for the stop; at rest, while it is evaluated, or with the request id of a former stop, nothing changes.

        Raises NotFoundError, AlreadyExistsError: REQUEST_ID_USED.
        """
        async with self._database.transaction() as tx:
            task = await owned(tx, task_id)
            if await is_retry(tx, task_id, Action.STOPPED, request_id):
                return task
            # Also where there is nothing to stop: its retry may find another start.
            await store.insert_change(tx.connection, task_id, request_id, Action.STOPPED)
            if task.state in domain.UNQUEUED:
                stopped = domain.end_unqueued(task, TaskState.STOPPED, EndReason.STOPPED_BY_USER, "", tx.now)
                return await write(tx, task, stopped)
            if task.at_rest or task.state is TaskState.EVALUATING or task.stop_requested:
                return task
            asked = await store.update(tx.connection, replace(task, stop_requested=True, updated_at=tx.now))
            await publish(tx, asked, events_pb2.TaskStopRequested(task=task_message(asked)))
            return asked

    async def delete(self, task_id: str) -> Task:
        """Softly; again changes nothing. Raises FailedPreconditionError unless at rest."""
        async with self._database.transaction() as tx:
            task = await owned(tx, task_id, also_deleted=True)
            if task.deleted_at is not None:
                return task
            if not task.at_rest:
                raise FailedPreconditionError(
                    "STATE_NOT_AT_REST", f"The task is {task.state}; stop it first.", state=task.state
                )
            deleted = await store.update(tx.connection, replace(task, deleted_at=tx.now, updated_at=tx.now))
            await publish(tx, deleted, events_pb2.TaskDeleted(task=task_message(deleted)))
            return deleted

    # What others tell

    async def grant(self, task_id: str, start_number: int, hold: Hold) -> None:
        """A start has its hold: one that waited for it, or whose reply was lost."""
        await change(
            self._database,
            task_id,
            start_number,
            lambda task, now: queue(task, hold, now) if task.state in domain.UNQUEUED else task,
        )

    async def obey_stop(self, task_id: str, start_number: int, reason: EndReason) -> None:
        """Billing orders the stop of a start; here that of one without a run, since training stops the others."""

        def end(task: Task, now: datetime) -> Task:
            if task.state not in domain.UNQUEUED:
                return task
            return domain.end_unqueued(task, domain.END_STATES[reason], reason, "", now)

        await change(self._database, task_id, start_number, end)

    async def follow_run(
        self, task_id: str, start_number: int, progress: Progress, *, running: bool, charged: bool, begun: bool
    ) -> None:
        """A snapshot of a run; `running`, `charged` and `begun` as domain.follow() has them."""
        await change(
            self._database,
            task_id,
            start_number,
            lambda task, now: domain.follow(task, progress, running=running, charged=charged, begun=begun, now=now),
        )

    async def end_run(
        self,
        task_id: str,
        start_number: int,
        progress: Progress,
        reason: EndReason,
        model_id: str,
        message: str,
        *,
        begun: bool,
    ) -> None:
        """The end of a run; `begun` as domain.follow() has it."""
        await change(
            self._database,
            task_id,
            start_number,
            lambda task, now: domain.end_run(task, progress, reason, model_id, message, begun=begun, now=now),
        )

    async def end_evaluation(self, task_id: str, evaluated: Evaluated) -> None:
        """The end of an evaluation; one of an earlier start's run changes nothing."""
        await change(self._database, task_id, None, lambda task, now: domain.hear_evaluation(task, evaluated, now))

    async def set_quota(self, account_id: str, queued: int | None, revision: int) -> None:
        """How many tasks may wait, as billing tells it; an older word than what is known changes nothing."""
        async with self._database.transaction() as tx:
            await store.put_quota(tx.connection, account_id, queued, revision)

    async def meet_model(self, model: KnownModel) -> None:
        """A run has left it; again changes nothing."""
        async with self._database.transaction() as tx:
            await store.insert_model(tx.connection, model)

    async def forget_model(self, model_id: str) -> None:
        """It was deleted, and nothing begins with it any more; what has a run finds its files still there."""
        async with self._database.transaction() as tx:
            await deleted_models.mark_deleted(tx.connection, model_id)
            waiting = await store.unqueued_naming_model(tx.connection, model_id)
        for task_id in waiting:
            await change(self._database, task_id, None, lambda task, now: _without_model(task, model_id, now))

    async def learn_pace(self, pace: Pace, *, predicts: bool) -> None:
        """A run took so long that trains or only predicts; again changes nothing."""
        async with self._database.transaction() as tx:
            await store.insert_pace(tx.connection, pace, predicts=predicts)

    # Limits

    async def sweep_once(self) -> None:
        """Asks again for holds that were not answered, and ends what has waited too long.

        Several replicas may make a round at once.
        """
        async with self._database.transaction() as tx:
            pending = await store.unsettled(tx.connection, TaskState.PENDING, tx.now - ASK_AGAIN_AFTER, SWEEP_BATCH)
            waiting = await store.unsettled(tx.connection, TaskState.WAITING, tx.now - WAITING_LIMIT, SWEEP_BATCH)
            unscored = await store.unsettled(
                tx.connection, TaskState.EVALUATING, tx.now - EVALUATING_LIMIT, SWEEP_BATCH
            )
        for task_id in pending:
            await self.starts.ask_again(task_id)
        for task_id in waiting:
            await change(self._database, task_id, None, _waited_for_capacity)
        for task_id in unscored:
            await change(
                self._database,
                task_id,
                None,
                lambda task, now: domain.end_evaluation(task, "", None, UNSCORED_MESSAGE, now),
            )

    # Reading

    async def get(self, task_id: str) -> Task:
        """Raises NotFoundError for another account's too."""
        async with self._database.reading() as connection:
            return shown(await store.get(connection, task_id), task_id)

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


def _waited_for_capacity(task: Task, now: datetime) -> Task:
    if task.state is not TaskState.WAITING:
        return task
    message = "The resource group had no free capacity in time; restart the task."
    return domain.end_unqueued(task, TaskState.FAILED, EndReason.WAITED_TOO_LONG, message, now)


def _without_model(task: Task, model_id: str, now: datetime) -> Task:
    if task.state not in domain.UNQUEUED or model_id not in task.needed_models:
        return task
    return domain.end_unqueued(task, TaskState.FAILED, EndReason.FAILED, model_deleted(model_id).message, now)
