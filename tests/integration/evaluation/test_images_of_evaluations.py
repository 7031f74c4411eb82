"""Single images of an evaluation: bad cases, suspected labels and the test split, and what their reading counts."""

import json
from typing import Any

import numpy as np
import pytest

from saucer.evaluation import reading, service
from saucer.evaluation.bad_cases import FaultKind, bad_cases
from saucer.evaluation.suspecting import SuspectKind, suspects
from saucer.evaluation.v1 import evaluation_pb2
from tests.integration.evaluation.world import Start, World, image_reads, list_bad_cases, scored


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


async def test_pages_that_end_before_they_grow_too_large_go_on_with_their_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, told = await scored(world)
    evaluation_id = told.evaluation_id
    lists: tuple[tuple[Any, Any, str], ...] = (
        (world.stub.ListBadCases, evaluation_pb2.ListBadCasesRequest(evaluation_id=evaluation_id), "bad_cases"),
        (world.stub.ListTestImages, evaluation_pb2.ListTestImagesRequest(evaluation_id=evaluation_id), "test_images"),
    )
    whole = [list(getattr(await call(request, metadata=world.viewer), field)) for call, request, field in lists]
    monkeypatch.setattr(reading, "PAGE_BYTES", 0)
    for (call, request, field), expected in zip(lists, whole, strict=True):
        for number, entry in enumerate(expected, 1):
            page = await call(request, metadata=world.viewer)
            assert list(getattr(page, field)) == [entry]
            assert page.total_size == len(expected)
            assert bool(page.next_page_token) == (number < len(expected))
            request.page_token = page.next_page_token


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
