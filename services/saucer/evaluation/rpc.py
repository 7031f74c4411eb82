"""Messages to use cases and back; nothing else."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal, Protocol

from saucer.evaluation.cache import Cache
from saucer.evaluation.domain import DEFAULT_THRESHOLD
from saucer.evaluation.messages import (
    bad_case_message,
    comparison_message,
    confusion_message,
    curve_message,
    evaluation_message,
    histogram_message,
    read_change,
    read_filter,
    read_format,
    read_kind,
    read_suspect_kind,
    recommendation_message,
    suspect_message,
    test_image_message,
)
from saucer.evaluation.pictures import MAX_CASES, Pictures, Wanted
from saucer.evaluation.reading import CaseFilter
from saucer.evaluation.recommending import Goal
from saucer.evaluation.service import Evaluations
from saucer.evaluation.stored import DEFAULT_POINTS, points_of_a_curve
from saucer.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from saucer.lib.auth import current
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.paging import Page, read_page

DEFAULT_BINS = 20
# Of answers with curves in memory, each of up to 6 MB: points of a message take about twice their bytes on the wire.
KEPT_CURVES_BYTES = 64 * 1024**2


def servicer(evaluations: Evaluations) -> Servicer:
    """What main.py serves."""
    return Servicer(
        _EvaluationRpc(evaluations),
        evaluation_pb2_grpc.add_EvaluationServiceServicer_to_server,
        evaluation_pb2.DESCRIPTOR.services_by_name["EvaluationService"],
    )


class _EvaluationRpc(evaluation_pb2_grpc.EvaluationServiceServicer):
    def __init__(self, evaluations: Evaluations) -> None:
        self._evaluations = evaluations
        self._pictures = Pictures(evaluations)
        # Of hundreds of classes a message takes a twentieth of a second to make.
        self._curves = Cache[tuple[str, int], evaluation_pb2.PrecisionRecallCurves](
            "curves", lambda answer: 2 * answer.ByteSize(), KEPT_CURVES_BYTES
        )

    async def GetEvaluation(
        self, request: evaluation_pb2.GetEvaluationRequest, context: Context
    ) -> evaluation_pb2.Evaluation:
        return evaluation_message(*await self._evaluations.get(request.evaluation_id, _threshold(request)))

    async def ListEvaluations(
        self, request: evaluation_pb2.ListEvaluationsRequest, context: Context
    ) -> evaluation_pb2.ListEvaluationsResponse:
        account_id = current().account(request.account_id)
        page = read_page(request)
        found, more = await self._evaluations.list_evaluations(
            account_id,
            task_id=request.task_id or None,
            model_id=request.model_id or None,
            after=page.after_moment,
            limit=page.size,
        )
        last = found[-1][0] if more else None
        return evaluation_pb2.ListEvaluationsResponse(
            evaluations=[evaluation_message(*entry) for entry in found],
            next_page_token=page.token([last.created_at.isoformat(), last.evaluation_id] if last else None),
        )

    async def ListEvaluationImageReads(
        self, request: evaluation_pb2.ListEvaluationImageReadsRequest, context: Context
    ) -> evaluation_pb2.ListEvaluationImageReadsResponse:
        page = read_page(request)
        found = await self._evaluations.image_reads.list_days(
            current().account(request.account_id), before=page.after_day, limit=page.limit
        )
        shown, following = page.cut(found, lambda row: (row[0],))
        return evaluation_pb2.ListEvaluationImageReadsResponse(
            image_reads=[
                evaluation_pb2.ImageReads(day=day.isoformat(), reads=reads, bytes=size) for day, reads, size in shown
            ],
            next_page_token=following,
        )

    async def GetPrecisionRecallCurves(
        self, request: evaluation_pb2.GetPrecisionRecallCurvesRequest, context: Context
    ) -> evaluation_pb2.PrecisionRecallCurves:
        # Curves that are kept are also only for those who may see the evaluation.
        evaluation, _ = await self._evaluations.get(request.evaluation_id, DEFAULT_THRESHOLD)
        max_points = points_of_a_curve(request.max_points or DEFAULT_POINTS, len(evaluation.source.classes))

        async def make() -> evaluation_pb2.PrecisionRecallCurves:
            curves = await self._evaluations.curves(request.evaluation_id, max_points)
            # Tens of thousands of points take longer than other callers should wait.
            return await asyncio.to_thread(
                lambda: evaluation_pb2.PrecisionRecallCurves(curves=[curve_message(*curve) for curve in curves])
            )

        return await self._curves.get((request.evaluation_id, max_points), make)

    async def GetConfusionMatrix(
        self, request: evaluation_pb2.GetConfusionMatrixRequest, context: Context
    ) -> evaluation_pb2.ConfusionMatrix:
        threshold = _threshold(request)
        return confusion_message(threshold, *await self._evaluations.confusion(request.evaluation_id, threshold))

    async def RecommendThresholds(
        self, request: evaluation_pb2.RecommendThresholdsRequest, context: Context
    ) -> evaluation_pb2.RecommendThresholdsResponse:
        goals: dict[Goal, float | None] = {Goal.BEST_F1: None}
        if request.HasField("precision"):
            goals[Goal.PRECISION] = request.precision
        if request.HasField("recall"):
            goals[Goal.RECALL] = request.recall
        classes, chosen = await self._evaluations.recommend(request.evaluation_id, goals)
        return evaluation_pb2.RecommendThresholdsResponse(
            recommendations=[recommendation_message(classes, recommendation) for recommendation in chosen]
        )

    async def ListBadCases(
        self, request: evaluation_pb2.ListBadCasesRequest, context: Context
    ) -> evaluation_pb2.ListBadCasesResponse:
        page = read_page(request)
        offset = _offset(page)
        cases, total = await self._evaluations.bad_cases(
            request.evaluation_id,
            _threshold(request),
            read_filter(request),
            offset=offset,
            limit=page.size,
            include_images=request.include_images,
        )
        # Of thousands of boxes messages take longer to make than other callers should wait.
        return await asyncio.to_thread(
            lambda: evaluation_pb2.ListBadCasesResponse(
                bad_cases=[bad_case_message(case, image) for case, image in cases],
                next_page_token=_following(page, offset + len(cases), total),
                total_size=total,
            )
        )

    async def ExportBadCases(
        self, request: evaluation_pb2.ExportBadCasesRequest, context: Context
    ) -> AsyncIterator[evaluation_pb2.ExportedPiece]:
        pieces = self._evaluations.export_bad_cases(
            request.evaluation_id, _threshold(request), read_filter(request), read_format(request.format)
        )
        async for piece in pieces:
            yield evaluation_pb2.ExportedPiece(data=piece)

    async def ListSuspectedLabels(
        self, request: evaluation_pb2.ListSuspectedLabelsRequest, context: Context
    ) -> evaluation_pb2.ListSuspectedLabelsResponse:
        page = read_page(request)
        offset = _offset(page)
        found, total = await self._evaluations.suspected_labels(
            request.evaluation_id,
            _threshold(request),
            [read_suspect_kind(kind) for kind in request.kinds if kind],
            offset=offset,
            limit=page.size,
        )
        return evaluation_pb2.ListSuspectedLabelsResponse(
            suspected_labels=[suspect_message(suspect) for suspect in found],
            next_page_token=_following(page, offset + len(found), total),
            total_size=total,
        )

    async def CompareEvaluations(
        self, request: evaluation_pb2.CompareEvaluationsRequest, context: Context
    ) -> evaluation_pb2.Comparison:
        page = read_page(request)
        offset = _offset(page)
        evaluation, base, found = await self._evaluations.compare(
            request.evaluation_id,
            request.base_evaluation_id,
            _threshold(request),
            read_change(request.change),
            offset=offset,
            limit=page.size,
        )
        return comparison_message(evaluation, base, found, _following(page, offset + len(found.page), found.total))

    async def GetScoreHistograms(
        self, request: evaluation_pb2.GetScoreHistogramsRequest, context: Context
    ) -> evaluation_pb2.ScoreHistograms:
        found = await self._evaluations.score_histograms(request.evaluation_id, request.bins or DEFAULT_BINS)
        return evaluation_pb2.ScoreHistograms(histograms=[histogram_message(histogram) for histogram in found])

    async def ListTestImages(
        self, request: evaluation_pb2.ListTestImagesRequest, context: Context
    ) -> evaluation_pb2.ListTestImagesResponse:
        page = read_page(request)
        offset = _offset(page)
        found, total = await self._evaluations.test_images(
            request.evaluation_id,
            request.class_name,
            offset=offset,
            limit=page.size,
            include_images=request.include_images,
        )
        return await asyncio.to_thread(
            lambda: evaluation_pb2.ListTestImagesResponse(
                test_images=[test_image_message(shown, image) for shown, image in found],
                next_page_token=_following(page, offset + len(found), total),
                total_size=total,
            )
        )

    async def DrawEvaluation(
        self, request: evaluation_pb2.DrawEvaluationRequest, context: Context
    ) -> evaluation_pb2.Picture:
        page = read_page(request, default_size=MAX_CASES)
        offset = _offset(page)
        svg = request.format == evaluation_pb2.PICTURE_FORMAT_SVG
        drawn = await self._pictures.draw(
            Wanted(
                evaluation_id=request.evaluation_id,
                kind=request.kind,
                threshold=_threshold(request),
                class_name=request.class_name,
                cases=CaseFilter([read_kind(kind) for kind in request.fault_kinds if kind], request.class_name),
                offset=offset,
                limit=page.size,
                svg=svg,
            )
        )
        return evaluation_pb2.Picture(
            data=drawn.data,
            content_type="image/svg+xml" if svg else "image/png",
            next_page_token=_following(page, offset + drawn.cases, drawn.total),
        )


class _AtThreshold(Protocol):
    @property
    def threshold(self) -> float: ...
    def HasField(self, field_name: Literal["threshold"], /) -> bool: ...


def _threshold(request: _AtThreshold) -> float:
    return request.threshold if request.HasField("threshold") else DEFAULT_THRESHOLD


def _offset(page: Page) -> int:
    """Lists of a finished evaluation do not change, so their tokens are places."""
    return max(0, page.after_number or 0)


def _following(page: Page, offset: int, total: int) -> str:
    return page.token([offset] if offset < total else None)
