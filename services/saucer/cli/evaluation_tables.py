"""Rows of what evaluation answers, for tables on the terminal and in the report."""

from typing import Literal

from saucer.cli.output import duration, enum_word, percent, ratio
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.scores import threshold_text

CLASS_COLUMNS = (
    *("class", "boxes", "share", "AP@0.50", "AP", "precision", "recall", "F1"),
    *("right", "wrong", "missed", "best at"),
)
RECOMMENDATION_COLUMNS = (
    *("class", "goal", "threshold", "precision", "", "recall", "", "F1"),
    *("validation precision", "validation recall"),
)
SUSPECT_COLUMNS = ("suspicion", "may be", "image", "labelled", "found")

_GOALS = {
    evaluation_pb2.THRESHOLD_GOAL_BEST_F1: "best F1",
    evaluation_pb2.THRESHOLD_GOAL_PRECISION: "precision {}",
    evaluation_pb2.THRESHOLD_GOAL_RECALL: "recall {}",
}


def suspect_row(suspect: evaluation_pb2.SuspectedLabel) -> tuple[object, ...]:
    """Of a table with SUSPECT_COLUMNS."""
    found = f"{suspect.detection.class_name} {suspect.detection.score:.2f}" if suspect.HasField("detection") else ""
    return (
        f"{suspect.suspicion:.3f}",
        enum_word(suspect, "kind"),
        suspect.file_name,
        suspect.truth.class_name,
        found,
    )


def recommendation_row(item: evaluation_pb2.ThresholdRecommendation) -> tuple[object, ...]:
    """Of a table with RECOMMENDATION_COLUMNS."""
    return (
        item.class_name or "all",
        _GOALS[item.goal].format(f"{item.wanted:g}"),
        threshold_text(item.threshold) if item.HasField("threshold") else "-",
        ratio(item.test, "precision"),
        interval(item.test, "precision_interval"),
        ratio(item.test, "recall"),
        interval(item.test, "recall_interval"),
        ratio(item.test, "f1"),
        ratio(item.validation, "precision"),
        ratio(item.validation, "recall"),
    )


def class_row(item: evaluation_pb2.ClassResult) -> tuple[object, ...]:
    """Of a table with CLASS_COLUMNS."""
    return (
        item.class_name,
        item.boxes,
        percent(item.share),
        ratio(item, "ap_50"),
        ratio(item, "ap"),
        ratio(item, "precision"),
        ratio(item, "recall"),
        ratio(item, "f1"),
        item.true_positives,
        item.false_positives,
        item.misses,
        _recommended(item),
    )


def summary_rows(found: evaluation_pb2.Evaluation) -> list[tuple[str, str]]:
    """What is known of an evaluation as a whole; an empty figure is none. Unless it has succeeded it has no figures."""
    return [
        ("evaluation id", found.evaluation_id),
        ("state", enum_word(found, "state")),
        ("error", found.error_message),
        *(_figure_rows(found) if has_figures(found) else ()),
        ("took", duration(found.duration)),
        ("model id", found.model_id),
    ]


def has_figures(found: evaluation_pb2.Evaluation) -> bool:
    """Whether its counts are counts: before it has succeeded each is 0."""
    return found.state == evaluation_pb2.EVALUATION_STATE_SUCCEEDED


def _figure_rows(found: evaluation_pb2.Evaluation) -> list[tuple[str, str]]:
    at = threshold_text(found.threshold)
    return [
        ("test split", f"{found.images} images, {found.boxes} boxes, {found.unlabelled_images} with nothing to find"),
        *accuracy_rows(found),
        (f"precision at {at}", ratio(found, "precision")),
        (f"recall at {at}", ratio(found, "recall")),
        (f"F1 at {at}", ratio(found, "f1")),
        (f"mAP@0.50 of what is above {at}", _unless_classified(found, "map_50_above_threshold")),
        (f"bad cases at {at}", f"{found.bad_cases} images"),
        ("recommended threshold", _recommended(found)),
    ]


def _recommended(found: evaluation_pb2.Evaluation | evaluation_pb2.ClassResult) -> str:
    return threshold_text(found.recommended_threshold) if found.HasField("recommended_threshold") else "-"


def accuracy_rows(found: evaluation_pb2.Evaluation) -> list[tuple[str, str]]:
    """What no threshold moves."""
    if found.classification:
        return [("top-1 accuracy", ratio(found, "top_1")), ("top-5 accuracy", ratio(found, "top_5"))]
    return [
        ("mAP@0.50 (map_50)", ratio(found, "map_50")),
        ("mAP@0.50:0.95 (map)", ratio(found, "map")),
        ("mAP@0.50, weighted by boxes (map_50_weighted)", ratio(found, "map_50_weighted")),
        ("mAP@0.50:0.95, weighted by boxes (map_weighted)", ratio(found, "map_weighted")),
        *coco_rows(found),
    ]


def _unless_classified(found: evaluation_pb2.Evaluation, field: str) -> str:
    return "" if found.classification else ratio(found, field)


def coco_rows(found: evaluation_pb2.Evaluation) -> list[tuple[str, str]]:
    """The rest of COCO's twelve numbers, where the evaluation has them."""
    if not found.HasField("coco"):
        return []
    coco = found.coco
    sizes = " / ".join(ratio(coco, f"map_{size}") for size in ("small", "medium", "large"))
    recalls = " / ".join(ratio(coco, f"ar_{most}") for most in (1, 10, 100))
    recalls_by_size = " / ".join(ratio(coco, f"ar_{size}") for size in ("small", "medium", "large"))
    return [
        ("mAP@0.75", ratio(coco, "map_75")),
        ("mAP of small / medium / large", sizes),
        ("average recall of 1 / 10 / 100 boxes", recalls),
        ("average recall of small / medium / large", recalls_by_size),
    ]


def interval(counts: evaluation_pb2.MeasuredCounts, field: Literal["precision_interval", "recall_interval"]) -> str:
    """`0.596 - 0.982`; nothing where there is none."""
    if not counts.HasField(field):
        return ""
    bounds: evaluation_pb2.Interval = getattr(counts, field)
    return f"{bounds.low:.3f} - {bounds.high:.3f}"
