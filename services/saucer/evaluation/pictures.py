"""Pictures of an evaluation, as messages ask for them: its answers gathered, then drawn off the event loop."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from saucer.evaluation.cache import Cache
from saucer.evaluation.domain import DEFAULT_THRESHOLD
from saucer.evaluation.messages import (
    bad_case_message,
    confusion_message,
    curve_message,
    evaluation_message,
    histogram_message,
    kind_number,
)
from saucer.evaluation.reading import CaseFilter, label_of
from saucer.evaluation.service import Evaluations
from saucer.evaluation.stored import DEFAULT_POINTS, points_of_a_curve
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.errors import InvalidArgumentError

# Images of a sheet: three rows of three, whose pixels uncompressed are what a gRPC client takes by default (4 MiB).
MAX_CASES = 9
# Of the images that are read for one sheet; it ends before the image that would exceed it, and goes on with its token.
MAX_READ_BYTES = 64 * 1024**2
BINS = 20
# Of charts in memory, each of 50 to 900 kB.
KEPT_BYTES = 32 * 1024**2

_Draw = Callable[[ModuleType, Path], None]
_Kind = evaluation_pb2.PictureKind


@dataclass(frozen=True)
class Wanted:
    """A picture; an empty class: of all. `wanted`, `offset` and `limit` are of bad cases."""

    evaluation_id: str
    kind: evaluation_pb2.PictureKind.ValueType
    threshold: float
    class_name: str
    cases: CaseFilter
    offset: int
    limit: int
    svg: bool


@dataclass(frozen=True)
class Drawn:
    """Of bad cases so many, of `total` in all."""

    data: bytes
    cases: int = 0
    total: int = 0


class Pictures:
    """Draws one picture at a time: matplotlib shares its fonts, and the memory of pictures is bounded so.

    Charts are kept, since a finished evaluation does not change and one takes some tenths of a second. Sheets are not:
    the images on them are read, and counted, each time; those of one sheet at a time, while charts are drawn.
    """

    def __init__(self, evaluations: Evaluations) -> None:
        self._evaluations = evaluations
        self._drawing = asyncio.Lock()
        # Held while a sheet's images are in memory, from before they are read.
        self._sheets = asyncio.Lock()
        self._charts = Cache[tuple[object, ...], bytes]("charts", len, KEPT_BYTES)

    async def draw(self, wanted: Wanted) -> Drawn:
        """A PNG, or an SVG.

        Raises:
            NotFoundError, FailedPreconditionError: not succeeded. InvalidArgumentError: an unknown class, a sheet of
            images as SVG. UnavailableError: the store does not answer.
        """
        if wanted.kind == _Kind.PICTURE_KIND_BAD_CASES:
            async with self._sheets:
                return await self._sheet(wanted)
        # A chart that is kept is also only for those who may see the evaluation.
        await self._evaluations.get(wanted.evaluation_id, DEFAULT_THRESHOLD)
        key = (wanted.evaluation_id, wanted.kind, wanted.threshold, wanted.class_name, wanted.svg)
        return Drawn(await self._charts.get(key, lambda: self._chart(wanted)))

    async def _chart(self, wanted: Wanted) -> bytes:
        draw = await {
            _Kind.PICTURE_KIND_PRECISION_RECALL: self._curves,
            _Kind.PICTURE_KIND_CONFUSION_MATRIX: self._confusion,
            _Kind.PICTURE_KIND_SCORES: self._scores,
        }[wanted.kind](wanted)
        return await self._drawn("picture.svg" if wanted.svg else "picture.png", draw)

    async def _curves(self, wanted: Wanted) -> _Draw:
        told = await self._told(wanted)
        label_of([item.class_name for item in told.classes], wanted.class_name)
        max_points = points_of_a_curve(DEFAULT_POINTS, len(told.classes))
        curves = {curve[0]: curve for curve in await self._evaluations.curves(wanted.evaluation_id, max_points)}

        def curve_of(name: str) -> evaluation_pb2.PrecisionRecallCurve:
            return curve_message(*curves[name])

        return lambda drawing, file: drawing.curves(file, told, curve_of, wanted.class_name)

    async def _confusion(self, wanted: Wanted) -> _Draw:
        answer = confusion_message(
            wanted.threshold, *await self._evaluations.confusion(wanted.evaluation_id, wanted.threshold)
        )
        return lambda drawing, file: drawing.confusion(file, answer)

    async def _scores(self, wanted: Wanted) -> _Draw:
        answer = histogram_message(
            await self._evaluations.score_histogram(wanted.evaluation_id, wanted.class_name, BINS)
        )
        return lambda drawing, file: drawing.scores(file, answer, wanted.threshold)

    async def _sheet(self, wanted: Wanted) -> Drawn:
        if wanted.svg:
            raise InvalidArgumentError("FORMAT_UNSUITABLE", "format: a sheet of images is a PNG.")
        found, total = await self._evaluations.bad_cases(
            wanted.evaluation_id,
            wanted.threshold,
            wanted.cases,
            offset=wanted.offset,
            limit=wanted.limit,
            include_images=True,
            images_bytes=MAX_READ_BYTES,
        )
        told = await self._told(wanted)
        cases = [bad_case_message(case, image) for case, image in found]
        least, highest = wanted.cases.scores or (None, None)
        asked = evaluation_pb2.ListBadCasesRequest(
            kinds=[kind_number(kind) for kind in wanted.cases.kinds],
            class_name=wanted.cases.class_name,
            min_score=least,
            max_score=highest,
        )
        data = await self._drawn(
            "picture.png", lambda drawing, file: drawing.bad_cases(file, told, cases, asked, total)
        )
        return Drawn(data, len(cases), total)

    async def _told(self, wanted: Wanted) -> evaluation_pb2.Evaluation:
        return evaluation_message(*await self._evaluations.get(wanted.evaluation_id, wanted.threshold))

    async def _drawn(self, name: str, draw: _Draw) -> bytes:
        def work() -> bytes:
            from saucer.drawing import evaluations as drawing  # noqa: PLC0415 - matplotlib, if a picture is asked for

            return drawing.drawn(name, lambda file: draw(drawing, file))

        async with self._drawing:
            return await asyncio.to_thread(work)
