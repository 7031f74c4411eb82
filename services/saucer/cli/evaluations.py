"""`saucer evaluation`: at any threshold, without inference. A task's id stands for its evaluation."""

from pathlib import Path

import click

from saucer.cli.app import IDENTIFIER, App, Topic, enum_choice, enum_number, found_or, limit_option, pages, pass_app
from saucer.cli.errors import CliError
from saucer.cli.output import duration, enum_name, enum_word, message_dict, moment, percent, ratio
from saucer.evaluation.v1 import evaluation_pb2
from saucer.task.v1 import task_pb2

EVALUATION = click.argument("evaluation_id", type=IDENTIFIER, metavar="EVALUATION_OR_TASK")
THRESHOLD = click.option("--threshold", type=click.FloatRange(0, 1), help="Of the score; default: 0.5.")
CURVE_POINTS = 1000
_KINDS = evaluation_pb2.FaultKind.DESCRIPTOR


@click.group(cls=Topic)
def evaluation() -> None:
    """How good a model is, on its test split."""


@evaluation.command("list")
@click.option("--task", "task_id", type=IDENTIFIER, help="Only of this one.")
@click.option("--model", "model_id", type=IDENTIFIER, help="Only of this one.")
@limit_option()
@pass_app
def list_(app: App, task_id: str | None, model_id: str | None, limit: int) -> None:
    """Evaluations, newest first, each at threshold 0.5."""
    request = evaluation_pb2.ListEvaluationsRequest(
        account_id=app.connection.account_id, task_id=task_id or "", model_id=model_id or ""
    )
    found = pages(app.connection.evaluation.ListEvaluations, request, "evaluations", limit)
    app.output.listing(
        "",
        ("evaluation id", "state", "images", "map", "map_50", "precision", "recall", "bad cases", "created"),
        found,
        lambda item: (
            item.evaluation_id,
            enum_word(item, "state"),
            item.images,
            ratio(item, "map"),
            ratio(item, "map_50"),
            ratio(item, "precision"),
            ratio(item, "recall"),
            item.bad_cases,
            moment(item, "create_time"),
        ),
    )


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw precision over recall as a PNG.")
@pass_app
def show(app: App, evaluation_id: str, threshold: float | None, plot: Path | None) -> None:
    """Scores, as a whole and by class."""
    found = _evaluation(app, evaluation_id, threshold)
    at = f"{found.threshold:.2f}"
    app.output.record(
        "",
        found,
        [
            ("evaluation id", found.evaluation_id),
            ("state", enum_word(found, "state")),
            ("error", found.error_message),
            ("test split", f"{found.images} images, {found.boxes} boxes, {found.unlabelled_images} without labels"),
            ("mAP@0.50 (map_50)", ratio(found, "map_50")),
            ("mAP@0.50:0.95 (map)", ratio(found, "map")),
            ("mAP@0.50, weighted by boxes", ratio(found, "map_50_weighted")),
            (f"precision at {at}", ratio(found, "precision")),
            (f"recall at {at}", ratio(found, "recall")),
            (f"F1 at {at}", ratio(found, "f1")),
            (f"mAP@0.50 of what is above {at}", ratio(found, "map_50_above_threshold")),
            (f"bad cases at {at}", f"{found.bad_cases} images"),
            ("recommended threshold", ratio(found, "recommended_threshold")),
            ("took", duration(found.duration)),
            ("model id", found.model_id),
        ],
    )
    if not app.output.as_json:
        app.output.table(
            f"By class, at threshold {at}",
            (
                "class",
                "boxes",
                "share",
                "AP@0.50",
                "AP",
                "precision",
                "recall",
                "F1",
                "right",
                "wrong",
                "missed",
                "best at",
            ),
            [
                (
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
                    ratio(item, "recommended_threshold"),
                )
                for item in found.classes
            ],
        )
    if plot is not None:
        request = evaluation_pb2.GetPrecisionRecallCurvesRequest(
            evaluation_id=found.evaluation_id, max_points=CURVE_POINTS
        )
        plot_curves(plot, found, app.connection.evaluation.GetPrecisionRecallCurves(request))
        app.output.remark(f"Drawn: {plot}")


@evaluation.command("bad-cases")
@EVALUATION
@THRESHOLD
@click.option("--kind", "kinds", type=enum_choice(_KINDS), multiple=True, help="Only with it; repeatable.")
@click.option("--class", "class_name", default="", help="Only with a fault of this class.")
@click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False), help="Draw them as a PNG; reads the images.")
@limit_option(24)
@pass_app
def bad_cases(
    app: App,
    evaluation_id: str,
    threshold: float | None,
    kinds: tuple[str, ...],
    class_name: str,
    sheet: Path | None,
    limit: int,
) -> None:
    """Images with a false positive, a miss, a confused class or a poorly placed box; worst first."""
    found = _evaluation(app, evaluation_id, threshold)
    request = evaluation_pb2.ListBadCasesRequest(
        evaluation_id=found.evaluation_id,
        threshold=threshold,
        kinds=[enum_number(_KINDS, kind) for kind in kinds],
        class_name=class_name,
        include_images=sheet is not None,
    )
    cases: list[evaluation_pb2.BadCase] = pages(app.connection.evaluation.ListBadCases, request, "bad_cases", limit)
    if sheet is not None:
        draw_bad_cases(sheet, found, cases)
        app.output.remark(f"Drawn: {sheet}")
    for case in cases:
        case.ClearField("image")
    if app.output.as_json:
        app.output.json([message_dict(case) for case in cases])
    elif sheet is None:
        app.output.table(
            f"Bad cases at threshold {found.threshold:.2f}",
            ("image", "faults"),
            [(case.file_name, describe(case)) for case in cases],
        )


def describe(case: evaluation_pb2.BadCase) -> str:
    """`miss of cup, false positive of plate`."""
    return ", ".join(
        f"{enum_name(_KINDS, fault.kind)} of {fault.class_name}" if fault.class_name else enum_name(_KINDS, fault.kind)
        for fault in case.faults
    )


def plot_curves(
    file: Path, evaluation: evaluation_pb2.Evaluation, curves: evaluation_pb2.PrecisionRecallCurves
) -> None:
    """Draws precision over recall. Raises CliError if the file cannot be written."""
    from saucer.cli import pictures  # noqa: PLC0415 - brings matplotlib, which the other commands need not wait for

    drawn = [
        pictures.Curve(
            curve.class_name,
            curve.ap_50,
            [point.recall for point in curve.points],
            [point.precision for point in curve.points],
            [point.threshold for point in curve.points],
        )
        for curve in curves.curves
        if curve.points  # a class without test boxes has none
    ]
    title = f"Precision over recall: test mAP@0.50 {ratio(evaluation, 'map_50')}"
    try:
        pictures.precision_recall(file, drawn, threshold=evaluation.threshold, title=title)
    except OSError as error:
        raise CliError(f"The picture cannot be written: {error}.") from error


def draw_bad_cases(file: Path, evaluation: evaluation_pb2.Evaluation, cases: list[evaluation_pb2.BadCase]) -> None:
    """Draws a sheet of cases that came with their images. Raises CliError if the file cannot be written."""
    from saucer.cli import pictures  # noqa: PLC0415 - brings matplotlib, which the other commands need not wait for

    def box(item: evaluation_pb2.LabelledBox, score: float | None) -> pictures.LabelledBox:
        return pictures.LabelledBox(item.x1, item.y1, item.x2, item.y2, item.class_name, score)

    tiles = [
        pictures.Tile(
            case.image,
            [box(item, None) for item in case.truth],
            [box(item, item.score) for item in case.detections],
            describe(case),
        )
        for case in cases
    ]
    title = f"{evaluation.bad_cases} bad cases of {evaluation.images} images, at threshold {evaluation.threshold:.2f}"
    try:
        pictures.sheet(file, tiles, classes=[item.class_name for item in evaluation.classes], title=title)
    except OSError as error:
        raise CliError(f"The picture cannot be written: {error}.") from error


def _evaluation(app: App, identifier: str, threshold: float | None) -> evaluation_pb2.Evaluation:
    stub = app.connection.evaluation

    def get(evaluation_id: str) -> evaluation_pb2.Evaluation:
        return stub.GetEvaluation(evaluation_pb2.GetEvaluationRequest(evaluation_id=evaluation_id, threshold=threshold))

    def of_task() -> evaluation_pb2.Evaluation:
        found = app.connection.task.GetTask(task_pb2.GetTaskRequest(task_id=identifier))
        if not found.evaluation_id:
            raise CliError(f"The task {identifier} is {enum_word(found, 'state')} and has no evaluation yet.")
        return get(found.evaluation_id)

    return found_or(lambda: get(identifier), of_task)
