"""A change of one task: its row locked, moved, written at the next revision, and told by one event."""

from collections.abc import Callable
from datetime import datetime

from google.protobuf.message import Message

from saucer.lib.auth import current
from saucer.lib.errors import AlreadyExistsError, NotFoundError
from saucer.lib.ids import derived_id
from saucer.lib.outbox import enqueue
from saucer.lib.postgres import Database, Transaction
from saucer.task import store
from saucer.task.domain import Action, Task, TaskState
from saucer.task.messages import task_message
from saucer.task.v1 import events_pb2

Move = Callable[[Task, datetime], Task]


async def change(database: Database, task_id: str, start_number: int | None, move: Move) -> None:
    """Moves a task, unless it is at another start by now; None: at whichever. Raises NotFoundError."""
    async with database.transaction() as tx:
        task = await store.get(tx.connection, task_id, lock=True)
        if task is None:
            raise NotFoundError("task", task_id)
        if start_number is not None and start_number != task.start_number:
            return
        moved = move(task, tx.now)
        if moved != task:
            await write(tx, task, moved)


async def write(tx: Transaction, former: Task, moved: Task) -> Task:
    """Stores a change, with the one event that says what it is: at rest, queued, or another state or charge status."""
    task = await store.update(tx.connection, moved)
    message = task_message(task)
    if task.at_rest and not former.at_rest:
        await publish(tx, task, events_pb2.TaskEnded(task=message))
    elif task.state is TaskState.QUEUED and former.state is not TaskState.QUEUED:
        await publish(tx, task, events_pb2.TaskQueued(task=message))
    elif (task.state, task.charge_status) != (former.state, former.charge_status):
        await publish(tx, task, events_pb2.TaskChanged(task=message))
    return task


async def publish(tx: Transaction, task: Task, message: Message) -> None:
    """An event of a task that is written, once for each of its revisions."""
    await enqueue(
        tx,
        derived_id(message.DESCRIPTOR.name, task.task_id, task.revision),
        message,
        account_id=task.account_id,
        work_id=task.task_id,
        resource_id=task.task_id,
    )


async def is_retry(tx: Transaction, task_id: str, action: Action, request_id: str) -> bool:
    """Whether a call with this request id has made this change before: it is not made again, however late the retry.

    Raises AlreadyExistsError: REQUEST_ID_USED, for another change.
    """
    made = await store.action_of(tx.connection, task_id, request_id)
    if made is not None and made is not action:
        raise AlreadyExistsError("REQUEST_ID_USED", "The request id was used for another change of the task.")
    return made is not None


async def owned(tx: Transaction, task_id: str, *, also_deleted: bool = False) -> Task:
    """The caller's, locked. Raises NotFoundError."""
    return shown(await store.get(tx.connection, task_id, lock=True), task_id, also_deleted=also_deleted)


def shown(task: Task | None, task_id: str, *, also_deleted: bool = False) -> Task:
    """What the caller may see. Raises NotFoundError for what there is not, is deleted, or is another account's."""
    if task is None or (task.deleted_at is not None and not also_deleted):
        raise NotFoundError("task", task_id)
    current().own("task", task_id, task.account_id)
    return task
