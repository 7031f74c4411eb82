"""Domain to message, for replies and events alike."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from saucer.evaluation.bad_cases import FaultKind
from saucer.evaluation.comparing import Change, Comparison
from saucer.evaluation.domain import AtThreshold, Evaluation
from saucer.evaluation.exporting import ExportFormat
from saucer.evaluation.metrics import Counts
from saucer.evaluation.reading import (
    BadCase,
    CaseFault,
    CaseFilter,
    LabelledBox,
    LabelledImage,
    ScoreHistogram,
    SuspectedLabel,
)
from saucer.evaluation.recommending import Recommendation, wilson
from saucer.evaluation.suspecting import SuspectKind
from saucer.evaluation.thinning import ThinnedPoints
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.clock import to_duration, to_timestamp
from saucer.lib.errors import InvalidArgumentError

_KIND_NUMBERS = {kind: evaluation_pb2.FaultKind.Value(f"FAULT_KIND_{kind.name}") for kind in FaultKind}
_NO_BOX = -1


def evaluation_message(evaluation: Evaluation, at: AtThreshold | None) -> evaluation_pb2.Evaluation:
    """An evaluation; with figures at a threshold once it has succeeded."""
    message = evaluation_pb2.Evaluation(
        evaluation_id=evaluation.evaluation_id,
        account_id=evaluation.account_id,
        task_id=evaluation.task_id,
        run_id=evaluation.run_id,
        model_id=evaluation.model_id,
        dataset_version_id=evaluation.dataset_version_id,
        state=evaluation_pb2.EvaluationState.Value(f"EVALUATION_STATE_{evaluation.state}"),
        error_message=evaluation.error_message,
        duration=to_duration(evaluation.duration_ms),
        create_time=to_timestamp(evaluation.created_at),
        end_time=to_timestamp(evaluation.ended_at),
        revision=evaluation.revision,
        by_prediction=evaluation.by_prediction,
    )
    if evaluation.summary is None or at is None:
        return message
    figures = evaluation.summary.figures
    message.MergeFrom(
        evaluation_pb2.Evaluation(
            images=figures.images,
            boxes=figures.boxes,
            unlabelled_images=figures.unlabelled_images,
            map=figures.map,
            map_50=figures.map_50,
            map_weighted=figures.map_weighted,
            map_50_weighted=figures.map_50_weighted,
            recommended_threshold=figures.recommended_threshold,
            classification=figures.classification,
            top_1=figures.top_1,
            top_5=figures.top_5,
            coco=evaluation_pb2.CocoNumbers(**asdict(figures.coco)) if figures.coco else None,
            threshold=at.threshold,
            precision=at.overall.precision,
            recall=at.overall.recall,
            f1=at.overall.f1,
            map_50_above_threshold=at.map_50_above_threshold,
            bad_cases=at.bad_images,
            classes=[
                evaluation_pb2.ClassResult(
                    class_name=fixed.name,
                    boxes=fixed.boxes,
                    share=fixed.share or 0.0,
                    ap=fixed.ap,
                    ap_50=fixed.ap_50,
                    recommended_threshold=fixed.recommended_threshold,
                    precision=counts.precision,
                    recall=counts.recall,
                    f1=counts.f1,
                    true_positives=counts.true_positives,
                    false_positives=counts.false_positives,
                    misses=counts.false_negatives,
                )
                for fixed, counts in zip(figures.classes, at.per_class, strict=True)
            ],
        )
    )
    return message


def curve_message(name: str, ap_50: float | None, thinned: ThinnedPoints) -> evaluation_pb2.PrecisionRecallCurve:
    """One class's curve."""
    points = thinned.points
    message = evaluation_pb2.PrecisionRecallCurve(class_name=name, ap_50=ap_50, max_error=thinned.max_error)
    # Hundreds of classes have tens of thousands of points: added one by one, none is copied.
    for recall, precision, threshold in zip(
        points.recall.tolist(), points.precision.tolist(), points.threshold.tolist(), strict=True
    ):
        message.points.add(recall=recall, precision=precision, threshold=threshold)
    return message


def confusion_message(
    threshold: float, classes: Sequence[str], matrix: NDArray[np.int64]
) -> evaluation_pb2.ConfusionMatrix:
    """Row by row, the background last."""
    return evaluation_pb2.ConfusionMatrix(
        threshold=threshold,
        class_names=classes,
        rows=[evaluation_pb2.ConfusionRow(boxes=row) for row in matrix.tolist()],
    )


def recommendation_message(
    classes: Sequence[str], recommendation: Recommendation
) -> evaluation_pb2.ThresholdRecommendation:
    """Without threshold and figures where no threshold serves."""
    label, validation, test = recommendation.label, recommendation.validation, recommendation.test
    return evaluation_pb2.ThresholdRecommendation(
        class_name="" if label is None else classes[label],
        goal=evaluation_pb2.ThresholdGoal.Value(f"THRESHOLD_GOAL_{recommendation.goal}"),
        wanted=recommendation.wanted,
        threshold=recommendation.threshold,
        validation=_measured_message(validation) if validation else None,
        test=_with_intervals(test) if test else None,
    )


def _measured_message(counts: Counts) -> evaluation_pb2.MeasuredCounts:
    return evaluation_pb2.MeasuredCounts(
        true_positives=counts.true_positives,
        false_positives=counts.false_positives,
        misses=counts.false_negatives,
        precision=counts.precision,
        recall=counts.recall,
        f1=counts.f1,
    )


def _with_intervals(counts: Counts) -> evaluation_pb2.MeasuredCounts:
    """Of images that the threshold was not chosen on: M13 holds for no others."""
    message = _measured_message(counts)
    detections = counts.true_positives + counts.false_positives
    message.MergeFrom(
        evaluation_pb2.MeasuredCounts(
            precision_interval=_interval_message(counts.true_positives, detections),
            recall_interval=_interval_message(counts.true_positives, counts.truths),
        )
    )
    return message


def _interval_message(part: int, whole: int) -> evaluation_pb2.Interval | None:
    interval = wilson(part, whole)
    return evaluation_pb2.Interval(low=interval.low, high=interval.high) if interval else None


def bad_case_message(case: BadCase, image: bytes) -> evaluation_pb2.BadCase:
    """An image with its faults; without its bytes unless they were asked for."""
    return evaluation_pb2.BadCase(
        image_id=case.image_id,
        file_name=case.file_name,
        width=case.width,
        height=case.height,
        faults=[_fault_message(fault) for fault in case.faults],
        truth=[_box_message(box) for box in case.truth],
        detections=[_box_message(box) for box in case.detections],
        image=image,
    )


def suspect_message(suspect: SuspectedLabel) -> evaluation_pb2.SuspectedLabel:
    """A label that may be wrong."""
    return evaluation_pb2.SuspectedLabel(
        kind=evaluation_pb2.SuspectKind.Value(f"SUSPECT_KIND_{suspect.kind.name}"),
        suspicion=suspect.suspicion,
        image_id=suspect.image_id,
        file_name=suspect.file_name,
        detection=_box_message(suspect.detection) if suspect.detection else None,
        truth=_box_message(suspect.truth) if suspect.truth else None,
    )


def comparison_message(
    evaluation: tuple[Evaluation, AtThreshold],
    base: tuple[Evaluation, AtThreshold],
    found: Comparison,
    next_page_token: str,
) -> evaluation_pb2.Comparison:
    """Two evaluations side by side."""
    return evaluation_pb2.Comparison(
        evaluation=evaluation_message(*evaluation),
        base=evaluation_message(*base),
        classes=[
            evaluation_pb2.ClassChange(class_name=name, change=change_number(change))
            for name, change in zip(evaluation[0].source.classes, found.classes, strict=True)
        ],
        better_images=found.images[Change.BETTER],
        worse_images=found.images[Change.WORSE],
        same_images=found.images[Change.SAME],
        images=[
            evaluation_pb2.ImageChange(
                image_id=image.image_id,
                file_name=image.file_name,
                base_errors=image.base_errors,
                errors=image.errors,
            )
            for image in found.page
        ],
        next_page_token=next_page_token,
        total_size=found.total,
    )


def histogram_message(histogram: ScoreHistogram) -> evaluation_pb2.ScoreHistogram:
    """Detections by score."""
    return evaluation_pb2.ScoreHistogram(
        class_name=histogram.class_name,
        edges=histogram.edges,
        true_positives=histogram.true_positives,
        false_positives=histogram.false_positives,
    )


def test_image_message(shown: LabelledImage, image: bytes) -> evaluation_pb2.TestImage:
    """An image with its labels; without its bytes unless they were asked for."""
    return evaluation_pb2.TestImage(
        image_id=shown.image_id,
        file_name=shown.file_name,
        width=shown.width,
        height=shown.height,
        truth=[_box_message(box) for box in shown.truth],
        image=image,
    )


def _fault_message(fault: CaseFault) -> evaluation_pb2.Fault:
    return evaluation_pb2.Fault(
        kind=kind_number(fault.kind),
        detection=_NO_BOX if fault.detection is None else fault.detection,
        truth=_NO_BOX if fault.truth is None else fault.truth,
        iou=fault.iou,
        class_name=fault.class_name,
    )


def kind_number(kind: FaultKind) -> evaluation_pb2.FaultKind.ValueType:
    """On the wire."""
    return _KIND_NUMBERS[kind]


def read_kind(number: evaluation_pb2.FaultKind.ValueType) -> FaultKind:
    """From the wire."""
    return FaultKind[evaluation_pb2.FaultKind.Name(number).removeprefix("FAULT_KIND_")]


def read_suspect_kind(number: evaluation_pb2.SuspectKind.ValueType) -> SuspectKind:
    """From the wire."""
    return SuspectKind[evaluation_pb2.SuspectKind.Name(number).removeprefix("SUSPECT_KIND_")]


def change_number(change: Change) -> evaluation_pb2.Change.ValueType:
    """On the wire."""
    return evaluation_pb2.Change.Value(f"CHANGE_{change}")


def read_change(number: evaluation_pb2.Change.ValueType) -> Change | None:
    """From the wire; None for unspecified."""
    return Change(evaluation_pb2.Change.Name(number).removeprefix("CHANGE_")) if number else None


def read_format(number: evaluation_pb2.ExportFormat.ValueType) -> ExportFormat:
    """From the wire; COCO for unspecified."""
    if not number:
        return ExportFormat.COCO
    return ExportFormat(evaluation_pb2.ExportFormat.Name(number).removeprefix("EXPORT_FORMAT_"))


def read_filter(
    request: evaluation_pb2.ListBadCasesRequest | evaluation_pb2.ExportBadCasesRequest,
) -> CaseFilter:
    """Which bad cases are asked for. Raises InvalidArgumentError: SCORE_RANGE_EMPTY."""
    ranged = request.HasField("min_score") or request.HasField("max_score")
    least, highest = request.min_score, request.max_score if request.HasField("max_score") else 1.0
    if least > highest:
        raise InvalidArgumentError(
            "SCORE_RANGE_EMPTY", f"min_score: {least:g} is above max_score, {highest:g}; no score lies between."
        )
    return CaseFilter(
        kinds=[read_kind(kind) for kind in request.kinds if kind],
        class_name=request.class_name,
        scores=(least, highest) if ranged else None,
    )


def _box_message(box: LabelledBox) -> evaluation_pb2.LabelledBox:
    x1, y1, x2, y2 = box.corners
    return evaluation_pb2.LabelledBox(
        x1=x1, y1=y1, x2=x2, y2=y2, class_name=box.class_name, score=box.score or 0.0, crowd=box.crowd
    )
