"""Attempts that end badly: how many there are, and what is left of them."""

import pytest

from saucer.lib.errors import DomainError
from saucer.lib.ids import new_id
from saucer.training.domain import BACK_OFF, MAX_ATTEMPTS, EndReason, ModelFile, Run, RunStage, RunState
from tests.support.training_lab import LEASE, SECOND, Lab


async def test_the_attempts_are_limited_and_the_last_only_finishes_uncharged(lab: Lab) -> None:
    run_id = await lab.queue()
    for _ in range(MAX_ATTEMPTS):
        worker = await lab.worker()
        assert not worker.leased.finish_only
        await worker.beat(1)
        lab.clock.advance(SECOND)
        await worker.beat(20, checkpoint=10)
        await worker.finish(EndReason.FAILED)
        lab.clock.advance(BACK_OFF[-1])
    charged_ms = (await lab.run(run_id)).meter.charged_ms
    worker = await lab.worker()
    assert worker.leased.finish_only
    for _ in range(5):
        await worker.beat(20, stage=RunStage.EXPORTING)
        lab.clock.advance(SECOND)
    run = await worker.finish(EndReason.FAILED, files=await worker.files())
    assert (run.end_reason, run.error_message) == (EndReason.FAILED, "it broke")
    assert run.model_id is not None
    assert run.meter.charged_ms == charged_ms


async def test_a_users_error_ends_the_run_at_once(lab: Lab) -> None:
    await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    run = await worker.finish(EndReason.FAILED, user_error=True)
    assert (run.state, run.error_message, run.model_id) == (RunState.ENDED, "it broke", None)


async def fail_by_user(lab: Lab) -> Run:
    """A run that the user's settings ended after its first checkpoint."""
    await lab.queue()
    worker = await lab.worker()
    await worker.beat(10, checkpoint=10)
    lab.clock.advance(SECOND)
    await worker.beat(11)
    run = await worker.finish(EndReason.FAILED, user_error=True, error_message="The loss became nan.")
    assert (run.state, run.finish_only, run.meter.charged_ms) == (RunState.QUEUED, True, 1_000)
    return run


async def test_what_was_learnt_before_a_users_error_becomes_a_model_uncharged(lab: Lab) -> None:
    failed = await fail_by_user(lab)
    worker = await lab.worker()
    assert worker.leased.checkpoint == failed.checkpoint
    for share in (0.0, 0.5, 1.0):
        await worker.beat(10, stage=RunStage.EXPORTING, share=share)
        lab.clock.advance(SECOND)
    run = await worker.finish(EndReason.FAILED, files=await worker.files(), error_message="")
    assert (run.state, run.end_reason) == (RunState.ENDED, EndReason.FAILED)
    assert (run.error_message, run.meter.charged_ms) == ("The loss became nan.", 1_000)
    assert run.model_id is not None
    assert await lab.told(run.run_id) == [
        *("RunQueued", "RunStarted", "RunInterrupted", "RunProgressed", "RunEnded"),
    ]


async def test_a_users_error_while_that_model_is_made_ends_the_run_without_one(lab: Lab) -> None:
    await fail_by_user(lab)
    worker = await lab.worker()
    await worker.beat(10, stage=RunStage.EXPORTING)
    run = await worker.finish(EndReason.FAILED, user_error=True, error_message="It does not fit into memory.")
    assert (run.state, run.end_reason, run.model_id) == (RunState.ENDED, EndReason.FAILED, None)
    assert run.error_message == "It does not fit into memory."
    assert await lab.take() is None


async def test_a_worker_lost_while_that_model_is_made_ends_the_run_with_the_users_message(lab: Lab) -> None:
    failed = await fail_by_user(lab)
    for released in (True, False):
        worker = await lab.worker()
        await worker.beat(10, stage=RunStage.EXPORTING)
        if released:
            await worker.finish(EndReason.FAILED, released=True)
    lab.clock.advance(LEASE + SECOND)
    await lab.training.sweep(expire=True)
    run = await lab.run(failed.run_id)
    assert (run.state, run.end_reason, run.model_id) == (RunState.ENDED, EndReason.FAILED, None)
    assert run.error_message == "The loss became nan."


async def test_a_users_error_after_an_order_to_stop_leaves_the_order_its_reason(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    await worker.beat(10, checkpoint=10)
    hold_id = (await lab.run(run_id)).request.hold_id
    await lab.training.starts.order_stop(hold_id, EndReason.STOPPED_BY_USER, 0)
    await worker.beat(10, stage=RunStage.EXPORTING)
    await worker.finish(EndReason.FAILED, user_error=True)
    worker = await lab.worker()
    await worker.beat(10, stage=RunStage.EXPORTING)
    run = await worker.finish(EndReason.STOPPED_BY_USER, files=await worker.files())
    assert (run.end_reason, run.error_message) == (EndReason.STOPPED_BY_USER, "")
    assert run.model_id is not None


async def test_a_released_run_is_free_at_once_and_the_release_may_be_repeated(lab: Lab) -> None:
    run_id = await lab.queue()
    for _ in range(MAX_ATTEMPTS + 2):
        worker = await lab.worker()
        await worker.beat(checkpoint=1)
        request_id = new_id()
        for _ in range(2):
            run = await worker.finish(EndReason.FAILED, request_id=request_id, released=True)
        assert (run.state, run.lost_attempts) == (RunState.QUEUED, 0)
    assert (await lab.told(run_id)).count("RunInterrupted") == MAX_ATTEMPTS + 2


async def test_a_file_that_is_not_what_was_reported_ends_nothing(lab: Lab) -> None:
    run_id = await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    good = await worker.files()
    await lab.objects.put(f"accounts/{new_id()}/model.onnx", b"x")
    wrong = [
        [good[0]],
        [*good, good[0]],
        [*good, ModelFile("evil.sh", f"{worker.leased.artifact_prefix}/evil.sh", 1, "0" * 64)],
        [good[0], ModelFile("model.json", f"{worker.leased.artifact_prefix}/../model.json", 1, "0" * 64)],
        [good[0], ModelFile("model.json", good[1].key, good[1].size_bytes, "0" * 64)],
        [good[0], ModelFile("model.json", good[1].key, good[1].size_bytes + 1, good[1].sha256)],
        [*good, ModelFile("report.json", f"{worker.leased.artifact_prefix}/report.json", 1, "0" * 64)],
    ]
    reasons = []
    for files in wrong:
        with pytest.raises(DomainError) as refusal:
            await worker.finish(files=files)
        reasons.append(refusal.value.reason)
    assert reasons == [
        "FILE_NAMES",
        "FILE_NAMES",
        "FILE_NAMES",
        "KEY_OUTSIDE_ATTEMPT",
        "CHECKSUM_MISMATCH",
        "SIZE_MISMATCH",
        "ARTIFACT_MISSING",
    ]
    assert (await lab.run(run_id)).state is RunState.RUNNING
