"""What evaluation answers, drawn: messages to the plain data of charts.py and images.py, and nothing else."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from saucer.drawing import charts, images
from saucer.drawing.lettering import short
from saucer.drawing.wording import BACKGROUND, describe_case, describe_filter
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.scores import threshold_text


def drawn(name: str, draw: Callable[[Path], None]) -> bytes:
    """What one of the functions below draws into a file of that name, which does not stay."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        draw(file)
        return file.read_bytes()


def curves(
    file: Path,
    evaluation: evaluation_pb2.Evaluation,
    curve_of: Callable[[str], evaluation_pb2.PrecisionRecallCurve],
    class_name: str = "",
) -> None:
    """Precision over recall of a class, or of all.

    Of many classes it draws those with the lowest AP, of a classification those with the lowest F1 at the threshold;
    only of these it asks for a curve. A class without labels has none.
    """
    known = [
        item for item in evaluation.classes if class_name in {"", item.class_name} and _is_scored(evaluation, item)
    ]
    drawn, which = known, ""
    if len(known) > charts.MAX_CURVES:
        drawn = sorted(known, key=lambda item: _goodness(evaluation, item))[: charts.MAX_CURVES]
        measure = f"F1 at {threshold_text(evaluation.threshold)}" if evaluation.classification else "AP"
        which = f"the {len(drawn)} of {len(known)} classes with the lowest {measure}"
    charts.precision_recall(
        file,
        [_curve(curve_of(item.class_name), item) for item in drawn],
        threshold=evaluation.threshold,
        title=f"Precision over recall: test {_accuracy(evaluation)}",
        which=which,
        none_because=_none_because(evaluation, class_name),
    )


def _none_because(evaluation: evaluation_pb2.Evaluation, class_name: str) -> str:
    of_class = f" of\n{short(class_name)}" if class_name else ""
    crowds = "" if evaluation.classification else "\nLabels of crowds do not count."
    return f"the test split has no label{of_class}.{crowds}"


def _is_scored(evaluation: evaluation_pb2.Evaluation, item: evaluation_pb2.ClassResult) -> bool:
    """Whether the test split has labels of the class: then nothing found, a curve without points, is the worst of all.

    A label of a crowd alone gives no AP; of classification, which has no crowds, there is no AP at all.
    """
    return item.boxes > 0 if evaluation.classification else item.HasField("ap_50")


def _goodness(evaluation: evaluation_pb2.Evaluation, item: evaluation_pb2.ClassResult) -> float:
    return item.f1 if evaluation.classification else item.ap_50


def _curve(curve: evaluation_pb2.PrecisionRecallCurve, at: evaluation_pb2.ClassResult) -> charts.Curve:
    return charts.Curve(
        curve.class_name,
        curve.ap_50 if curve.HasField("ap_50") else None,
        [point.recall for point in curve.points],
        [point.precision for point in curve.points],
        at.recall if at.HasField("recall") else None,
        at.precision if at.HasField("precision") else None,
    )


def confusion(file: Path, answer: evaluation_pb2.ConfusionMatrix) -> None:
    """Which class is taken for which."""
    title = f"Labels taken for what, at threshold {threshold_text(answer.threshold)}"
    charts.confusion_matrix(file, [*answer.class_names, BACKGROUND], [row.boxes for row in answer.rows], title=title)


def bad_cases(
    file: Path,
    evaluation: evaluation_pb2.Evaluation,
    cases: Sequence[evaluation_pb2.BadCase],
    asked: evaluation_pb2.ListBadCasesRequest,
    total: int,
) -> None:
    """A sheet of cases that came with their images, of so many in all that were asked for."""
    tiles = [
        images.Tile(
            case.image,
            [_box(item, None) for item in case.truth],
            [_box(item, item.score) for item in case.detections],
            describe_case(evaluation, case),
        )
        for case in cases
    ]
    title = f"{total} bad cases of {evaluation.images} images, at threshold {threshold_text(evaluation.threshold)}"
    wanted = describe_filter(evaluation, asked)
    if wanted:
        title += f": {wanted}"
    images.sheet(file, tiles, classes=[item.class_name for item in evaluation.classes], title=title)


def scores(file: Path, histogram: evaluation_pb2.ScoreHistogram, threshold: float) -> None:
    """Detections by score, of one class or of all."""
    title = f"Detections of {short(histogram.class_name) or 'all classes'} by score"
    charts.score_histogram(
        file, histogram.edges, histogram.true_positives, histogram.false_positives, threshold=threshold, title=title
    )


def test_images(
    file: Path, evaluation: evaluation_pb2.Evaluation, shown: Sequence[evaluation_pb2.TestImage], class_name: str
) -> None:
    """A sheet of images that came with their bytes, with their labels: those of a class, or all."""
    tiles = [
        images.Tile(image.image, [_box(item, None) for item in image.truth], caption=image.file_name) for image in shown
    ]
    title = f"{len(shown)} of {evaluation.images} images of the test split"
    if class_name:
        title += f", with a label of {short(class_name)}"
    images.sheet(file, tiles, classes=[item.class_name for item in evaluation.classes], title=title)


def _box(item: evaluation_pb2.LabelledBox, score: float | None) -> images.LabelledBox:
    return images.LabelledBox(item.x1, item.y1, item.x2, item.y2, item.class_name, score, item.crowd)


def _accuracy(evaluation: evaluation_pb2.Evaluation) -> str:
    if evaluation.classification:
        return f"top-1 {evaluation.top_1:.3f}" if evaluation.HasField("top_1") else "top-1 -"
    return f"mAP@0.50 {evaluation.map_50:.3f}" if evaluation.HasField("map_50") else "mAP@0.50 -"
