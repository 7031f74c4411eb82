"""Models are deleted softly, unless a deployment serves them; their files go days after, unless something uses them."""

from datetime import timedelta

import pytest

from saucer.lib.auth import Principal, Role, set_current
from saucer.lib.cloudevent import to_json
from saucer.lib.errors import FailedPreconditionError, NotFoundError
from saucer.lib.ids import new_id
from saucer.publishing.v1 import events_pb2 as publishing_events
from saucer.publishing.v1 import publishing_pb2
from saucer.training import consumers
from saucer.training.bell import Bell
from saucer.training.domain import Run, RunStage
from saucer.training.leftovers import remove_deleted_models, remove_leftovers
from saucer.training.service.reading import Reading
from saucer.training.v1 import training_pb2
from tests.integration.training.test_predictions import DETECTIONS, trained
from tests.support.events import event
from tests.support.training_lab import SECOND, Lab

KEEP = timedelta(days=7)
ACTIVE, STOPPED = publishing_pb2.DEPLOYMENT_STATE_ACTIVE, publishing_pb2.DEPLOYMENT_STATE_STOPPED


def model_of(run: Run) -> str:
    assert run.model_id is not None
    return run.model_id


def be(account_id: str) -> None:
    """The caller of what follows is an editor of the account's."""
    set_current(Principal("tester", Role.EDITOR, account_id, "t", float("inf")))


async def model(lab: Lab) -> Run:
    """A run that left one; its account's editor is the caller."""
    run = await trained(lab)
    be(run.request.account_id)
    return run


async def told_of(lab: Lab, model_id: str) -> list[str]:
    async with lab.database.reading() as connection:
        rows = await connection.fetch("SELECT type FROM outbox WHERE resource = $1", model_id)
    return [row["type"] for row in rows]


class Served:
    """A deployment, as publishing tells of it."""

    def __init__(self, lab: Lab, model_id: str) -> None:
        self._handlers = {handles.event_type: handles.handler for handles in consumers.handlers(lab.training)}
        self.deployment = publishing_pb2.Deployment(deployment_id=new_id(), model_id=model_id, state=ACTIVE, revision=1)

    async def tell(self, kind: type, **changes: object) -> None:
        self.deployment.MergeFrom(publishing_pb2.Deployment(**changes))  # type: ignore[arg-type]  # whatever a test sets
        message = kind(deployment=self.deployment)
        sent = event(message, "publishing", new_id(), self.deployment.deployment_id, self.deployment.deployment_id)
        await self._handlers[message.DESCRIPTOR.full_name](sent, message)


async def test_a_deleted_model_is_gone_from_reads_and_told_once_however_often_it_is_deleted(lab: Lab) -> None:
    run = await model(lab)
    model_id = model_of(run)
    reading = Reading(lab.database, lab.objects, Bell())
    deleted = await lab.training.models.delete(model_id)
    lab.clock.advance(SECOND)
    assert await lab.training.models.delete(model_id) == deleted
    assert (deleted.revision, deleted.deleted_at) == (2, lab.clock.time - SECOND)
    assert await told_of(lab, model_id) == ["saucer.training.v1.ModelDeleted"]
    with pytest.raises(NotFoundError):
        await reading.get_model(model_id)
    with pytest.raises(NotFoundError):
        await anext(reading.read_file(model_id, "model.onnx"))
    listed = await reading.list_models(run.request.account_id, task_id=None, after=None, limit=10)
    assert [each.model_id for each in listed] == []


async def test_another_accounts_model_is_not_there_to_be_deleted(lab: Lab) -> None:
    model_id = model_of(await model(lab))
    be(new_id())
    with pytest.raises(NotFoundError):
        await lab.training.models.delete(model_id)
    assert await told_of(lab, model_id) == []


async def test_a_model_that_a_deployment_serves_or_may_serve_is_not_deleted_until_it_is_at_rest(lab: Lab) -> None:
    old, new = model_of(await trained(lab)), model_of(await model(lab))
    served = Served(lab, old)
    await served.tell(publishing_events.DeploymentCreated)
    candidate = publishing_pb2.Candidate(version=publishing_pb2.Version(model_id=new))
    await served.tell(publishing_events.DeploymentChanged, candidate=candidate, revision=5)
    with pytest.raises(FailedPreconditionError, match=served.deployment.deployment_id) as refused:
        await lab.training.models.delete(new)
    assert refused.value.reason == "MODEL_SERVED"

    await served.tell(publishing_events.DeploymentEnded, state=STOPPED, revision=9)
    await served.tell(publishing_events.DeploymentProgressed, state=ACTIVE, revision=6)
    assert (await lab.training.models.delete(new)).deleted_at, "an older word changes nothing"


async def test_the_files_of_a_deleted_model_go_days_after_and_nothing_else_does(lab: Lab) -> None:
    run = await model(lab)
    kept = await trained(lab)
    be(run.request.account_id)
    await lab.training.models.delete(model_of(run))
    there = set(await lab.objects.keys("system")) | set(await lab.objects.keys("accounts"))
    lab.clock.advance(KEEP)
    await remove_deleted_models(lab.database, lab.objects, KEEP)
    assert set(await lab.objects.keys("system")) | set(await lab.objects.keys("accounts")) == there, "not so soon"
    lab.clock.advance(SECOND)
    await remove_leftovers(lab.database, lab.objects, KEEP)
    await remove_deleted_models(lab.database, lab.objects, KEEP)
    left = set(await lab.objects.keys("system")) | set(await lab.objects.keys("accounts"))
    assert there - left == {f"{run.artifact_prefix}/{name}" for name in ("model.onnx", "model.json")}
    assert any(key.startswith(kept.artifact_prefix) for key in left)
    assert any(key.startswith(f"accounts/{run.request.account_id}/outputs") for key in left), "the user's own stay"


async def test_files_stay_while_a_run_predicts_with_them_or_a_deployment_serves_them(lab: Lab) -> None:
    run = await model(lab)
    model_id = model_of(run)
    await lab.queue(run.request.account_id, predicts_model_id=model_id)
    worker = await lab.worker()
    await worker.beat(stage=RunStage.PREDICTING)
    await lab.training.models.delete(model_id)
    assert await lab.training.leases.served_files(worker.leased), "what was asked for before goes on"
    # It was created in the moment of the deletion.
    served = Served(lab, model_id)
    await served.tell(publishing_events.DeploymentCreated)

    async def files() -> list[str]:
        async with lab.database.transaction() as tx:
            await tx.connection.execute(
                "UPDATE model SET deleted_at = $2 WHERE model_id = $1", model_id, tx.now - KEEP - SECOND
            )
        await remove_deleted_models(lab.database, lab.objects, KEEP)
        return await lab.objects.keys(run.artifact_prefix)

    assert await files()
    await served.tell(publishing_events.DeploymentEnded, state=STOPPED, revision=2)
    assert await files()
    await worker.finish(files=await worker.files(DETECTIONS))
    assert await files() == []


async def test_files_stay_while_a_run_is_to_begin_with_their_weights(lab: Lab) -> None:
    run = await model(lab)
    weights = next(key for key in await lab.objects.keys(run.artifact_prefix) if key.endswith("model.onnx"))
    config = to_json(training_pb2.TrainingConfig(weights_key=weights)).decode()
    await lab.queue(run.request.account_id, config=config)
    await lab.training.models.delete(model_of(run))
    lab.clock.advance(KEEP + SECOND)
    worker = await lab.worker()
    await remove_deleted_models(lab.database, lab.objects, KEEP)
    assert await lab.objects.keys(run.artifact_prefix)
    await worker.beat(stage=RunStage.PREDICTING)
    await worker.finish(files=await worker.files())
    await remove_deleted_models(lab.database, lab.objects, KEEP)
    assert await lab.objects.keys(run.artifact_prefix) == []
