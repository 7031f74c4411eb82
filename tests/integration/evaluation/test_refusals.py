"""What cannot be scored or answered says so."""

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from saucer.evaluation.scoring import NOTHING_TO_SCORE
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.auth import Role
from saucer.lib.ids import new_id
from saucer.serving.detections import Detections
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.evaluation.generated_model import stored_model
from tests.integration.evaluation.world import CATEGORIES, IMAGE, Start, World, at, detections, scored
from tests.support.events import event, publish
from tests.support.training import refusal


async def test_results_that_were_changed_in_the_store_are_refused(start: Start) -> None:
    async with start(cache_bytes=0) as world:
        _, told = await scored(world)
        (key,) = [key for key in await world.objects.keys(f"system/{world.account_id}/evaluations") if "scored" in key]
        await world.objects.put(key, b"other")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await at(world, told.evaluation_id, 0.3)
        assert refusal.value.code() is grpc.StatusCode.DATA_LOSS


LABEL = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1, 1, 2, 2]}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"images": [], "annotations": [], "categories": CATEGORIES}, NOTHING_TO_SCORE),
        ([], "Expected `object`"),
        ({"images": 5, "annotations": [], "categories": CATEGORIES}, "$.images"),
        ({"images": [None], "annotations": [], "categories": CATEGORIES}, "$.images[0]"),
        ({"images": [IMAGE | {"id": [1]}], "annotations": [], "categories": CATEGORIES}, "$.images[0].id"),
        ({"images": [IMAGE], "annotations": [LABEL | {"bbox": 3}], "categories": CATEGORIES}, "$.annotations[0].bbox"),
        ({"images": [IMAGE], "annotations": [LABEL | {"category_id": 9}], "categories": CATEGORIES}, "category 9"),
        ({"images": [IMAGE | {"id": 7}], "annotations": [], "categories": CATEGORIES}, "images are not in both"),
    ],
)
async def test_labels_that_cannot_be_scored_end_in_a_sentence_and_the_next_model_is_scored(
    world: World, document: Any, says: str
) -> None:
    files = {
        "detections_test.npz": detections([1], [1], [0.5]).to_bytes(),
        "detections_validation.npz": Detections.collect([], []).to_bytes(),
    }
    model = await stored_model(world.objects, world.account_id, document, ["cup"], files)
    await world.tell(model)
    told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_FAILED
    assert says in told.error_message
    assert (told.images, told.HasField("map_50")) == (0, False)
    await scored(world)


async def test_an_empty_validation_split_recommends_no_threshold(world: World) -> None:
    document = {"images": [IMAGE], "annotations": [LABEL], "categories": CATEGORIES}
    files = {
        "detections_test.npz": detections([1], [1], [0.5]).to_bytes(),
        "detections_validation.npz": Detections.collect([], []).to_bytes(),
    }
    model = await stored_model(world.objects, world.account_id, document, ["cup"], files)
    await world.tell(model)
    told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED, told.error_message
    assert not told.HasField("recommended_threshold")


async def test_a_run_without_a_model_is_no_evaluation(world: World) -> None:
    run = training_pb2.Run(run_id=new_id(), account_id=world.account_id, task_id=new_id())
    without = event(training_events.RunEnded(run=run), "training", world.account_id, run.task_id, run.run_id)
    await publish(world.jetstream, without)
    _, told = await scored(world)  # events are taken in order, so the other one has been
    listed = await world.stub.ListEvaluations(evaluation_pb2.ListEvaluationsRequest(), metadata=world.viewer)
    assert [entry.evaluation_id for entry in listed.evaluations] == [told.evaluation_id]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
async def test_a_threshold_that_is_no_score_is_refused(world: World, threshold: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="threshold") as refusal:
        await at(world, new_id(), threshold)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [({"class_name": "fork"}, "CLASS_UNKNOWN"), ({"min_score": 0.9, "max_score": 0.2}, "SCORE_RANGE_EMPTY")],
)
async def test_a_list_of_what_cannot_be_is_refused_and_not_empty(
    world: World, wanted: dict[str, Any], reason: str
) -> None:
    _, told = await scored(world)
    stub, asked = world.stub, {"evaluation_id": told.evaluation_id} | wanted
    calls: list[Any] = [
        stub.ListBadCases(evaluation_pb2.ListBadCasesRequest(**asked), metadata=world.viewer),
        stub.ExportBadCases(evaluation_pb2.ExportBadCasesRequest(**asked), metadata=world.viewer).read(),
    ]
    if "class_name" in wanted:
        sheet = evaluation_pb2.DrawEvaluationRequest(kind=evaluation_pb2.PICTURE_KIND_BAD_CASES, **asked)
        calls += [
            stub.ListTestImages(evaluation_pb2.ListTestImagesRequest(**asked), metadata=world.viewer),
            stub.DrawEvaluation(sheet, metadata=world.viewer),
        ]
    for call in calls:
        error = await refusal(call)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", reason)


async def test_no_call_shows_another_account_that_an_evaluation_exists(world: World) -> None:
    _, told = await scored(world)
    stranger = world.tokens.metadata(Role.OWNER, new_id())
    stub, evaluation_id = world.stub, told.evaluation_id
    calls: tuple[tuple[Any, Message], ...] = (
        (stub.GetEvaluation, evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id)),
        (
            stub.GetPrecisionRecallCurves,
            evaluation_pb2.GetPrecisionRecallCurvesRequest(evaluation_id=evaluation_id),
        ),
        (stub.GetConfusionMatrix, evaluation_pb2.GetConfusionMatrixRequest(evaluation_id=evaluation_id)),
        (stub.RecommendThresholds, evaluation_pb2.RecommendThresholdsRequest(evaluation_id=evaluation_id)),
        (stub.ListBadCases, evaluation_pb2.ListBadCasesRequest(evaluation_id=evaluation_id)),
        (stub.ListSuspectedLabels, evaluation_pb2.ListSuspectedLabelsRequest(evaluation_id=evaluation_id)),
        (stub.GetScoreHistograms, evaluation_pb2.GetScoreHistogramsRequest(evaluation_id=evaluation_id)),
        (stub.ListTestImages, evaluation_pb2.ListTestImagesRequest(evaluation_id=evaluation_id)),
        (
            stub.CompareEvaluations,
            evaluation_pb2.CompareEvaluationsRequest(evaluation_id=evaluation_id, base_evaluation_id=evaluation_id),
        ),
        (stub.ListEvaluations, evaluation_pb2.ListEvaluationsRequest(account_id=world.account_id)),
    )
    for call, request in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(request, metadata=stranger)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    mine = await stub.ListEvaluations(evaluation_pb2.ListEvaluationsRequest(), metadata=stranger)
    assert not mine.evaluations
