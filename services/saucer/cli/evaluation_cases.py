"""`saucer evaluation`, image by image: bad cases, suspected labels, the test split."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from saucer.cli.app import PICTURE, App, FormFile, Verb, enum_choice, enum_number, limit_option, listed, pages, pass_app
from saucer.cli.evaluation_options import EVALUATION, THRESHOLD, drawing, evaluation_of
from saucer.cli.evaluation_tables import SUSPECT_COLUMNS, suspect_row
from saucer.cli.exports import write_pieces
from saucer.cli.output import message_dict
from saucer.drawing.wording import describe_case
from saucer.evaluation.v1 import evaluation_pb2
from saucer.lib.scores import threshold_text

_FORMATS = {".csv": evaluation_pb2.EXPORT_FORMAT_CSV, ".json": evaluation_pb2.EXPORT_FORMAT_COCO}
_SUSPECTS = evaluation_pb2.SuspectKind.DESCRIPTOR
_KINDS = evaluation_pb2.FaultKind.DESCRIPTOR


EXPORT = FormFile(_FORMATS)


@click.command("bad-cases", cls=Verb)
@EVALUATION
@THRESHOLD
@click.option("--kind", "kinds", type=enum_choice(_KINDS), multiple=True, help="Only with it; repeatable.")
@click.option("--class", "class_name", default="", help="Only with a fault of this class.")
@click.option("--min-score", type=click.FloatRange(0, 1), help="Only faults of detections from this score on.")
@click.option("--max-score", type=click.FloatRange(0, 1), help="Only faults of detections up to this score.")
@click.option("--sheet", type=PICTURE, help="Draw them as a PNG; reads the images.")
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
    if export is not None and sheet is not None:
        raise click.UsageError("--export writes all of them, --sheet draws some: one at a time.")
    found = evaluation_of(app, evaluation_id, threshold)
    wanted: dict[str, Any] = {
        "evaluation_id": found.evaluation_id,
        "threshold": threshold,
        "kinds": [enum_number(_KINDS, kind) for kind in kinds],
        "class_name": class_name,
        "min_score": min_score,
        "max_score": max_score,
    }
    if export is not None:
        exported = evaluation_pb2.ExportBadCasesRequest(**wanted, format=_FORMATS[export.suffix.lower()])
        write_pieces(app, export, lambda: app.connection.evaluation.ExportBadCases(exported))
        return
    request = evaluation_pb2.ListBadCasesRequest(**wanted, include_images=sheet is not None)
    total = 0

    def call(asked: evaluation_pb2.ListBadCasesRequest) -> evaluation_pb2.ListBadCasesResponse:
        nonlocal total
        answer = app.connection.evaluation.ListBadCases(asked)
        total = answer.total_size
        return answer

    cases: list[evaluation_pb2.BadCase]
    if sheet is None:
        cases = listed(app, call, request, "bad_cases", limit)
    else:
        with drawing(app, sheet) as draw:
            cases = _for_a_sheet(app, call, request, "bad_cases", limit)
            draw(lambda module, file: module.bad_cases(file, found, cases, request, total))
    for case in cases:
        case.ClearField("image")
    if app.output.as_json:
        app.output.json([message_dict(case) for case in cases])
    elif sheet is None:
        app.output.table(
            f"Bad cases at threshold {threshold_text(found.threshold)}",
            ("image", "faults"),
            [(case.file_name, describe_case(found, case)) for case in cases],
        )


def _for_a_sheet(app: App, call: Callable[[Any], Any], request: Any, field: str, limit: int) -> list[Any]:
    """listed(), but no more than a sheet has room for, since each image that is read costs its owner."""
    from saucer.drawing import images  # noqa: PLC0415 - matplotlib, which other commands need not wait for

    if limit <= images.MAX_TILES:
        return listed(app, call, request, field, limit)
    found = pages(call, request, field, images.MAX_TILES)
    if request.page_token:
        app.output.remark(f"A sheet has room for {len(found)} images; no other is read.")
    return found


@click.command(cls=Verb)
@EVALUATION
@THRESHOLD
@click.option("--kind", "kinds", type=enum_choice(_SUSPECTS), multiple=True, help="Only of it; repeatable.")
@limit_option()
@pass_app
def suspects(app: App, evaluation_id: str, threshold: float | None, kinds: tuple[str, ...], limit: int) -> None:
    """Labels that may be wrong, most suspicious first."""
    found = evaluation_of(app, evaluation_id, threshold)
    request = evaluation_pb2.ListSuspectedLabelsRequest(
        evaluation_id=found.evaluation_id,
        threshold=threshold,
        kinds=[enum_number(_SUSPECTS, kind) for kind in kinds],
    )
    app.output.listing(
        f"Labels that may be wrong, at threshold {threshold_text(found.threshold)}",
        SUSPECT_COLUMNS,
        listed(app, app.connection.evaluation.ListSuspectedLabels, request, "suspected_labels", limit),
        suspect_row,
    )


@click.command(cls=Verb)
@EVALUATION
@click.option("--class", "class_name", default="", help="Only with a label of this class.")
@click.option("--sheet", type=PICTURE, help="Draw them with their labels as a PNG; reads the images.")
@limit_option(24)
@pass_app
def images(app: App, evaluation_id: str, class_name: str, sheet: Path | None, limit: int) -> None:
    """The test split, image by image."""
    found = evaluation_of(app, evaluation_id, None)
    request = evaluation_pb2.ListTestImagesRequest(
        evaluation_id=found.evaluation_id, class_name=class_name, include_images=sheet is not None
    )
    call = app.connection.evaluation.ListTestImages
    shown: list[evaluation_pb2.TestImage]
    if sheet is None:
        shown = listed(app, call, request, "test_images", limit)
    else:
        with drawing(app, sheet) as draw:
            shown = _for_a_sheet(app, call, request, "test_images", limit)
            draw(lambda module, file: module.test_images(file, found, shown, class_name))
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
