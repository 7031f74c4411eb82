"""What evaluation answers is what the pure functions say of the same labels and detections."""

from dataclasses import fields

import asyncpg
import grpc
import numpy as np
import pytest

from saucer.evaluation import service, stored
from saucer.evaluation.bad_cases import bad_cases
from saucer.evaluation.confusion import confusion_matrix
from saucer.evaluation.domain import CocoNumbers
from saucer.evaluation.recommending import Recommender
from saucer.evaluation.thinning import Thinner
from saucer.evaluation.v1 import evaluation_pb2
from saucer.serving.detections import Detections
from tests.integration.evaluation.generated_model import Answers, stored_model
from tests.integration.evaluation.world import (
    CATEGORIES,
    IMAGE,
    SEED,
    Start,
    World,
    at,
    ratios,
    ratios_of,
    scored,
    value,
)

THRESHOLDS = (0.0, 0.3, 0.5, 0.77, 1.0)


def check_figures(found: evaluation_pb2.Evaluation, pure: Answers, threshold: float) -> None:
    curves, coco = pure.curves, pure.coco
    assert found.threshold == threshold
    assert (value(found, "map"), value(found, "map_50")) == (coco.map, coco.map_50)
    assert (value(found, "map_weighted"), value(found, "map_50_weighted")) == (coco.map_weighted, coco.map_50_weighted)
    for field in fields(CocoNumbers):
        assert value(found.coco, field.name) == getattr(coco, field.name)
    assert value(found, "map_50_above_threshold") == curves.map_50_above_threshold(threshold)
    assert ratios(found) == ratios_of(curves.overall(threshold))
    assert found.bad_cases == bad_cases(pure.scored, threshold).image_ids().size
    assert found.images == pure.truth.images.size
    assert found.boxes == sum(coco.support)
    for label, (entry, counts) in enumerate(zip(found.classes, curves.per_class(threshold), strict=True)):
        assert ratios(entry) == ratios_of(counts)
        assert (value(entry, "ap"), value(entry, "ap_50")) == (coco.ap[label], coco.ap_50[label])
        assert (entry.class_name, entry.boxes) == (pure.truth.classes[label], counts.truths)
        assert (entry.true_positives, entry.false_positives) == (counts.true_positives, counts.false_positives)
        assert entry.misses == counts.false_negatives


@pytest.mark.parametrize("seed", [1, 3, SEED])
async def test_figures_are_those_of_the_pure_functions_at_any_threshold(world: World, seed: int) -> None:
    model, told = await scored(world, seed)
    check_figures(told, model.test, 0.5)
    for threshold in THRESHOLDS:
        check_figures(await at(world, told.evaluation_id, threshold), model.test, threshold)
    chosen = Recommender(model.validation.curves, len(told.classes)).best_f1()
    assert value(told, "recommended_threshold") == chosen[None]
    assert [value(entry, "recommended_threshold") for entry in told.classes] == [
        chosen[label] for label in range(len(told.classes))
    ]


def averages(found: evaluation_pb2.Evaluation) -> dict[str, float | None]:
    """All that no threshold moves: COCO's twelve numbers, the weighted ones and those of each class."""
    coco = {name: value(found, name) for name in ("map", "map_50")}
    coco |= {field.name: value(found.coco, field.name) for field in fields(CocoNumbers)}
    assert len(coco) == 12
    weighted = {name: value(found, name) for name in ("map_weighted", "map_50_weighted")}
    of_classes = {
        f"{name} {entry.class_name}": value(entry, name) for entry in found.classes for name in ("ap", "ap_50")
    }
    return coco | weighted | of_classes


async def test_moving_the_threshold_moves_precision_and_recall_and_no_average_precision(world: World) -> None:
    _, told = await scored(world)
    served = [await at(world, told.evaluation_id, threshold) for threshold in THRESHOLDS]
    moved = {(ratios(found), value(found, "map_50_above_threshold")) for found in served}
    assert len(moved) >= 4, "other detections are above most of these thresholds"
    for found in served:
        assert averages(found) == averages(told)


async def test_without_a_threshold_it_is_one_half_and_equal_in_event_list_and_answer(world: World) -> None:
    _, told = await scored(world)
    request = evaluation_pb2.ListEvaluationsRequest(task_id=told.task_id)
    listed = await world.stub.ListEvaluations(request, metadata=world.viewer)
    assert list(listed.evaluations) == [told]
    assert await at(world, told.evaluation_id, None) == told
    assert told.threshold == 0.5


async def test_evaluations_are_listed_newest_first_page_by_page_and_by_model(world: World) -> None:
    models = []
    for _ in range(3):
        models.append(await world.model())
        await world.tell(models[-1])
        await world.ended(models[-1])
    request = evaluation_pb2.ListEvaluationsRequest(page_size=2)
    first = await world.stub.ListEvaluations(request, metadata=world.viewer)
    request.page_token = first.next_page_token
    second = await world.stub.ListEvaluations(request, metadata=world.viewer)
    listed = [entry.model_id for entry in [*first.evaluations, *second.evaluations]]
    assert listed == [model.model_id for model in reversed(models)]
    assert second.next_page_token == ""
    request = evaluation_pb2.ListEvaluationsRequest(model_id=models[0].model_id)
    (only,) = (await world.stub.ListEvaluations(request, metadata=world.viewer)).evaluations
    assert only.model_id == models[0].model_id


async def test_a_page_of_evaluations_ends_before_it_has_too_many_classes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (SEED, SEED, 3, SEED):
        await scored(world, seed)
    whole = (
        await world.stub.ListEvaluations(evaluation_pb2.ListEvaluationsRequest(), metadata=world.viewer)
    ).evaluations
    classes = [len(entry.classes) for entry in whole]
    assert min(classes) > 1
    for most, places in (
        (sum(classes[:2]), [2, 2]),
        (sum(classes[:3]) - 1, [2, 2]),
        (sum(classes[:3]), [3, 1]),
        (1, [1] * 4),
    ):
        monkeypatch.setattr(service, "PAGE_CLASSES", most)
        pages = []
        request = evaluation_pb2.ListEvaluationsRequest()
        while True:
            page = await world.stub.ListEvaluations(request, metadata=world.viewer)
            pages.append(list(page.evaluations))
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        assert [entry for page in pages for entry in page] == list(whole)
        assert [len(page) for page in pages] == places


@pytest.mark.parametrize("max_points", [0, 1, 2, 7])
async def test_curves_are_thinned_to_what_is_asked_for(world: World, max_points: int) -> None:
    model, told = await scored(world)
    request = evaluation_pb2.GetPrecisionRecallCurvesRequest(evaluation_id=told.evaluation_id, max_points=max_points)
    curves = (await world.stub.GetPrecisionRecallCurves(request, metadata=world.viewer)).curves
    for label, curve in enumerate(curves):
        most = max(2, max_points or 100)
        [thinned] = Thinner([model.test.curves.points(label)], most).thin(most)
        points = thinned.points
        assert curve.max_error == thinned.max_error
        assert [point.threshold for point in curve.points] == points.threshold.tolist()
        assert [point.recall for point in curve.points] == points.recall.tolist()
        assert [point.precision for point in curve.points] == points.precision.tolist()
        assert value(curve, "ap_50") == model.test.coco.ap_50[label]
    assert [curve.class_name for curve in curves] == list(model.test.truth.classes)


async def long_curve(world: World) -> str:
    """An evaluation of one class, whose curve has a point of each of 1,000 scores; its id."""
    corners = [(x, y) for x in range(0, 400, 10) for y in range(0, 250, 10)]
    labels = [
        {"id": number, "image_id": 1, "category_id": 0, "bbox": [x, y, 8, 8]}
        for number, (x, y) in enumerate(corners[::2], 1)
    ]
    found = Detections(
        images=np.array([1]),
        image_id=np.full(len(corners), 1),
        box=np.array([(x, y, x + 8, y + 8) for x, y in corners], np.float32),
        score=np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, len(corners), dtype=np.float32)),
        label=np.zeros(len(corners), np.int32),
    )
    files = {
        "detections_test.npz": found.to_bytes(),
        "detections_validation.npz": Detections.collect([], []).to_bytes(),
    }
    image = IMAGE | {"width": 400, "height": 250}
    document = {"images": [image], "annotations": labels, "categories": CATEGORIES}
    model = await stored_model(world.objects, world.account_id, document, ["cup"], files)
    await world.tell(model)
    told = await world.ended(model)
    assert told.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED, told.error_message
    return told.evaluation_id


async def curve_of(world: World, evaluation_id: str, max_points: int) -> evaluation_pb2.PrecisionRecallCurve:
    request = evaluation_pb2.GetPrecisionRecallCurvesRequest(evaluation_id=evaluation_id, max_points=max_points)
    (curve,) = (await world.stub.GetPrecisionRecallCurves(request, metadata=world.viewer)).curves
    return curve


async def test_a_long_curve_has_100_points_unless_asked_otherwise_and_never_more_than_a_message_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation_id = await long_curve(world)
    asked = {most: await curve_of(world, evaluation_id, most) for most in (0, 200, 5000)}
    assert (len(asked[0].points), len(asked[200].points)) == (100, 200)
    assert len(asked[5000].points) > 400
    assert asked[0].max_error > asked[200].max_error > asked[5000].max_error == 0
    monkeypatch.setattr(stored, "MOST_POINTS", 150)
    capped = await curve_of(world, evaluation_id, 5000)
    assert len(capped.points) == 150
    assert capped.max_error > asked[200].max_error


@pytest.mark.parametrize("threshold", [None, 0.3])
async def test_the_confusion_matrix_is_that_of_the_pure_function(world: World, threshold: float | None) -> None:
    model, told = await scored(world)
    request = evaluation_pb2.GetConfusionMatrixRequest(evaluation_id=told.evaluation_id, threshold=threshold)
    found = await world.stub.GetConfusionMatrix(request, metadata=world.viewer)
    at_threshold = 0.5 if threshold is None else threshold
    assert found.threshold == at_threshold
    assert [list(row.boxes) for row in found.rows] == confusion_matrix(model.test.scored, at_threshold).tolist()
    assert list(found.class_names) == list(model.test.truth.classes)


async def recommended_by(
    world: World, evaluation_id: str, **wanted: float
) -> list[evaluation_pb2.ThresholdRecommendation]:
    request = evaluation_pb2.RecommendThresholdsRequest(evaluation_id=evaluation_id, **wanted)
    return list((await world.stub.RecommendThresholds(request, metadata=world.viewer)).recommendations)


async def test_thresholds_are_chosen_on_the_validation_split_and_told_of_the_test_split(world: World) -> None:
    model, told = await scored(world)
    best = await recommended_by(world, told.evaluation_id)
    assert [entry.class_name for entry in best] == ["", *model.test.truth.classes]
    chosen = Recommender(model.validation.curves, len(told.classes)).best_f1()
    assert [value(entry, "threshold") for entry in best] == list(chosen.values())
    for label, entry in zip((None, *range(len(told.classes))), best, strict=True):
        if entry.HasField("threshold"):
            counts = model.test.curves.at(label, entry.threshold)
            assert ratios(entry.test) == ratios_of(counts)
            assert (entry.test.true_positives, entry.test.misses) == (counts.true_positives, counts.false_negatives)
            assert ratios(entry.validation) == ratios_of(model.validation.curves.at(label, entry.threshold))
            assert not entry.validation.HasField("precision_interval")
            assert not entry.validation.HasField("recall_interval")
            if counts.truths:
                assert entry.test.recall_interval.low <= entry.test.recall <= entry.test.recall_interval.high
    every = await recommended_by(world, told.evaluation_id, precision=0.4, recall=0.2)
    goals = [evaluation_pb2.ThresholdGoal.Name(entry.goal) for entry in every[:3]]
    assert goals == ["THRESHOLD_GOAL_BEST_F1", "THRESHOLD_GOAL_PRECISION", "THRESHOLD_GOAL_RECALL"]
    assert all((entry.validation.recall or 1) >= 0.2 for entry in every[2::3] if entry.HasField("threshold"))
    assert len(every) == 3 * len(best)


async def test_an_evaluation_made_before_the_validation_split_was_kept_says_so(start: Start) -> None:
    async with start(cache_bytes=0) as world:
        _, told = await scored(world)
        connection = await asyncpg.connect(start.database_url)
        try:
            await connection.execute("UPDATE evaluation SET validation_sha256 = ''")
        finally:
            await connection.close()
        with pytest.raises(grpc.aio.AioRpcError, match="before the validation split was kept") as refusal:
            await recommended_by(world, told.evaluation_id)
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await at(world, told.evaluation_id, 0.3)).images == told.images


async def test_score_histograms_are_overall_and_by_class(world: World) -> None:
    model, told = await scored(world)
    request = evaluation_pb2.GetScoreHistogramsRequest(evaluation_id=told.evaluation_id, bins=4)
    whole, *classes = (await world.stub.GetScoreHistograms(request, metadata=world.viewer)).histograms
    assert list(whole.edges) == [0, 0.25, 0.5, 0.75, 1]
    at_half = model.test.curves.overall(0.5)
    assert (sum(whole.true_positives[2:]), sum(whole.false_positives[2:])) == (
        at_half.true_positives,
        at_half.false_positives,
    )
    assert [histogram.class_name for histogram in classes] == list(model.test.truth.classes)


async def test_without_room_in_memory_it_answers_all_the_same(start: Start) -> None:
    async with start(cache_bytes=0) as world:
        model, told = await scored(world)
        check_figures(await at(world, told.evaluation_id, 0.3), model.test, 0.3)
