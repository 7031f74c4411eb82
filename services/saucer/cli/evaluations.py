"""`saucer evaluation`: at any threshold, without inference. A task's id stands for its evaluation."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import click

from saucer.cli.app import IDENTIFIER, App, Topic, enum_choice, enum_number, found_or, limit_option, pages, pass_app
from saucer.cli.connection import streaming
from saucer.cli.errors import CliError
from saucer.cli.output import duration, enum_name, enum_word, message_dict, moment, percent, ratio
from saucer.evaluation.v1 import evaluation_pb2
from saucer.task.v1 import task_pb2

EVALUATION = click.argument("evaluation_id", type=IDENTIFIER, metavar="EVALUATION_OR_TASK")
THRESHOLD = click.option("--threshold", type=click.FloatRange(0, 1), help="Of the score; default: 0.5.")
CURVE_POINTS = 1000
FILE = click.Path(path_type=Path, dir_okay=False)
SHARE = click.FloatRange(0, 1, min_open=True)
BACKGROUND = "background"
CLASS_COLUMNS = (
    *("class", "boxes", "share", "AP@0.50", "AP", "precision", "recall", "F1"),
    *("right", "wrong", "missed", "best at"),
)
RECOMMENDATION_COLUMNS = ("class", "goal", "threshold", "precision", "", "recall", "", "F1")
SUSPECT_COLUMNS = ("suspicion", "may be", "image", "labelled", "found")
_FORMATS = {".csv": evaluation_pb2.EXPORT_FORMAT_CSV, ".json": evaluation_pb2.EXPORT_FORMAT_COCO}
_SUSPECTS = evaluation_pb2.SuspectKind.DESCRIPTOR
_CHANGES = evaluation_pb2.Change.DESCRIPTOR
_KINDS = evaluation_pb2.FaultKind.DESCRIPTOR

_GOALS = {
    evaluation_pb2.THRESHOLD_GOAL_BEST_F1: "best F1",
    evaluation_pb2.THRESHOLD_GOAL_PRECISION: "precision {}",
    evaluation_pb2.THRESHOLD_GOAL_RECALL: "recall {}",
}


class _ExportFile(click.Path):
    """A file whose name says its form."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses other names."""
        if Path(value).suffix.lower() not in _FORMATS:
            self.fail(f"{value!r}: the name must end in {' or '.join(_FORMATS)}.", param, ctx)
        return super().convert(value, param, ctx)


EXPORT = _ExportFile(path_type=Path, dir_okay=False)


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
@click.option("--plot", type=FILE, help="Draw precision over recall as a PNG or SVG.")
@pass_app
def show(app: App, evaluation_id: str, threshold: float | None, plot: Path | None) -> None:
    """Scores, as a whole and by class."""
    found = _evaluation(app, evaluation_id, threshold)
    app.output.record("", found, summary_rows(found))
    if not app.output.as_json:
        title = f"By class, at threshold {found.threshold:.2f}"
        app.output.table(title, CLASS_COLUMNS, [class_row(item) for item in found.classes])
    if plot is not None:
        request = evaluation_pb2.GetPrecisionRecallCurvesRequest(
            evaluation_id=found.evaluation_id, max_points=CURVE_POINTS
        )
        curves = app.connection.evaluation.GetPrecisionRecallCurves(request)
        with drawing(app, plot) as draw:
            draw.curves(plot, found, curves)


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--plot", type=FILE, help="Draw it as a PNG or SVG.")
@pass_app
def confusion(app: App, evaluation_id: str, threshold: float | None, plot: Path | None) -> None:
    """Which class is taken for which; the last row is what is not there, the last column what is not found."""
    found = _evaluation(app, evaluation_id, threshold)
    request = evaluation_pb2.GetConfusionMatrixRequest(evaluation_id=found.evaluation_id, threshold=threshold)
    matrix = app.connection.evaluation.GetConfusionMatrix(request)
    if app.output.as_json:
        app.output.json(message_dict(matrix))
    else:
        names = [*matrix.class_names, BACKGROUND]
        app.output.table(
            f"Labels (down) taken for (across), at threshold {matrix.threshold:.2f}",
            ("", *names),
            [(name, *row.boxes) for name, row in zip(names, matrix.rows, strict=True)],
        )
    if plot is not None:
        with drawing(app, plot) as draw:
            draw.confusion(plot, matrix)


@evaluation.command()
@EVALUATION
@click.option("--precision", type=SHARE, help="Also the lowest threshold that reaches it.")
@click.option("--recall", type=SHARE, help="Also the highest threshold that reaches it.")
@pass_app
def thresholds(app: App, evaluation_id: str, precision: float | None, recall: float | None) -> None:
    """Recommended thresholds: chosen on the validation split, shown with what they do on the test split."""
    found = _evaluation(app, evaluation_id, None)
    request = evaluation_pb2.RecommendThresholdsRequest(
        evaluation_id=found.evaluation_id, precision=precision, recall=recall
    )
    app.output.listing(
        "On the test split, with 95 % intervals",
        RECOMMENDATION_COLUMNS,
        app.connection.evaluation.RecommendThresholds(request).recommendations,
        recommendation_row,
    )


@evaluation.command("bad-cases")
@EVALUATION
@THRESHOLD
@click.option("--kind", "kinds", type=enum_choice(_KINDS), multiple=True, help="Only with it; repeatable.")
@click.option("--class", "class_name", default="", help="Only with a fault of this class.")
@click.option("--min-score", type=click.FloatRange(0, 1), help="Only faults of detections from this score on.")
@click.option("--max-score", type=click.FloatRange(0, 1), help="Only faults of detections up to this score.")
@click.option("--sheet", type=FILE, help="Draw them as a PNG; reads the images.")
@click.option("--export", type=EXPORT, help="Write all of them to a file: .csv, or .json as COCO with tags.")
@limit_option(24)
@pass_app
def bad_cases(
    app: App,
    evaluation_id: str,
    threshold: float | None,
    kinds: tuple[str, ...],
    class_name: str,
    min_score: float | None,
    max_score: float | None,
    sheet: Path | None,
    export: Path | None,
    limit: int,
) -> None:
    """Images with a false positive, a miss, a confused class or a poorly placed box; worst first."""
    found = _evaluation(app, evaluation_id, threshold)
    wanted: dict[str, Any] = {
        "evaluation_id": found.evaluation_id,
        "threshold": threshold,
        "kinds": [enum_number(_KINDS, kind) for kind in kinds],
        "class_name": class_name,
        "min_score": min_score,
        "max_score": max_score,
    }
    if export is not None:
        _export(app, export, evaluation_pb2.ExportBadCasesRequest(**wanted, format=_FORMATS[export.suffix.lower()]))
        return
    request = evaluation_pb2.ListBadCasesRequest(**wanted, include_images=sheet is not None)
    cases: list[evaluation_pb2.BadCase] = pages(app.connection.evaluation.ListBadCases, request, "bad_cases", limit)
    if sheet is not None:
        with drawing(app, sheet) as draw:
            draw.bad_cases(sheet, found, cases)
    for case in cases:
        case.ClearField("image")
    if app.output.as_json:
        app.output.json([message_dict(case) for case in cases])
    elif sheet is None:
        app.output.table(
            f"Bad cases at threshold {found.threshold:.2f}",
            ("image", "faults"),
            [(case.file_name, describe_faults(case)) for case in cases],
        )


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--kind", "kinds", type=enum_choice(_SUSPECTS), multiple=True, help="Only of it; repeatable.")
@limit_option()
@pass_app
def suspects(app: App, evaluation_id: str, threshold: float | None, kinds: tuple[str, ...], limit: int) -> None:
    """Labels that may be wrong, most suspicious first."""
    found = _evaluation(app, evaluation_id, threshold)
    request = evaluation_pb2.ListSuspectedLabelsRequest(
        evaluation_id=found.evaluation_id,
        threshold=threshold,
        kinds=[enum_number(_SUSPECTS, kind) for kind in kinds],
    )
    app.output.listing(
        f"Labels that may be wrong, at threshold {found.threshold:.2f}",
        SUSPECT_COLUMNS,
        pages(app.connection.evaluation.ListSuspectedLabels, request, "suspected_labels", limit),
        suspect_row,
    )


@evaluation.command()
@EVALUATION
@click.argument("base_id", type=IDENTIFIER, metavar="BASE_EVALUATION_OR_TASK")
@THRESHOLD
@click.option("--change", type=enum_choice(_CHANGES), help="Only images that changed so; default: better or worse.")
@limit_option(24)
@pass_app
def compare(
    app: App, evaluation_id: str, base_id: str, threshold: float | None, change: str | None, limit: int
) -> None:
    """What got better and worse since another evaluation of the same test split; fewer errors are better."""
    request = evaluation_pb2.CompareEvaluationsRequest(
        evaluation_id=_evaluation(app, evaluation_id, None).evaluation_id,
        base_evaluation_id=_evaluation(app, base_id, None).evaluation_id,
        threshold=threshold,
        change=enum_number(_CHANGES, change or "unspecified"),
    )
    first: list[evaluation_pb2.Comparison] = []

    def call(asked: evaluation_pb2.CompareEvaluationsRequest) -> evaluation_pb2.Comparison:
        first.append(app.connection.evaluation.CompareEvaluations(asked))
        return first[-1]

    images = pages(call, request, "images", limit)
    compared = first[0]
    if app.output.as_json:
        del compared.images[:]
        compared.images.extend(images)
        compared.next_page_token = first[-1].next_page_token
        app.output.json(message_dict(compared))
        return
    app.output.table(
        f"By class, at threshold {compared.evaluation.threshold:.2f}; each before and now",
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
@click.option("--plot", type=FILE, help="Draw it as a PNG or SVG.")
@pass_app
def scores(app: App, evaluation_id: str, threshold: float | None, class_name: str, plot: Path | None) -> None:
    """How many detections have which score, right and wrong; the threshold is only drawn."""
    found = _evaluation(app, evaluation_id, threshold)
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
            draw.scores(plot, found, histogram)


@evaluation.command()
@EVALUATION
@click.option("--class", "class_name", default="", help="Only with a label of this class.")
@click.option("--sheet", type=FILE, help="Draw them with their labels as a PNG; reads the images.")
@limit_option(24)
@pass_app
def images(app: App, evaluation_id: str, class_name: str, sheet: Path | None, limit: int) -> None:
    """The test split, image by image."""
    found = _evaluation(app, evaluation_id, None)
    request = evaluation_pb2.ListTestImagesRequest(
        evaluation_id=found.evaluation_id, class_name=class_name, include_images=sheet is not None
    )
    shown: list[evaluation_pb2.TestImage] = pages(
        app.connection.evaluation.ListTestImages, request, "test_images", limit
    )
    if sheet is not None:
        with drawing(app, sheet) as draw:
            draw.test_images(sheet, found, shown)
    for image in shown:
        image.ClearField("image")
    if app.output.as_json or sheet is None:
        app.output.listing(
            "The test split",
            ("image", "size", "labels"),
            shown,
            lambda image: (
                image.file_name,
                f"{image.width} x {image.height}",
                ", ".join(f"{count} {name}" for name, count in Counter(box.class_name for box in image.truth).items()),
            ),
        )


@evaluation.command()
@EVALUATION
@THRESHOLD
@click.option("--output", required=True, type=FILE, help="The HTML file.")
@click.option("--images", type=click.IntRange(0, 48), default=0, help="Bad cases to show with their image; reads them.")
@pass_app
def report(app: App, evaluation_id: str, threshold: float | None, output: Path, images: int) -> None:
    """All of it in one HTML file that needs no server and no network."""
    from saucer.cli import evaluation_report  # noqa: PLC0415 - matplotlib, which other commands need not wait for

    found = _evaluation(app, evaluation_id, threshold)
    gathered = evaluation_report.gather(app.connection.evaluation, found, images)
    try:
        output.write_text(evaluation_report.page(gathered), encoding="utf-8")
    except OSError as error:
        raise CliError(f"The report cannot be written: {error}.") from error
    app.output.remark(f"Written: {output}")


def _export(app: App, file: Path, request: evaluation_pb2.ExportBadCasesRequest) -> None:
    aside = file.with_name(f"{file.name}.part")
    try:
        with streaming(app.connection.evaluation.ExportBadCases(request)) as pieces, aside.open("wb") as written:
            for piece in pieces:
                written.write(piece.data)
        aside.replace(file)
    except OSError as error:
        raise CliError(f"The bad cases cannot be written: {error}.") from error
    app.output.remark(f"Written: {file}")


@contextmanager
def drawing(app: App, file: Path) -> Iterator[ModuleType]:
    """The module that draws, for a picture into the file. Raises CliError if that cannot be written."""
    from saucer.cli import evaluation_pictures  # noqa: PLC0415 - matplotlib, which other commands need not wait for

    try:
        yield evaluation_pictures
    except OSError as error:
        raise CliError(f"The picture cannot be written: {error}.") from error
    app.output.remark(f"Drawn: {file}")


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
        _GOALS[item.goal].format(f"{item.wanted:.2f}"),
        ratio(item, "threshold"),
        ratio(item.test, "precision"),
        interval(item.test, "precision_interval"),
        ratio(item.test, "recall"),
        interval(item.test, "recall_interval"),
        ratio(item.test, "f1"),
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
        ratio(item, "recommended_threshold"),
    )


def summary_rows(found: evaluation_pb2.Evaluation) -> list[tuple[str, str]]:
    """What is known of an evaluation as a whole; an empty figure is none."""
    at = f"{found.threshold:.2f}"
    return [
        ("evaluation id", found.evaluation_id),
        ("state", enum_word(found, "state")),
        ("error", found.error_message),
        ("test split", f"{found.images} images, {found.boxes} boxes, {found.unlabelled_images} without labels"),
        ("mAP@0.50 (map_50)", ratio(found, "map_50")),
        ("mAP@0.50:0.95 (map)", ratio(found, "map")),
        ("mAP@0.50, weighted by boxes", ratio(found, "map_50_weighted")),
        *coco_rows(found),
        (f"precision at {at}", ratio(found, "precision")),
        (f"recall at {at}", ratio(found, "recall")),
        (f"F1 at {at}", ratio(found, "f1")),
        (f"mAP@0.50 of what is above {at}", ratio(found, "map_50_above_threshold")),
        (f"bad cases at {at}", f"{found.bad_cases} images"),
        ("recommended threshold", ratio(found, "recommended_threshold")),
        ("took", duration(found.duration)),
        ("model id", found.model_id),
    ]


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


def describe_faults(case: evaluation_pb2.BadCase) -> str:
    """`miss of cup, false positive of plate`."""
    return ", ".join(
        f"{enum_name(_KINDS, fault.kind)} of {fault.class_name}" if fault.class_name else enum_name(_KINDS, fault.kind)
        for fault in case.faults
    )


def interval(counts: evaluation_pb2.MeasuredCounts, field: Literal["precision_interval", "recall_interval"]) -> str:
    """`0.596 - 0.982`; nothing where there is none."""
    if not counts.HasField(field):
        return ""
    bounds: evaluation_pb2.Interval = getattr(counts, field)
    return f"{bounds.low:.3f} - {bounds.high:.3f}"


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
