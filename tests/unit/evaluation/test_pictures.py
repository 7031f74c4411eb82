"""What pictures hold in memory, and what waits for what."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from saucer.drawing import evaluations as drawing
from saucer.evaluation.pictures import Drawn, Pictures, Wanted
from saucer.evaluation.reading import BadCase, CaseFilter
from saucer.evaluation.service import Evaluations
from saucer.evaluation.v1 import evaluation_pb2
from tests.unit.evaluation.test_domain import SCORING

SHEET = "picture.png"
CASE = BadCase(1, "photo.jpg", "i1", 64, 48, (), (), ())


class Asked:
    """An evaluation, and the sheets whose images were read but which are not drawn yet."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.held = self.most_held = self.drawn_sheets = 0

    async def get(self, *_: object) -> tuple[Any, None]:
        return SCORING, None

    async def confusion(self, *_: object) -> tuple[list[str], NDArray[np.int64]]:
        return [], np.zeros((1, 1), np.int64)

    async def bad_cases(self, *_: object, **__: object) -> tuple[list[tuple[BadCase, bytes]], int]:
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        await self.may_read.wait()
        return [(CASE, b"image")], 1

    def drawn(self, name: str, _: Callable[[Path], None]) -> bytes:
        if name == SHEET:
            self.drawn_sheets += 1
            self.held -= 1
        return name.encode()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(drawing, "drawn", asked.drawn)
    return asked


def draw(pictures: Pictures, kind: evaluation_pb2.PictureKind.ValueType, *, svg: bool = False) -> "asyncio.Task[Drawn]":
    wanted = Wanted("e", kind, 0.5, "", CaseFilter(), 0, 9, svg)
    return asyncio.get_running_loop().create_task(pictures.draw(wanted))


async def test_of_many_sheets_at_once_the_images_of_one_are_in_memory(asked: Asked) -> None:
    pictures = Pictures(cast("Evaluations", asked))
    asked.may_read.set()
    await asyncio.gather(*(draw(pictures, evaluation_pb2.PICTURE_KIND_BAD_CASES) for _ in range(20)))
    assert (asked.drawn_sheets, asked.most_held) == (20, 1)


async def test_a_chart_does_not_wait_for_the_images_of_a_sheet(asked: Asked) -> None:
    pictures = Pictures(cast("Evaluations", asked))
    sheet = draw(pictures, evaluation_pb2.PICTURE_KIND_BAD_CASES)
    await asyncio.wait_for(draw(pictures, evaluation_pb2.PICTURE_KIND_CONFUSION_MATRIX, svg=True), 10)
    assert (asked.held, sheet.done()) == (1, False)
    asked.may_read.set()
    assert (await sheet).data == SHEET.encode()
