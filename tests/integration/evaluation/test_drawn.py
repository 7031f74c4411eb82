"""Pictures over the API: charts of all forms, and sheets whose images are counted."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import grpc
import pytest
from PIL import Image

from saucer.drawing import evaluations, images
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.ids import new_id
from tests.integration.evaluation.generated_model import stored_model
from tests.integration.evaluation.world import Start, World, detections, image_reads, list_bad_cases, scored


async def test_a_classification_is_answered_and_drawn_as_such(start: Start) -> None:
    async with start() as world:
        images = [
            {"id": number, "file_name": f"i{number}", "width": 64, "height": 48, "split": split}
            for number, split in enumerate(("test",) * 4 + ("validation",) * 2, start=1)
        ]
        labels = [{"id": number, "image_id": number, "category_id": number % 2} for number in range(1, 7)]
        document = {
            "images": images,
            "annotations": labels,
            "categories": [{"id": 0, "name": "cup"}, {"id": 1, "name": "plate"}],
        }
        answered = detections([1, 2, 3, 4], [1, 2, 3, 4], [0.9, 0.8, 0.6, 0.3])
        files = {
            "detections_test.npz": answered.to_bytes(),
            "detections_validation.npz": detections([5, 6], [5, 6], [0.9, 0.7]).to_bytes(),
        }
        model = await stored_model(world.objects, world.account_id, document, ["cup", "plate"], files)
        await world.tell(model)
        told = await world.ended(model)
        assert told.classification
        assert (told.top_1, told.HasField("map_50"), told.HasField("coco")) == (0.5, False, False)
        assert (told.precision, told.recall, told.bad_cases) == (1 / 3, 0.25, 3)
        cases = await list_bad_cases(world, told.evaluation_id)
        assert sorted(evaluation_pb2.FaultKind.Name(case.faults[0].kind) for case in cases.bad_cases) == [
            "FAULT_KIND_CONFUSED",
            "FAULT_KIND_CONFUSED",
            "FAULT_KIND_MISS",
        ]
        for kind in ("PRECISION_RECALL", "CONFUSION_MATRIX", "SCORES", "BAD_CASES"):
            assert (await draw(world, told.evaluation_id, f"PICTURE_KIND_{kind}")).data


async def draw(world: World, evaluation_id: str, kind: str, **wanted: Any) -> evaluation_pb2.Picture:
    request = evaluation_pb2.DrawEvaluationRequest(
        evaluation_id=evaluation_id, kind=evaluation_pb2.PictureKind.Value(kind), **wanted
    )
    return await world.stub.DrawEvaluation(request, metadata=world.viewer)


async def test_charts_are_drawn_as_png_and_svg_and_read_no_image(start: Start) -> None:
    async with start() as world:
        _, told = await scored(world)
        for kind in ("PRECISION_RECALL", "CONFUSION_MATRIX", "SCORES"):
            png = await draw(world, told.evaluation_id, f"PICTURE_KIND_{kind}")
            assert png.content_type == "image/png"
            assert Image.open(io.BytesIO(png.data)).format == "PNG"
            svg = await draw(world, told.evaluation_id, f"PICTURE_KIND_{kind}", format="PICTURE_FORMAT_SVG")
            assert svg.content_type == "image/svg+xml"
            assert ElementTree.fromstring(svg.data).tag.endswith("svg")
        assert await image_reads(start, world.account_id) == (0, 0)


async def test_a_chart_is_of_one_class_where_one_is_named_and_an_unknown_one_is_refused(start: Start) -> None:
    async with start() as world:
        _, told = await scored(world)
        whole, one = [
            (await draw(world, told.evaluation_id, "PICTURE_KIND_SCORES", class_name=name)).data
            for name in ("", told.classes[0].class_name)
        ]
        assert whole != one
        for kind in ("PICTURE_KIND_SCORES", "PICTURE_KIND_PRECISION_RECALL"):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await draw(world, told.evaluation_id, kind, class_name="no such class")
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_sheet_of_bad_cases_reads_and_counts_their_images_and_goes_on_with_its_token(start: Start) -> None:
    async with start() as world:
        _, told = await scored(world)
        bad = (await list_bad_cases(world, told.evaluation_id, threshold=0.3)).total_size
        token, reads = "", 0
        while True:
            sheet = await draw(
                world, told.evaluation_id, "PICTURE_KIND_BAD_CASES", threshold=0.3, page_size=2, page_token=token
            )
            assert Image.open(io.BytesIO(sheet.data)).format == "PNG"
            reads += 2
            token = sheet.next_page_token
            if not token:
                break
        assert (await image_reads(start, world.account_id))[0] == bad
        assert bad <= reads < bad + 2
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await draw(world, told.evaluation_id, "PICTURE_KIND_BAD_CASES", format="PICTURE_FORMAT_SVG")
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await image_reads(start, world.account_id))[0] == bad


async def test_a_sheet_of_some_kinds_says_so_and_how_many_there_are(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    draw_sheet = images.sheet

    def titled(*arguments: Any, title: str, **more: Any) -> None:
        titles.append(title)
        draw_sheet(*arguments, title=title, **more)

    monkeypatch.setattr(images, "sheet", titled)
    async with start() as world:
        _, told = await scored(world)
        name = told.classes[0].class_name
        few = await list_bad_cases(world, told.evaluation_id, kinds=["FAULT_KIND_MISS"], class_name=name)
        assert 0 < few.total_size < told.bad_cases
        await draw(
            world, told.evaluation_id, "PICTURE_KIND_BAD_CASES", fault_kinds=["FAULT_KIND_MISS"], class_name=name
        )
        assert titles == [f"{few.total_size} bad cases of {told.images} images, at threshold 0.5: miss of {name}"]


async def test_a_chart_is_drawn_once_for_each_form_and_kept_for_its_own_account_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    draw_file = evaluations.drawn

    def counted(name: str, draw: Callable[[Path], None]) -> bytes:
        drawn.append(name)
        return draw_file(name, draw)

    monkeypatch.setattr(evaluations, "drawn", counted)
    async with start() as world:
        _, told = await scored(world)
        chart = "PICTURE_KIND_CONFUSION_MATRIX"
        first = await draw(world, told.evaluation_id, chart)
        again = await draw(world, told.evaluation_id, chart)
        assert again == first
        assert drawn == ["picture.png"]
        await draw(world, told.evaluation_id, chart, threshold=0.2)
        await draw(world, told.evaluation_id, chart, format="PICTURE_FORMAT_SVG")
        assert drawn == ["picture.png", "picture.png", "picture.svg"]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await draw(replace(world, account_id=new_id()), told.evaluation_id, chart)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
