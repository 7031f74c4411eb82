"""What nothing names is removed from the object store, days after; what may be asked for stays."""

from datetime import timedelta

import pytest

from saucer.lib.ids import new_id
from saucer.task.v1 import events_pb2 as task_events
from saucer.task.v1 import task_pb2
from saucer.training import consumers
from saucer.training.domain import Checkpoint, EndReason
from saucer.training.leftovers import remove_leftovers
from tests.support.events import event
from tests.support.training_lab import LEASE, SECOND, Lab, Worker

KEEP = timedelta(days=7)


async def keep_checkpoint(worker: Worker, iteration: int) -> str:
    """The worker's own place of checkpoints, told by a heartbeat."""
    key = f"{worker.leased.artifact_prefix}/checkpoints/checkpoint_{iteration}.pth"
    await worker.lab.objects.put(key, b"c")
    await worker.beat(iteration, checkpoint=Checkpoint(key, "s", iteration, 100))
    return key


async def left(lab: Lab, account_id: str) -> set[str]:
    return set(await lab.objects.keys(f"system/{account_id}"))


async def remove(lab: Lab) -> None:
    await remove_leftovers(lab.database, lab.objects, KEEP)


async def test_leftovers_of_lost_attempts_go_and_what_is_named_stays(lab: Lab) -> None:
    task_id, account_id = new_id(), new_id()
    await lab.queue(account_id, task_id=task_id)
    first = await lab.worker()
    await keep_checkpoint(first, 10)
    await first.files()
    lab.clock.advance(LEASE + SECOND)
    await lab.training.sweep(expire=True)
    second = await lab.worker()
    checkpoint = await keep_checkpoint(second, 20)
    model = {file.key for file in await second.files()}
    await lab.training.starts.order_stop(f"{task_id}-1", EndReason.STOPPED_BY_USER, 0)
    await second.finish(EndReason.STOPPED_BY_USER, files=await second.files())
    everything = await left(lab, account_id)
    lab.clock.advance(KEEP)
    await remove(lab)
    assert await left(lab, account_id) == everything, "not so soon"
    lab.clock.advance(SECOND)
    await remove(lab)
    assert await left(lab, account_id) == model | {checkpoint}, "the next start resumes from the checkpoint"

    await lab.queue(account_id, task_id=task_id, start_number=2)
    third = await lab.worker()
    lab.clock.advance(KEEP)
    await remove(lab)
    assert await left(lab, account_id) == model | {checkpoint}, "which it does"
    await keep_checkpoint(third, 30)
    await third.finish(EndReason.COMPLETED, files=await third.files())
    both = model | {file.key for file in await third.files()}
    lab.clock.advance(KEEP + SECOND)
    await remove(lab)
    assert await left(lab, account_id) == both, "a task that has succeeded is not started again"


async def delete(lab: Lab, account_id: str, task_id: str) -> None:
    """The task, as its service tells of it."""
    message = task_events.TaskDeleted(task=task_pb2.Task(task_id=task_id, account_id=account_id))
    handle = {handles.message: handles.handler for handles in consumers.handlers(lab.training)}
    await handle[task_events.TaskDeleted](event(message, "task", account_id, task_id, task_id), message)


async def stopped(lab: Lab, account_id: str, task_id: str) -> tuple[set[str], str]:
    """A task at rest, its user's model and the checkpoint that its next start goes on from."""
    await lab.queue(account_id, task_id=task_id)
    worker = await lab.worker()
    checkpoint = await keep_checkpoint(worker, 10)
    await lab.training.starts.order_stop(f"{task_id}-1", EndReason.STOPPED_BY_USER, 0)
    files = await worker.files()
    await worker.finish(EndReason.STOPPED_BY_USER, files=files)
    lab.clock.advance(KEEP + SECOND)
    return {file.key for file in files}, checkpoint


async def test_the_checkpoint_of_a_deleted_task_goes_and_its_model_stays(lab: Lab) -> None:
    task_id, account_id = new_id(), new_id()
    model, checkpoint = await stopped(lab, account_id, task_id)
    await remove(lab)
    assert await left(lab, account_id) == model | {checkpoint}
    await delete(lab, account_id, task_id)
    await remove(lab)
    assert await left(lab, account_id) == model


async def test_a_task_that_is_deleted_during_a_round_is_looked_at_in_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, account_id = new_id(), new_id()
    model, _ = await stopped(lab, account_id, task_id)
    keys = lab.objects.keys

    async def deleted_meanwhile(prefix: str) -> list[str]:
        await delete(lab, account_id, task_id)
        return await keys(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(lab.objects, "keys", deleted_meanwhile)
        await remove(lab)
    await remove(lab)
    assert await left(lab, account_id) == model


async def test_the_checkpoint_stays_where_the_max_duration_left_no_model(lab: Lab) -> None:
    account_id = new_id()
    await lab.queue(account_id)
    worker = await lab.worker()
    checkpoint = await keep_checkpoint(worker, 10)
    await worker.finish(EndReason.DURATION_REACHED)
    lab.clock.advance(KEEP + SECOND)
    await remove(lab)
    assert await left(lab, account_id) == {checkpoint}


async def test_a_checkpoint_stays_until_a_start_from_scratch_has_begun(lab: Lab) -> None:
    task_id, account_id = new_id(), new_id()
    await lab.queue(account_id, task_id=task_id)
    first = await lab.worker()
    checkpoint = await keep_checkpoint(first, 10)
    await first.finish(EndReason.FAILED, user_error=True)
    finishing = await lab.worker()
    await finishing.beat()
    await finishing.finish(EndReason.FAILED)
    await lab.queue(account_id, task_id=task_id, start_number=2, resume=False)
    await lab.training.starts.order_stop(f"{task_id}-2", EndReason.STOPPED_BY_USER, 0)
    lab.clock.advance(KEEP + SECOND)
    await remove(lab)
    assert await left(lab, account_id) == {checkpoint}, "nobody took the second start"
    await lab.queue(account_id, task_id=task_id, start_number=3, resume=False)
    third = await lab.worker()
    await third.beat()
    await third.finish(EndReason.FAILED, user_error=True)
    lab.clock.advance(KEEP + SECOND)
    await remove(lab)
    assert await left(lab, account_id) == set()


async def test_a_round_that_breaks_off_is_made_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    account_id = new_id()
    await lab.queue(account_id)
    worker = await lab.worker()
    await worker.beat()
    await worker.files()
    await worker.finish(EndReason.FAILED, user_error=True)
    lab.clock.advance(KEEP + SECOND)

    async def broken(key: str) -> None:
        raise OSError(key)

    with monkeypatch.context() as patch:
        patch.setattr(lab.objects, "delete", broken)
        with pytest.raises(OSError, match="attempt-1"):
            await remove(lab)
    await remove(lab)
    assert await left(lab, account_id) == set()
