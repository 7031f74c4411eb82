"""What evaluation answers, drawn: messages to the plain data of charts.py and images.py, and nothing else."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from saucer.drawing import charts, images
from saucer.drawing.wording import BACKGROUND, describe_faults
from saucer.evaluation.v1 import evaluation_pb2


def drawn(name: str, draw: Callable[[Path], None]) -> bytes:
    """What one of the functions below draws into a file of that name, which does not stay."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        draw(file)
        return file.read_bytes()


def curves(file: Path, evaluation: evaluation_pb2.Evaluation, answer: evaluation_pb2.PrecisionRecallCurves) -> None:
    """Precision over recall by class."""
    drawn = [
        charts.Curve(
            curve.class_name,
            curve.ap_50,
            [point.recall for point in curve.points],
            [point.precision for point in curve.points],
            [point.threshold for point in curve.points],
        )
        for curve in answer.curves
        if curve.points  # a class without test boxes has none
    ]
    title = f"Precision over recall: test mAP@0.50 {_ratio(evaluation)}"
    charts.precision_recall(file, drawn, threshold=evaluation.threshold, title=title)


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
            describe_faults(case),
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


def _ratio(evaluation: evaluation_pb2.Evaluation) -> str:
    return f"{evaluation.map_50:.3f}" if evaluation.HasField("map_50") else "-"
