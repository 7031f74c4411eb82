"""What evaluation answers, drawn: messages to the plain data of charts.py and images.py, and nothing else."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from saucer.drawing import charts, images
from saucer.drawing.wording import BACKGROUND, describe_case
from saucer.evaluation.v1 import evaluation_pb2


def drawn(name: str, draw: Callable[[Path], None]) -> bytes:
    """What one of the functions below draws into a file of that name, which does not stay."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        draw(file)
        return file.read_bytes()


def curves(file: Path, evaluation: evaluation_pb2.Evaluation, answer: evaluation_pb2.PrecisionRecallCurves) -> None:
    """Precision over recall by class."""
    at_threshold = {item.class_name: item for item in evaluation.classes}
    drawn = [
        _curve(curve, at_threshold[curve.class_name])
        for curve in answer.curves
        if curve.points  # a class without test boxes has none
    ]
    title = f"Precision over recall: test {_accuracy(evaluation)}"
    charts.precision_recall(file, drawn, threshold=evaluation.threshold, title=title)


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
    title = f"Labels taken for what, at threshold {answer.threshold:.2f}"
    charts.confusion_matrix(file, [*answer.class_names, BACKGROUND], [row.boxes for row in answer.rows], title=title)


def bad_cases(file: Path, evaluation: evaluation_pb2.Evaluation, cases: Sequence[evaluation_pb2.BadCase]) -> None:
    """A sheet of cases that came with their images."""
    tiles = [
        images.Tile(
            case.image,
            [_box(item, None) for item in case.truth],
            [_box(item, item.score) for item in case.detections],
            describe_case(evaluation, case),
        )
        for case in cases
    ]
    title = f"{evaluation.bad_cases} bad cases of {evaluation.images} images, at threshold {evaluation.threshold:.2f}"
    images.sheet(file, tiles, classes=[item.class_name for item in evaluation.classes], title=title)


def scores(file: Path, evaluation: evaluation_pb2.Evaluation, histogram: evaluation_pb2.ScoreHistogram) -> None:
    """Detections by score, of one class or of all."""
    title = f"Detections of {histogram.class_name or 'all classes'} by score"
    charts.score_histogram(
        file,
        histogram.edges,
        histogram.true_positives,
        histogram.false_positives,
        threshold=evaluation.threshold,
        title=title,
    )


def test_images(file: Path, evaluation: evaluation_pb2.Evaluation, shown: Sequence[evaluation_pb2.TestImage]) -> None:
    """A sheet of images that came with their bytes, with their labels."""
    tiles = [
        images.Tile(image.image, [_box(item, None) for item in image.truth], caption=image.file_name) for image in shown
    ]
    title = f"{len(shown)} of {evaluation.images} images of the test split"
    images.sheet(file, tiles, classes=[item.class_name for item in evaluation.classes], title=title)


def _box(item: evaluation_pb2.LabelledBox, score: float | None) -> images.LabelledBox:
    return images.LabelledBox(item.x1, item.y1, item.x2, item.y2, item.class_name, score)


def _accuracy(evaluation: evaluation_pb2.Evaluation) -> str:
    if evaluation.classification:
        return f"top-1 {evaluation.top_1:.3f}" if evaluation.HasField("top_1") else "top-1 -"
    return f"mAP@0.50 {evaluation.map_50:.3f}" if evaluation.HasField("map_50") else "mAP@0.50 -"
