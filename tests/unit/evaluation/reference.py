"""The definitions of METRICS.md read out loud: plain loops over boxes, filtered first and matched afterwards."""

from dataclasses import dataclass, field

from saucer.evaluation.truth import Truth
from tests.unit.evaluation.generated import Columns

Box = list[float]
"""Left, top, width, height, and computed with as pycocotools does."""


@dataclass
class Answer:
    """At one threshold: true positives as detection → truth, ignored detections, faults as (kind, detection, truth)."""

    found: dict[int, int] = field(default_factory=dict)
    ignored: set[int] = field(default_factory=set)
    faults: set[tuple[str, int | None, int | None]] = field(default_factory=set)
    overlaps: dict[int, float] = field(default_factory=dict)


def answer_at(truth: Truth, detections: Columns, threshold: float) -> Answer:
    kept = [row for row, score in enumerate(detections.score.tolist()) if score >= threshold]
    answer = Answer()
    for image in truth.images.tolist():
        truths = [row for row in range(truth.label.size) if truth.image_id[row] == image]
        mine = [row for row in kept if detections.image_id[row] == image]
        mine.sort(key=lambda row: -float(detections.score[row]))
        _match_image(truth, detections, truths, mine, answer)
    return answer


def confusion_at(truth: Truth, detections: Columns, threshold: float) -> list[list[int]]:
    """Every truth and every other detection, one after the other, into its cell (M11)."""
    answer = answer_at(truth, detections, threshold)
    background = len(truth.classes)
    matrix = [[0] * (background + 1) for _ in range(background + 1)]
    explained: set[int] = set(answer.found) | answer.ignored
    for row, label in enumerate(truth.label.tolist()):
        if truth.crowd[row]:
            continue
        if row in answer.found.values():
            matrix[label][label] += 1
            continue
        takers = [d for kind, d, t in answer.faults if kind == "CONFUSED" and t == row and d is not None]
        if not takers:
            matrix[label][background] += 1
            continue
        taker = min(takers, key=lambda d: (-float(detections.score[d]), d))
        explained.add(taker)
        matrix[label][int(detections.label[taker])] += 1
    for detection, score in enumerate(detections.score.tolist()):
        if score >= threshold and detection not in explained:
            matrix[background][int(detections.label[detection])] += 1
    return matrix


def _match_image(truth: Truth, detections: Columns, truths: list[int], mine: list[int], answer: Answer) -> None:
    labels, crowds = truth.label.tolist(), truth.crowd.tolist()
    boxes: dict[int, Box] = {row: [*truth.box[row, :2].tolist(), *truth.box_size[row].tolist()] for row in truths}
    told: set[int] = set()
    taken: set[int] = set()
    for detection in mine:
        label, (x1, y1, x2, y2) = int(detections.label[detection]), detections.box[detection].astype(float).tolist()
        box = [x1, y1, x2 - x1, y2 - y1]
        own = [row for row in truths if labels[row] == label and not crowds[row]]
        others = [row for row in truths if labels[row] != label and not crowds[row]]
        crowd = [row for row in truths if labels[row] == label and crowds[row]]
        free = _best(box, [row for row in own if row not in taken], boxes)
        if free and free[1] >= 0.5:
            taken.add(free[0])
            answer.found[detection] = free[0]
            answer.overlaps[detection] = free[1]
            continue
        if any(_share_in(box, boxes[row]) >= 0.5 for row in crowd):
            answer.ignored.add(detection)
            continue
        best_own, best_other = _best(box, own, boxes), _best(box, others, boxes)
        own_iou = best_own[1] if best_own else 0.0
        fault: tuple[str, int | None, int | None] = ("FALSE_POSITIVE", detection, None)
        if best_other and best_other[1] >= 0.5 and best_other[1] > own_iou:
            fault = ("CONFUSED", detection, best_other[0])
            told.add(best_other[0])
            answer.overlaps[detection] = best_other[1]
        elif best_own and own_iou >= 0.5:
            fault = ("FALSE_POSITIVE", detection, best_own[0])
            answer.overlaps[detection] = own_iou
        elif best_own and own_iou >= 0.1:
            fault = ("POORLY_PLACED", detection, best_own[0])
            told.add(best_own[0])
            answer.overlaps[detection] = own_iou
        answer.faults.add(fault)
    for row in truths:
        if not crowds[row] and row not in taken and row not in told:
            answer.faults.add(("MISS", None, row))


def _best(box: Box, rows: list[int], boxes: dict[int, Box]) -> tuple[int, float] | None:
    """The row of highest IoU, of equals the last."""
    best: tuple[int, float] | None = None
    for row in rows:
        iou = _iou(box, boxes[row])
        if best is None or iou >= best[1]:
            best = (row, iou)
    return best


def _iou(a: Box, b: Box) -> float:
    shared = _shared(a, b)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def _share_in(box: Box, crowd: Box) -> float:
    shared = _shared(box, crowd)
    return shared / (box[2] * box[3]) if shared else 0.0


def _shared(a: Box, b: Box) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
