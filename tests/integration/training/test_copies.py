"""What a user finds below their own prefix is what the run was ended with, whatever else happens meanwhile."""

import asyncio
from collections.abc import Sequence

import pytest

from saucer.lib.errors import FailedPreconditionError, UnavailableError
from saucer.lib.ids import new_id
from saucer.lib.objects import Objects
from saucer.training import artifacts
from saucer.training.copies import CLAIM, make_due
from saucer.training.domain import ModelFile, Run, RunState
from saucer.training.leftovers import remove_deleted_models
from tests.integration.training.test_deleted_models import KEEP, be, model_of
from tests.support.training_lab import LEASE, SECOND, Lab, Worker


async def files(worker: Worker, content: bytes) -> list[ModelFile]:
    """The files of an attempt, told apart by their content."""
    made = []
    for name in ("model.onnx", "model.json"):
        key = f"{worker.leased.artifact_prefix}/{name}"
        made.append(ModelFile(name, key, len(content), await worker.lab.objects.put(key, content)))
    return made


async def copies(lab: Lab, run: Run) -> dict[str, bytes]:
    """The user's, by name."""
    keys = await lab.objects.keys(f"{run.request.output_prefix}/{run.request.task_id}")
    return {key.rpartition("/")[2]: await lab.objects.get(key) for key in keys}


def fail(monkeypatch: pytest.MonkeyPatch, lab: Lab, times: int) -> None:
    """The object store copies nothing for the next times."""
    copy, left = lab.objects.copy, times

    async def maybe(source: str, target: str) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise UnavailableError("STORE_UNAVAILABLE", "Not now.")
        await copy(source, target)

    monkeypatch.setattr(lab.objects, "copy", maybe)


async def test_late_files_of_an_attempt_that_lost_its_run_never_reach_the_user(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await lab.queue()
    first = await lab.worker()
    await first.beat()
    reached, proceed = asyncio.Event(), asyncio.Event()
    verify = artifacts.verify

    async def slow_for_the_first(objects: Objects, files: Sequence[ModelFile]) -> None:
        await verify(objects, files)
        if "/attempt-1/" in files[0].key:
            reached.set()
            await proceed.wait()

    monkeypatch.setattr(artifacts, "verify", slow_for_the_first)
    finishing = asyncio.ensure_future(first.finish(files=await files(first, b"late")))
    await asyncio.wait_for(reached.wait(), 10)
    lab.clock.advance(LEASE + SECOND)
    await lab.training.sweep(expire=True)
    second = await lab.worker()
    await second.beat()
    await second.finish(files=await files(second, b"accepted"))
    proceed.set()
    with pytest.raises(FailedPreconditionError):
        await finishing
    run = await lab.run(run_id)
    assert await copies(lab, run) == {"model.onnx": b"accepted", "model.json": b"accepted"}


async def test_copies_that_the_store_refused_are_made_later_once_and_the_run_has_ended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    fail(monkeypatch, lab, times=2)
    request_id, made = new_id(), await files(worker, b"m")
    run = await worker.finish(request_id=request_id, files=made)
    assert run.state is RunState.ENDED
    assert await worker.finish(request_id=request_id, files=made) == run
    assert not await make_due(lab.database, lab.objects), "whoever finishes it may still be at it"
    lab.clock.advance(CLAIM + SECOND)
    with pytest.raises(UnavailableError):
        await make_due(lab.database, lab.objects)
    assert await copies(lab, run) == {}
    lab.clock.advance(CLAIM + SECOND)
    assert await make_due(lab.database, lab.objects)
    assert await copies(lab, run) == {"model.onnx": b"m", "model.json": b"m"}
    lab.clock.advance(CLAIM + SECOND)
    assert not await make_due(lab.database, lab.objects)


async def test_one_that_cannot_be_copied_keeps_no_other_waiting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    fail(monkeypatch, lab, times=3)
    for _ in range(2):
        await lab.queue()
        worker = await lab.worker()
        await worker.beat()
        ended.append(await worker.finish(files=await files(worker, b"m")))
        lab.clock.advance(SECOND)
    lab.clock.advance(CLAIM + SECOND)
    with pytest.raises(UnavailableError):
        await make_due(lab.database, lab.objects)
    assert await make_due(lab.database, lab.objects)
    assert [len(await copies(lab, run)) for run in ended] == [0, 2]


async def test_the_files_of_a_deleted_model_stay_until_its_user_has_the_copies(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.queue()
    worker = await lab.worker()
    await worker.beat()
    fail(monkeypatch, lab, times=1)
    run = await worker.finish(files=await files(worker, b"m"))
    be(run.request.account_id)
    await lab.training.models.delete(model_of(run))
    for copied in (False, True):
        lab.clock.advance(KEEP + SECOND)
        await remove_deleted_models(lab.database, lab.objects, KEEP)
        assert await lab.objects.exists(worker.leased.artifact_prefix + "/model.onnx") is not copied
        await make_due(lab.database, lab.objects)
    assert len(await copies(lab, run)) == 2
