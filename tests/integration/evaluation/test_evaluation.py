"""Evaluation as it runs: a model's event in, figures at any threshold out, on real PostgreSQL, NATS and files."""

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from nats.js import JetStreamContext

from saucer.evaluation.main import EvaluationSettings, wire
from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1 import events_pb2 as evaluation_events
from saucer.lib.auth import Role
from saucer.lib.cloudevent import from_json
from saucer.lib.ids import derived_id, new_id
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.evaluation.world import World, a_world
from tests.support.events import event, publish, read_events
from tests.support.services import ServiceRunner, Tokens


async def test_a_models_event_becomes_figures_at_any_threshold(world: World) -> None:
    model = await world.model()
    await world.tell(model)
    told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED
    assert (told.images, told.boxes, told.bad_cases) == (2, 2, 1)
    assert told.map_50 == pytest.approx(0.5), "cup 1.0, plate 0.0"
    assert [entry.recommended_threshold for entry in told.classes] == [pytest.approx(0.7), 0.0]

    for threshold, precision, recall in ((0.5, 0.5, 0.5), (0.7, 1.0, 0.5), (0.95, None, 0.0)):
        request = evaluation_pb2.GetEvaluationRequest(evaluation_id=told.evaluation_id, threshold=threshold)
        at = await world.stub.GetEvaluation(request, metadata=world.viewer)
        assert (at.precision if at.HasField("precision") else None, at.recall) == (precision, recall)
        assert at.map_50 == told.map_50, "no threshold moves it"


async def test_bad_cases_say_what_is_wrong_and_read_images_only_when_asked(world: World) -> None:
    model = await world.model()
    await world.tell(model)
    told = await world.ended(model)
    request = evaluation_pb2.ListBadCasesRequest(evaluation_id=told.evaluation_id)
    plain = await world.stub.ListBadCases(request, metadata=world.viewer)
    (case,) = plain.bad_cases
    assert (case.image_id, case.image, plain.total_size) == (3, b"", 1)
    assert [fault.kind for fault in case.faults] == [evaluation_pb2.FAULT_KIND_CONFUSED]
    request.include_images = True
    (case,) = (await world.stub.ListBadCases(request, metadata=world.viewer)).bad_cases
    assert case.image == b"c"
    request.kinds.append(evaluation_pb2.FAULT_KIND_MISS)
    assert not (await world.stub.ListBadCases(request, metadata=world.viewer)).bad_cases


async def test_the_same_event_twice_is_one_evaluation(world: World) -> None:
    model = await world.model()
    await world.tell(model)
    await world.tell(model)
    await world.ended(model)
    response = await world.stub.ListEvaluations(evaluation_pb2.ListEvaluationsRequest(), metadata=world.viewer)
    assert [entry.model_id for entry in response.evaluations] == [model.model_id]


async def test_a_prediction_of_a_model_is_an_evaluation_beside_its_own(world: World) -> None:
    model = await world.model()
    await world.tell(model)
    own = await world.ended(model)
    prediction = training_pb2.Prediction(
        model_id=model.model_id,
        account_id=model.account_id,
        task_id=new_id(),
        run_id=new_id(),
        classes=model.classes,
        dataset_version_id=new_id(),
        manifest_key=model.manifest_key,
        manifest_sha256=model.manifest_sha256,
        image_prefix=model.image_prefix,
        files=model.files,
    )
    ended = training_events.RunEnded(prediction=prediction)
    told = event(ended, "training", world.account_id, prediction.task_id, prediction.run_id)
    await publish(world.jetstream, told)
    await publish(world.jetstream, replace(told, event_id=new_id()))
    subject = f"saucer.evaluation.v1.EvaluationEnded.{world.account_id}.{prediction.task_id}.>"
    (found,) = await read_events(world.jetstream, subject, count=1, timeout_s=40)
    again = from_json(found.data, evaluation_events.EvaluationEnded()).evaluation
    assert (own.by_prediction, again.by_prediction) == (False, True)
    assert (again.model_id, again.map_50, again.classes) == (own.model_id, own.map_50, own.classes)
    request = evaluation_pb2.ListEvaluationsRequest(model_id=model.model_id)
    listed = await world.stub.ListEvaluations(request, metadata=world.viewer)
    assert [entry.evaluation_id for entry in listed.evaluations] == [again.evaluation_id, own.evaluation_id]


@pytest.mark.parametrize("spoilt", ["missing", "cut", "unlisted"])
async def test_what_cannot_be_scored_ends_in_a_failure_that_says_why(world: World, spoilt: str) -> None:
    model = await world.model()
    if spoilt == "missing":
        await world.objects.delete(model.files[0].key)
    elif spoilt == "cut":
        await world.objects.put(model.files[0].key, b"cut")
    else:
        del model.files[0]
    await world.tell(model)
    told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_FAILED
    assert "detections_test.npz" in told.error_message
    request = evaluation_pb2.GetPrecisionRecallCurvesRequest(evaluation_id=told.evaluation_id)
    with pytest.raises(grpc.aio.AioRpcError, match="FAILED") as refusal:
        await world.stub.GetPrecisionRecallCurves(request, metadata=world.viewer)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_another_accounts_evaluation_does_not_exist(world: World) -> None:
    model = await world.model()
    await world.tell(model)
    told = await world.ended(model)
    stranger = world.tokens.metadata(Role.OWNER, new_id())
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.stub.GetEvaluation(
            evaluation_pb2.GetEvaluationRequest(evaluation_id=told.evaluation_id), metadata=stranger
        )
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_two_replicas_score_once_and_one_that_starts_later_answers_too(
    run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, tmp_path: Path
) -> None:
    url, database_url = f"file://{tmp_path}/objects", await run_service.new_database()
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(
                run_service("evaluation", EvaluationSettings, wire, object_store_url=url, database_url=database_url)
            )
            for _ in range(2)
        ]
        worlds = [a_world(replica, url, tokens, jetstream) for replica in replicas]
        worlds[1].account_id = worlds[0].account_id
        model = await worlds[0].model()
        await worlds[0].tell(model)
        told = await worlds[0].ended(model)
        assert told.evaluation_id == derived_id("evaluation", model.model_id)
        for world in worlds:
            request = evaluation_pb2.GetEvaluationRequest(evaluation_id=told.evaluation_id)
            assert (await world.stub.GetEvaluation(request, metadata=world.viewer)).map_50 == told.map_50
    state = (await jetstream.stream_info("SAUCER", subjects_filter="saucer.evaluation.>")).state
    assert sum((state.subjects or {}).values()) == 1
