"""`saucer evaluation`: at any threshold, without inference. A task's id stands for its evaluation."""

from itertools import pairwise
from pathlib import Path

import click

from saucer.cli.app import CHART, IDENTIFIER, App, Topic, enum_choice, enum_number, limit_option, listed, pass_app
from saucer.cli.errors import CliError
from saucer.cli.evaluation_cases import bad_cases, images, suspects
from saucer.cli.evaluation_options import (
    EVALUATION,
    EVERY,
    FILE,
    THRESHOLD,
    class_table,
    drawing,
    evaluation_of,
)
from saucer.cli.evaluation_tables import (
    CLASS_COLUMNS,
    RECOMMENDATION_COLUMNS,
    class_row,
    has_figures,
    recommendation_row,
    summary_rows,
)
from saucer.cli.exports import new_file
from saucer.cli.output import enum_word, message_dict, moment, ratio
from saucer.drawing.wording import BACKGROUND
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.scores import threshold_text

MOST_COLUMNS = 12  # classes of a confusion matrix, unless all are asked for
SHARE = click.FloatRange(0, 1, min_open=True)
_CHANGES = evaluation_pb2.Change.DESCRIPTOR


@click.group(cls=Topic)
def evaluation() -> None:
    """How good a model is, on its test split."""


evaluation.add_command(bad_cases)
evaluation.add_command(suspects)
evaluation.add_command(images)


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
    found = listed(app, app.connection.evaluation.ListEvaluations, request, "evaluations", limit)
    app.output.listing(
        "",
        ("evaluation id", "state", "images", "map", "map_50", "precision", "recall", "bad cases", "created"),
        found,
        lambda item: (
            item.evaluation_id,
            enum_word(item, "state"),
            item.images if has_figures(item) else "-",
            ratio(item, "map"),
            ratio(item, "map_50"),
            ratio(item, "precision"),
            ratio(item, "recall"),
            item.bad_cases if has_figures(item) else "-",
            moment(item, "create_time"),
        ),
    )


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--plot", type=CHART, help="Draw precision over recall as a PNG or SVG.")
@EVERY
@pass_app
def show(app: App, evaluation_id: str, threshold: float | None, plot: Path | None, every: bool) -> None:
    """Scores, as a whole and by class."""
    found = evaluation_of(app, evaluation_id, threshold)
    app.output.record("", found, summary_rows(found))
    if has_figures(found) and not app.output.as_json:
        title = f"By class, at threshold {threshold_text(found.threshold)}"
        class_table(app, title, CLASS_COLUMNS, [class_row(item) for item in found.classes], every=every)
    if plot is not None:
        request = evaluation_pb2.GetPrecisionRecallCurvesRequest(evaluation_id=found.evaluation_id)
        answer = app.connection.evaluation.GetPrecisionRecallCurves(request)
        curves = {curve.class_name: curve for curve in answer.curves}
        with drawing(app, plot) as draw:
            draw(lambda module, file: module.curves(file, found, curves.__getitem__))


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--plot", type=CHART, help="Draw it as a PNG or SVG.")
@EVERY
@pass_app
def confusion(app: App, evaluation_id: str, threshold: float | None, plot: Path | None, every: bool) -> None:
    """Which class is taken for which; the last row is what is not there, the last column what is not found."""
    found = evaluation_of(app, evaluation_id, threshold)
    request = evaluation_pb2.GetConfusionMatrixRequest(evaluation_id=found.evaluation_id, threshold=threshold)
    matrix = app.connection.evaluation.GetConfusionMatrix(request)
    if app.output.as_json:
        app.output.json(message_dict(matrix))
    else:
        _print_confusion(app, matrix, every=every)
    if plot is not None:
        with drawing(app, plot) as draw:
            draw(lambda module, file: module.confusion(file, matrix))


def _print_confusion(app: App, matrix: evaluation_pb2.ConfusionMatrix, *, every: bool) -> None:
    """Classes and background; of many classes the first, down and across alike."""
    classes = len(matrix.class_names)
    shown = classes if every else min(classes, MOST_COLUMNS)
    places = [*range(shown), classes]
    names = [*matrix.class_names, BACKGROUND]
    app.output.table(
        f"Labels (down) taken for (across), at threshold {threshold_text(matrix.threshold)}",
        ("", *(names[place] for place in places)),
        [(names[row], *(matrix.rows[row].boxes[column] for column in places)) for row in places],
    )
    if shown < classes:
        app.output.remark(f"The first {shown} of {classes} classes; --all shows every one, --plot the most mistaken.")


@evaluation.command()
@EVALUATION
@click.option("--precision", type=SHARE, help="Also the lowest threshold that reaches it.")
@click.option("--recall", type=SHARE, help="Also the highest threshold that reaches it.")
@EVERY
@pass_app
def thresholds(app: App, evaluation_id: str, precision: float | None, recall: float | None, every: bool) -> None:
    """Recommended thresholds: chosen on the validation split, shown with what they do there and on the test split."""
    request = evaluation_pb2.RecommendThresholdsRequest(
        evaluation_id=evaluation_of(app, evaluation_id, None).evaluation_id, precision=precision, recall=recall
    )
    found = app.connection.evaluation.RecommendThresholds(request).recommendations
    if app.output.as_json:
        app.output.json([message_dict(item) for item in found])
        return
    rows = [recommendation_row(item) for item in found]
    title = "On the test split, with 95 % intervals; last on the validation split, where they were chosen"
    class_table(app, title, RECOMMENDATION_COLUMNS, rows, every=every)


@evaluation.command()
@EVALUATION
@click.argument("base_id", type=IDENTIFIER, metavar="BASE_EVALUATION_OR_TASK")
@THRESHOLD
@click.option("--change", type=enum_choice(_CHANGES), help="Only images that changed so; default: better or worse.")
@EVERY
@limit_option(24)
@pass_app
def compare(
    app: App, evaluation_id: str, base_id: str, threshold: float | None, change: str | None, every: bool, limit: int
) -> None:
    """What got better and worse since another evaluation of the same test split; fewer errors are better."""
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=evaluation_of(app, evaluation_id, None).evaluation_id,
        base_evaluation_id=evaluation_of(app, base_id, None).evaluation_id,
        threshold=threshold,
        change=enum_number(_CHANGES, change or "unspecified"),
    )
    first: list[evaluation_pb2.Comparison] = []

    def call(asked: evaluation_pb2.CompareEvaluationsRequest) -> evaluation_pb2.Comparison:
        first.append(app.connection.evaluation.CompareEvaluations(asked))
        return first[-1]

    images = listed(app, call, request, "images", limit)
    compared = first[0]
    if app.output.as_json:
        del compared.images[:]
        compared.images.extend(images)
        compared.next_page_token = first[-1].next_page_token
        app.output.json(message_dict(compared))
        return
    class_table(
        app,
        f"By class, at threshold {threshold_text(compared.evaluation.threshold)}; each before and now",
        ("class", "", "AP@0.50", "", "precision", "", "recall", "", "F1", ""),
        [
            (
                changed.class_name,
                enum_word(changed, "change"),
                *(ratio(side, name) for name in ("ap_50", "precision", "recall", "f1") for side in (before, now)),
            )
            for changed, before, now in zip(
                compared.classes, compared.base.classes, compared.evaluation.classes, strict=True
            )
        ],
        every=every,
    )
    app.output.table(
        f"Images: {compared.better_images} better, {compared.worse_images} worse, {compared.same_images} the same",
        ("image", "errors before", "errors now"),
        [(image.file_name, image.base_errors, image.errors) for image in images],
    )


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--class", "class_name", default="", help="Only of this class.")
@click.option("--plot", type=CHART, help="Draw it as a PNG or SVG.")
@pass_app
def scores(app: App, evaluation_id: str, threshold: float | None, class_name: str, plot: Path | None) -> None:
    """How many detections have which score, right and wrong; the threshold is only drawn."""
    found = evaluation_of(app, evaluation_id, threshold)
    request = evaluation_pb2.GetScoreHistogramsRequest(evaluation_id=found.evaluation_id)
    histograms = app.connection.evaluation.GetScoreHistograms(request).histograms
    histogram = next((item for item in histograms if item.class_name == class_name), None)
    if histogram is None:
        raise CliError(f"The evaluation knows no class {class_name}.")
    if app.output.as_json:
        app.output.json(message_dict(histogram))
    else:
        app.output.table(
            f"Detections of {class_name or 'all classes'} by score",
            ("score", "right", "wrong"),
            [
                (f"{low:.2f} - {high:.2f}", right, wrong)
                for (low, high), right, wrong in zip(
                    pairwise(histogram.edges), histogram.true_positives, histogram.false_positives, strict=True
                )
            ],
        )
    if plot is not None:
        with drawing(app, plot) as draw:
            draw(lambda module, file: module.scores(file, histogram, found.threshold))


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--output", required=True, type=FILE, help="The HTML file.")
@click.option("--images", type=click.IntRange(0, 48), default=0, help="Bad cases to show with their image; reads them.")
@pass_app
def report(app: App, evaluation_id: str, threshold: float | None, output: Path, images: int) -> None:
    """All of it in one HTML file that needs no server and no network."""
    from saucer.cli import evaluation_report  # noqa: PLC0415 - matplotlib, which other commands need not wait for

    found = evaluation_of(app, evaluation_id, threshold)
    with new_file(output) as written:
        gathered = evaluation_report.gather(app.connection.evaluation, found, images)
        written.write(evaluation_report.page(gathered).encode())
    app.output.remark(f"Written: {output}")
