"""Messages to use cases and back; nothing else."""

from datetime import datetime

from saucer.evaluation.domain import DEFAULT_THRESHOLD
from saucer.evaluation.messages import (
    bad_case_message,
    confusion_message,
    curve_message,
    evaluation_message,
    read_kind,
    recommendation_message,
)
from saucer.evaluation.recommending import Goal
from saucer.evaluation.service import Evaluations
from saucer.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from saucer.lib.auth import current
from saucer.lib.grpc_server import Context, Servicer
from saucer.lib.paging import read_page

DEFAULT_POINTS = 200
# A curve has a beginning and an end; fewer points are taken for these two.
LEAST_POINTS = 2


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

    async def GetEvaluation(
        self, request: evaluation_pb2.GetEvaluationRequest, context: Context
    ) -> evaluation_pb2.Evaluation:
        threshold = request.threshold if request.HasField("threshold") else DEFAULT_THRESHOLD
        return evaluation_message(*await self._evaluations.get(request.evaluation_id, threshold))

    async def ListEvaluations(
        self, request: evaluation_pb2.ListEvaluationsRequest, context: Context
    ) -> evaluation_pb2.ListEvaluationsResponse:
        account_id = current().account(request.account_id)
        page = read_page(request)
        found = await self._evaluations.list_evaluations(
            account_id,
            task_id=request.task_id or None,
            model_id=request.model_id or None,
            after=(datetime.fromisoformat(str(page.after[0])), str(page.after[1])) if page.after else None,
            limit=page.size + 1,
        )
        shown = found[: page.size]
        last = shown[-1][0] if len(found) > page.size else None
        return evaluation_pb2.ListEvaluationsResponse(
            evaluations=[evaluation_message(*entry) for entry in shown],
            next_page_token=page.token([last.created_at.isoformat(), last.evaluation_id] if last else None),
        )

    async def GetPrecisionRecallCurves(
        self, request: evaluation_pb2.GetPrecisionRecallCurvesRequest, context: Context
    ) -> evaluation_pb2.PrecisionRecallCurves:
        max_points = max(request.max_points or DEFAULT_POINTS, LEAST_POINTS)
        curves = await self._evaluations.curves(request.evaluation_id, max_points)
        return evaluation_pb2.PrecisionRecallCurves(curves=[curve_message(*curve) for curve in curves])

    async def GetConfusionMatrix(
        self, request: evaluation_pb2.GetConfusionMatrixRequest, context: Context
    ) -> evaluation_pb2.ConfusionMatrix:
        threshold = request.threshold if request.HasField("threshold") else DEFAULT_THRESHOLD
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
        offset = max(0, int(page.after[0])) if page.after else 0
        cases, total = await self._evaluations.bad_cases(
            request.evaluation_id,
            request.threshold if request.HasField("threshold") else DEFAULT_THRESHOLD,
            kinds=[read_kind(kind) for kind in request.kinds if kind],
            class_name=request.class_name,
            offset=offset,
            limit=page.size,
            include_images=request.include_images,
        )
        following = offset + len(cases)
        return evaluation_pb2.ListBadCasesResponse(
            bad_cases=[bad_case_message(case, image) for case, image in cases],
            next_page_token=page.token([following] if following < total else None),
            total_size=total,
        )
