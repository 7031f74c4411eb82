"""Runs from their start to their end, on real PostgreSQL, with a clock that the test moves."""

import asyncio
from datetime import timedelta

import pytest

from saucer.lib.errors import FailedPreconditionError
from saucer.lib.ids import derived_id, new_id
from saucer.training import service
from saucer.training.bell import Bell
from saucer.training.domain import BACK_OFF, FINISH_QUEUE_LIMIT, MAX_ATTEMPTS, QUEUE_LIMIT, EndReason, RunState
from saucer.training.service import Training
from tests.support.training_lab import LEASE, SECOND, Lab


async def test_a_run_waits_charges_progresses_and_ends(lab: Lab) -> None:
    run_id = await lab.queue()
    lab.clock.advance(timedelta(hours=1))
    worker = await lab.worker()
    for second in range(70):
        run = await worker.beat(second)
        lab.clock.advance(SECOND)
    assert run.meter.charged_ms == 69_000
    run = await worker.finish(files=await worker.files())
    assert (run.state, run.end_reason, run.model_id) == (
        RunState.ENDED,
        EndReason.COMPLETED,
        derived_id("model", run_id),
    )
    assert await lab.told(run_id) == ["RunQueued", "RunStarted", "RunProgressed", "RunEnded"]
    copies = await lab.objects.keys(f"accounts/{run.request.account_id}")
    assert copies == [
        f"{run.request.output_prefix}/{run.request.task_id}/{run.model_id}/{name}"
        for name in ("model.json", "model.onnx")
    ]


async def test_a_lost_run_is_queued_again_and_the_gap_is_not_charged(lab: Lab) -> None:
    run_id = await lab.queue()
    first = await lab.worker()
    await first.beat(1)
    lab.clock.advance(5 * SECOND)
    await first.beat(20, checkpoint=10)
    lab.clock.advance(LEASE)
    await lab.training.sweep(expire=True)
    assert (await lab.run(run_id)).state is RunState.RUNNING, "its lease ends now, it is not over"
    lab.clock.advance(SECOND)
    await lab.training.sweep(expire=False)
    assert (await lab.run(run_id)).state is RunState.RUNNING, "nobody could have prolonged it"
    await lab.training.sweep(expire=True)
    assert (await lab.run(run_id)).state is RunState.QUEUED
    with pytest.raises(FailedPreconditionError, match="nobody's") as zombie:
        await first.beat(21)
    assert zombie.value.reason == "LEASE_LOST"

    lab.clock.advance(100 * SECOND)
    second = await lab.worker()
    assert second.leased.attempt == 2
    assert second.leased.checkpoint is not None
    assert second.leased.checkpoint.key.endswith("attempt-1/c10")
    for iteration in (10, 20, 21, 30):
        run = await second.beat(iteration)
        lab.clock.advance(SECOND)
    assert run.meter.charged_ms == 6_000, "5 s of the first, and of the second only what came after iteration 20"
    for attempt_of_the_zombie in (first.beat(22), first.finish()):
        with pytest.raises(FailedPreconditionError):
            await attempt_of_the_zombie
    assert await lab.told(run_id) == ["RunQueued", "RunStarted", "RunInterrupted", "RunProgressed"]


async def test_a_finish_with_a_lost_reply_gets_the_same_answer_again(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    request_id, files = new_id(), await worker.files()
    answers = [await worker.finish(request_id=request_id, files=files) for _ in range(2)]
    assert answers[0] == answers[1]
    with pytest.raises(FailedPreconditionError):
        await worker.finish(files=files)
    assert (await lab.told(run_id)).count("RunEnded") == 1


async def test_a_run_whose_stop_came_first_ends_at_once(lab: Lab) -> None:
    task_id = new_id()
    await lab.training.starts.order_stop(f"{task_id}-1", EndReason.STOPPED_BY_USER, 0)
    run = await lab.run(await lab.queue(task_id=task_id))
    assert (run.state, run.end_reason) == (RunState.ENDED, EndReason.STOPPED_BY_USER)
    assert await lab.told(run.run_id) == ["RunQueued", "RunEnded"]
    assert await lab.take() is None


async def test_a_stop_and_a_start_at_once_lose_nothing(lab: Lab) -> None:
    for _ in range(20):
        task_id = new_id()
        run_id, _ = await asyncio.gather(
            lab.queue(task_id=task_id), lab.training.starts.order_stop(f"{task_id}-1", EndReason.ARREARS, 0)
        )
        assert (await lab.run(run_id)).end_reason is EndReason.ARREARS


async def test_a_stop_reaches_the_worker_with_its_next_heartbeat(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    hold_id = (await lab.run(run_id)).request.hold_id
    await lab.training.starts.order_stop(hold_id, EndReason.ARREARS, 0)
    run = await worker.beat(2)
    assert (run.must_stop, run.stop_reason) == (True, EndReason.ARREARS)
    assert run.lease is not None
    assert run.lease.finish_by is not None
    run = await worker.finish(EndReason.ARREARS, files=await worker.files())
    assert (run.end_reason, run.model_id is not None) == (EndReason.ARREARS, True)


async def test_a_restart_from_scratch_begins_without_the_former_runs_checkpoint_and_time(lab: Lab) -> None:
    task_id, account_id = new_id(), new_id()
    await lab.queue(account_id, task_id=task_id)
    worker = await lab.worker()
    await worker.beat(50, checkpoint=40)
    await worker.finish(EndReason.COMPLETED, files=await worker.files())
    run_id = await lab.queue(account_id, task_id=task_id, start_number=2, resume=False)
    assert (await lab.run(run_id)).checkpoint is None
    begun = await (await lab.worker()).beat(1)
    assert (begun.progress.elapsed_ms, begun.progress.best_accuracy) == (100, None)
    assert begun.meter.caught_up, "it is charged from its beginning"


async def test_a_restart_goes_on_from_the_former_runs_checkpoint(lab: Lab) -> None:
    task_id, account_id = new_id(), new_id()
    await lab.queue(account_id, task_id=task_id)
    worker = await lab.worker()
    await worker.beat(20, checkpoint=20)
    await lab.training.starts.order_stop(f"{task_id}-1", EndReason.STOPPED_BY_USER, 0)
    await worker.finish(EndReason.STOPPED_BY_USER)
    await lab.queue(account_id, task_id=task_id, start_number=2)
    second = (await lab.worker()).leased
    assert second.checkpoint is not None
    assert (second.attempt, second.checkpoint.iteration, second.checkpoint.elapsed_ms) == (1, 20, 2_000)
    assert second.checkpoint.key.endswith("attempt-1/c20")


@pytest.mark.parametrize("resume", [False, True])
async def test_a_start_that_never_ran_does_not_hide_the_checkpoint_of_the_one_before(lab: Lab, resume: bool) -> None:
    task_id, account_id = new_id(), new_id()
    await lab.queue(account_id, task_id=task_id)
    worker = await lab.worker()
    await worker.beat(20, checkpoint=20)
    await lab.training.starts.order_stop(f"{task_id}-1", EndReason.STOPPED_BY_USER, 0)
    await worker.finish(EndReason.STOPPED_BY_USER)
    second = await lab.queue(account_id, task_id=task_id, start_number=2, resume=resume)
    await lab.training.starts.order_stop(f"{task_id}-2", EndReason.STOPPED_BY_USER, 0)
    assert (await lab.run(second)).state is RunState.ENDED
    third = await lab.run(await lab.queue(account_id, task_id=task_id, start_number=3))
    assert third.checkpoint is not None
    assert third.checkpoint.key.endswith("attempt-1/c20")


async def test_waiting_ends_with_a_typed_reason(lab: Lab) -> None:
    forgotten, stopped = await lab.queue(), await lab.queue()
    worker = await lab.worker()
    await worker.beat(checkpoint=1)
    taken = worker.leased.run_id
    forgotten, stopped = (forgotten, stopped) if taken == stopped else (stopped, forgotten)
    await worker.finish(EndReason.FAILED)
    await lab.training.starts.order_stop((await lab.run(stopped)).request.hold_id, EndReason.BUDGET_REACHED, 0)
    lab.clock.advance(FINISH_QUEUE_LIMIT + SECOND)
    await lab.training.sweep(expire=True)
    assert (await lab.run(stopped)).end_reason is EndReason.BUDGET_REACHED
    assert (await lab.run(forgotten)).state is RunState.QUEUED
    lab.clock.advance(QUEUE_LIMIT)
    await lab.training.sweep(expire=True)
    assert (await lab.run(forgotten)).end_reason is EndReason.WAITED_TOO_LONG


async def test_runs_with_hours_left_to_wait_do_not_keep_others_from_their_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SWEEP_BATCH", 2)
    ended = []
    for number in range(6):
        run_id = await lab.queue()
        worker = await lab.worker()
        for _ in range(MAX_ATTEMPTS if number == 5 else 1):
            await worker.beat(checkpoint=1)
            await worker.finish(EndReason.FAILED)
            lab.clock.advance(BACK_OFF[-1] + SECOND)
            worker = await lab.worker()
        # Given back before it began: it waits since it was lost.
        await worker.finish(released=True)
        hold_id = (await lab.run(run_id)).request.hold_id
        if number == 3:
            await lab.training.starts.order_stop(hold_id, EndReason.ARREARS, 3_600_000)
        if number == 4:
            await lab.training.starts.order_stop(hold_id, EndReason.STOPPED_BY_USER, 0)
        ended.append(run_id)
        async with lab.database.reading() as connection:
            await connection.execute("UPDATE run SET ready_at = $1", lab.clock.time + QUEUE_LIMIT)
    lab.clock.advance(FINISH_QUEUE_LIMIT + SECOND)
    await lab.training.sweep(expire=True)
    reasons = [(await lab.run(run_id)).end_reason for run_id in ended]
    assert reasons == [None, None, None, None, EndReason.STOPPED_BY_USER, EndReason.FAILED]


async def test_two_sweepers_at_once_interrupt_once(lab: Lab) -> None:
    runs = [await lab.queue() for _ in range(10)]
    for _ in runs:
        await (await lab.worker()).beat()
    lab.clock.advance(LEASE + SECOND)
    other = Training(lab.database, lab.objects, Bell())
    await asyncio.gather(*(sweeper.sweep(expire=True) for sweeper in (lab.training, other) * 3))
    for run_id in runs:
        assert (await lab.run(run_id)).lost_attempts == 1
        assert (await lab.told(run_id)).count("RunInterrupted") == 1
