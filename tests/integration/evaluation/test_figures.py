"""What evaluation answers is what the pure functions say of the same labels and detections."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from nats.js import JetStreamContext

from saucer.evaluation import service, stored
from saucer.evaluation.bad_cases import FaultKind, bad_cases
from saucer.evaluation.confusion import confusion_matrix
from saucer.evaluation.domain import CocoNumbers
from saucer.evaluation.main import EvaluationSettings, wire
from saucer.evaluation.matching import match
from saucer.evaluation.metrics import Counts, ErrorsByImage
from saucer.evaluation.recommending import Recommender
from saucer.evaluation.scoring import NOTHING_TO_SCORE
from saucer.evaluation.suspecting import SuspectKind, suspects
from saucer.evaluation.thinning import PrPoints, ThinnedPoints, thin
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.auth import Role
from saucer.lib.ids import new_id
from saucer.serving.detections import Detections
from saucer.training.v1 import events_pb2 as training_events
from saucer.training.v1 import training_pb2
from tests.integration.evaluation.generated_model import Answers, GeneratedModel, generated_model, stored_model
from tests.integration.evaluation.test_evaluation import World, a_world, detections
from tests.support.events import event, publish
from tests.support.services import ServiceRunner, Tokens

# Several images, classes and faults of every kind.
SEED = 10
THRESHOLDS = (0.0, 0.3, 0.5, 0.77, 1.0)


class Start:
    """Starts evaluation on a database and a store of the test's own."""

    def __init__(self, run: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, folder: Path) -> None:
        self._run, self._tokens, self._jetstream = run, tokens, jetstream
        self.store = folder / "objects"
        self.database_url = ""

    @asynccontextmanager
    async def __call__(self, **settings: Any) -> AsyncIterator[World]:
        url = f"file://{self.store}"
        self.database_url = self.database_url or await self._run.new_database()
        own = {"object_store_url": url, "database_url": self.database_url}
        async with self._run("evaluation", EvaluationSettings, wire, **(own | settings)) as running:
            yield a_world(running, url, self._tokens, self._jetstream)


@pytest.fixture
def start(run_service: ServiceRunner, tokens: Tokens, jetstream: JetStreamContext, tmp_path: Path) -> Start:
    return Start(run_service, tokens, jetstream, tmp_path)


@pytest.fixture
async def world(start: Start) -> AsyncIterator[World]:
    async with start() as world:
        yield world


async def scored(world: World, seed: int = SEED) -> tuple[GeneratedModel, evaluation_pb2.Evaluation]:
    model = await generated_model(world.objects, world.account_id, seed)
    await world.tell(model.message)
    told = await world.ended(model.message)
    assert told.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED, told.error_message
    return model, told


async def at(world: World, evaluation_id: str, threshold: float | None) -> evaluation_pb2.Evaluation:
    request = evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id, threshold=threshold)
    return await world.stub.GetEvaluation(request, metadata=world.viewer)


async def list_bad_cases(world: World, evaluation_id: str, **more: Any) -> evaluation_pb2.ListBadCasesResponse:
    request = evaluation_pb2.ListBadCasesRequest(evaluation_id=evaluation_id, **more)
    return await world.stub.ListBadCases(request, metadata=world.viewer)


def value(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None


def ratios(message: Any) -> tuple[float | None, ...]:
    return tuple(value(message, name) for name in ("precision", "recall", "f1"))


def ratios_of(counts: Counts) -> tuple[float | None, ...]:
    return counts.precision, counts.recall, counts.f1


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
        [thinned] = thin([model.test.curves.points(label)], max(2, max_points or 100))
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


async def test_curves_of_several_numbers_of_points_are_each_thinned_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation_id = await long_curve(world)
    limits: list[int] = []

    def counted(curves: Sequence[PrPoints], limit: int) -> list[ThinnedPoints]:
        limits.append(limit)
        return thin(curves, limit)

    monkeypatch.setattr(stored, "thin", counted)
    for max_points in (50, 70, 0, 50, 70, 0):
        assert len((await curve_of(world, evaluation_id, max_points)).points) == (max_points or 100)
    assert sorted(set(limits) - {100}) == sorted(limits)[:2] == [50, 70]


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


async def test_bad_cases_are_those_of_the_pure_function_worst_first_page_by_page(world: World) -> None:
    model, told = await scored(world)
    expected = dict(bad_cases(model.test.scored, 0.3).by_image())
    found: list[evaluation_pb2.BadCase] = []
    token = ""
    while True:
        page = await list_bad_cases(world, told.evaluation_id, threshold=0.3, page_size=2, page_token=token)
        assert page.total_size == len(expected)
        found += page.bad_cases
        token = page.next_page_token
        if not token:
            break
    faults = {case.image_id: len(case.faults) for case in found}
    assert faults == {image_id: len(wrong) for image_id, wrong in expected.items()}
    assert [(-len(case.faults), case.image_id) for case in found] == sorted(
        (-len(wrong), image_id) for image_id, wrong in expected.items()
    )
    assert all(case.file_name == f"Photo {case.image_id}.jpg" for case in found)


async def test_a_fault_names_its_boxes_by_their_place_in_the_case(world: World) -> None:
    model, told = await scored(world)
    pure = model.test
    expected = dict(bad_cases(pure.scored, 0.3).by_image())
    page = await list_bad_cases(world, told.evaluation_id, threshold=0.3, page_size=200)
    for case in page.bad_cases:
        for fault, wrong in zip(case.faults, expected[case.image_id], strict=True):
            assert evaluation_pb2.FaultKind.Name(fault.kind) == f"FAULT_KIND_{wrong.kind.name}"
            if wrong.detection is None:
                assert fault.detection == -1
            else:
                box = case.detections[fault.detection]
                assert (box.x1, box.y1, box.x2, box.y2) == tuple(pure.detections.box[wrong.detection].tolist())
                assert box.score == pure.detections.score[wrong.detection]
            if wrong.truth is None:
                assert fault.truth == -1
            else:
                box = case.truth[fault.truth]
                assert (box.x1, box.y1, box.x2, box.y2) == tuple(pure.truth.box[wrong.truth].tolist())
        assert all(box.score >= 0.3 for box in case.detections)


@pytest.mark.parametrize("kind", list(FaultKind))
async def test_bad_cases_are_filtered_by_kind_and_class(world: World, kind: FaultKind) -> None:
    model, told = await scored(world)
    number = evaluation_pb2.FaultKind.Value(f"FAULT_KIND_{kind.name}")
    for label, name in enumerate(model.test.truth.classes):
        expected = bad_cases(model.test.scored, 0.3, [kind], label)
        page = await list_bad_cases(
            world, told.evaluation_id, threshold=0.3, kinds=[number], class_name=name, page_size=200
        )
        assert page.total_size == expected.image_ids().size
        assert sum(len(case.faults) for case in page.bad_cases) == len(expected)
        assert all(fault.kind == number for case in page.bad_cases for fault in case.faults)


async def test_bad_cases_are_filtered_by_the_score_of_what_is_wrong(world: World) -> None:
    model, told = await scored(world)
    expected = bad_cases(model.test.scored, 0.1, scores=(0.2, 0.6))
    page = await list_bad_cases(world, told.evaluation_id, threshold=0.1, min_score=0.2, max_score=0.6, page_size=200)
    assert page.total_size == expected.image_ids().size
    assert sum(len(case.faults) for case in page.bad_cases) == len(expected)
    open_ended = await list_bad_cases(world, told.evaluation_id, threshold=0.1, min_score=0.2, page_size=200)
    assert open_ended.total_size == bad_cases(model.test.scored, 0.1, scores=(0.2, 1.0)).image_ids().size


async def exported(world: World, evaluation_id: str, **more: Any) -> str:
    request = evaluation_pb2.ExportBadCasesRequest(evaluation_id=evaluation_id, **more)
    pieces = [piece.data async for piece in world.stub.ExportBadCases(request, metadata=world.viewer)]
    return b"".join(pieces).decode()


async def test_bad_cases_are_exported_whole_as_coco_and_as_csv(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "EXPORT_PIECE_BYTES", 100)
    model, told = await scored(world)
    listed = (await list_bad_cases(world, told.evaluation_id, threshold=0.3, page_size=200)).bad_cases
    document = json.loads(await exported(world, told.evaluation_id, threshold=0.3))
    assert [image["id"] for image in document["images"]] == [case.image_id for case in listed]
    truth = model.test.truth
    own = {(*np.round(box, 3), area) for box, area in zip(truth.box.tolist(), truth.area.tolist(), strict=True)}
    written = {
        (*np.round([x, y, x + width, y + height], 3), entry["area"])
        for entry in document["annotations"]
        for x, y, width, height in [entry["bbox"]]
    }
    assert written <= own
    assert any(area != (x2 - x1) * (y2 - y1) for x1, y1, x2, y2, area in written)
    table = await exported(
        world, told.evaluation_id, threshold=0.3, format=evaluation_pb2.EXPORT_FORMAT_CSV, class_name="class 0"
    )
    of_class = await list_bad_cases(world, told.evaluation_id, threshold=0.3, page_size=200, class_name="class 0")
    assert len(table.splitlines()) == 1 + sum(len(case.faults) for case in of_class.bad_cases)


async def test_suspected_labels_are_those_of_the_pure_function_page_by_page(world: World) -> None:
    model, told = await scored(world)
    expected = suspects(model.test.scored, 0.3)
    request = evaluation_pb2.ListSuspectedLabelsRequest(evaluation_id=told.evaluation_id, threshold=0.3, page_size=3)
    found: list[evaluation_pb2.SuspectedLabel] = []
    while True:
        page = await world.stub.ListSuspectedLabels(request, metadata=world.viewer)
        assert page.total_size == expected.kind.size
        found += page.suspected_labels
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert [entry.suspicion for entry in found] == expected.suspicion.tolist()
    assert [entry.image_id for entry in found] == model.test.scored.images[expected.image].tolist()
    assert [entry.HasField("detection") for entry in found] == (expected.detection >= 0).tolist()
    request = evaluation_pb2.ListSuspectedLabelsRequest(
        evaluation_id=told.evaluation_id, threshold=0.3, kinds=[evaluation_pb2.SUSPECT_KIND_WRONG_CLASS]
    )
    only = (await world.stub.ListSuspectedLabels(request, metadata=world.viewer)).suspected_labels
    assert len(only) == suspects(model.test.scored, 0.3, [SuspectKind.WRONG_CLASS]).kind.size


async def test_a_model_is_compared_with_another_of_the_same_test_split(world: World) -> None:
    first, base = await scored(world)
    second = training_pb2.Model()
    second.CopyFrom(first.message)
    second.model_id, second.run_id, second.task_id = new_id(), new_id(), new_id()
    # All that the second finds is below 0.6.
    found = first.test.detections
    weaker = Detections(found.images, found.image_id, found.box, np.minimum(found.score, np.float32(0.6)), found.label)
    second.files[0].key += ".weaker"
    second.files[0].sha256 = await world.objects.put(second.files[0].key, weaker.to_bytes())
    await world.tell(second)
    told = await world.ended(second)
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=told.evaluation_id, base_evaluation_id=base.evaluation_id, threshold=0.7
    )
    compared = await world.stub.CompareEvaluations(request, metadata=world.viewer)
    assert compared.evaluation == await at(world, told.evaluation_id, 0.7)
    assert compared.base == await at(world, base.evaluation_id, 0.7)
    assert [entry.class_name for entry in compared.classes] == list(first.test.truth.classes)
    before = ErrorsByImage(first.test.scored).at(0.7)
    after = ErrorsByImage(match(first.test.truth, weaker)).at(0.7)
    changed = {int(first.test.truth.images[place]) for place in np.flatnonzero(before != after)}
    assert {image.image_id for image in compared.images} == changed
    assert compared.total_size == len(changed) == compared.better_images + compared.worse_images
    assert compared.same_images == len(before) - len(changed)
    request.change = evaluation_pb2.CHANGE_WORSE
    worse = await world.stub.CompareEvaluations(request, metadata=world.viewer)
    assert worse.total_size == compared.worse_images
    assert all(image.errors > image.base_errors for image in worse.images)


async def test_evaluations_of_different_test_sets_are_not_compared(world: World) -> None:
    _, one = await scored(world)
    _, other = await scored(world, seed=3)
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=one.evaluation_id, base_evaluation_id=other.evaluation_id
    )
    with pytest.raises(grpc.aio.AioRpcError, match="with different class names") as refusal:
        await world.stub.CompareEvaluations(request, metadata=world.viewer)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_another_accounts_evaluation_is_no_base(world: World) -> None:
    _, theirs = await scored(world)
    stranger = replace(world, account_id=new_id())
    _, mine = await scored(stranger)
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=mine.evaluation_id, base_evaluation_id=theirs.evaluation_id
    )
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await world.stub.CompareEvaluations(request, metadata=stranger.viewer)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


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


async def test_the_test_split_is_browsed_by_class_and_its_images_are_counted(start: Start) -> None:
    async with start() as world:
        model, told = await scored(world)
        for name in ("", *model.test.truth.classes):
            request = evaluation_pb2.ListTestImagesRequest(evaluation_id=told.evaluation_id, class_name=name)
            shown = await world.stub.ListTestImages(request, metadata=world.viewer)
            label = model.test.truth.classes.index(name) if name else None
            of_class = model.test.truth.image_id[model.test.truth.label == label] if name else model.test.truth.images
            assert [image.image_id for image in shown.test_images] == sorted(set(of_class.tolist()))
            assert shown.total_size == len(shown.test_images)
            assert not any(image.image for image in shown.test_images)
        assert await image_reads(start, world.account_id) == (0, 0)
        request = evaluation_pb2.ListTestImagesRequest(
            evaluation_id=told.evaluation_id, include_images=True, page_size=2
        )
        shown = await world.stub.ListTestImages(request, metadata=world.viewer)
        assert [image.image.decode() for image in shown.test_images] == [str(i.image_id) for i in shown.test_images]
        assert (await image_reads(start, world.account_id))[0] == 2
        days = await world.stub.ListEvaluationImageReads(
            evaluation_pb2.ListEvaluationImageReadsRequest(), metadata=world.viewer
        )
        assert [day.reads for day in days.image_reads] == [2]
        request.page_token = shown.next_page_token
        following = await world.stub.ListTestImages(request, metadata=world.viewer)
        assert following.test_images[0].image_id > shown.test_images[-1].image_id


async def image_reads(start: Start, account_id: str) -> tuple[int, int]:
    connection = await asyncpg.connect(start.database_url)
    try:
        row = await connection.fetchrow(
            "SELECT coalesce(sum(reads), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM image_read "
            "WHERE account_id = $1",
            account_id,
        )
    finally:
        await connection.close()
    assert row is not None
    return row[0], row[1]


async def test_images_are_read_only_on_request_and_every_read_is_counted(start: Start) -> None:
    async with start() as world:
        _, told = await scored(world)
        plain = await list_bad_cases(world, told.evaluation_id, threshold=0.3)
        assert await image_reads(start, world.account_id) == (0, 0)
        shown = await list_bad_cases(world, told.evaluation_id, threshold=0.3, include_images=True)
        assert [case.image.decode() for case in shown.bad_cases] == [str(case.image_id) for case in shown.bad_cases]
        size = sum(len(case.image) for case in shown.bad_cases)
        assert await image_reads(start, world.account_id) == (len(shown.bad_cases), size)
        for case in shown.bad_cases:
            case.ClearField("image")
        assert plain.bad_cases == shown.bad_cases, "the report is the same without"


async def test_a_page_with_images_ends_before_it_grows_too_large_and_the_next_goes_on(start: Start) -> None:
    async with start() as world:
        _, told = await scored(world)
        plain = await list_bad_cases(world, told.evaluation_id, threshold=0.0)
        folder = f"system/{world.account_id}/images"
        first, second, third, *_ = plain.bad_cases
        await world.objects.put(f"{folder}/i{first.image_id}", b"1" * 2_000_000)
        await world.objects.put(f"{folder}/i{second.image_id}", b"2" * 2_000_000)
        await world.objects.put(f"{folder}/i{third.image_id}", b"3" * 20_000_000)
        found, token = [], ""
        while True:
            page = await list_bad_cases(world, told.evaluation_id, threshold=0.0, include_images=True, page_token=token)
            found += [(case.image_id, case.image) for case in page.bad_cases]
            token = page.next_page_token
            if not token:
                break
        assert [image_id for image_id, _ in found] == [case.image_id for case in plain.bad_cases]
        assert [image[:1] for _, image in found[:3]] == [b"1", b"2", b""], "one that never fits comes empty"


async def test_an_image_that_the_store_no_longer_has_comes_empty(world: World) -> None:
    _, told = await scored(world)
    plain = await list_bad_cases(world, told.evaluation_id, threshold=0.3)
    gone = plain.bad_cases[0].image_id
    await world.objects.delete(f"system/{world.account_id}/images/i{gone}")
    shown = await list_bad_cases(world, told.evaluation_id, threshold=0.3, include_images=True)
    assert [case.image_id for case in shown.bad_cases if not case.image] == [gone]


async def test_without_room_in_memory_it_answers_all_the_same(start: Start) -> None:
    async with start(cache_bytes=0) as world:
        model, told = await scored(world)
        check_figures(await at(world, told.evaluation_id, 0.3), model.test, 0.3)


async def test_results_that_were_changed_in_the_store_are_refused(start: Start) -> None:
    async with start(cache_bytes=0) as world:
        _, told = await scored(world)
        (key,) = [key for key in await world.objects.keys(f"system/{world.account_id}/evaluations") if "scored" in key]
        await world.objects.put(key, b"other")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await at(world, told.evaluation_id, 0.3)
        assert refusal.value.code() is grpc.StatusCode.DATA_LOSS


IMAGE = {"id": 1, "file_name": "a", "width": 10, "height": 10, "split": "test"}
CATEGORIES = [{"id": 0, "name": "cup"}]
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
