"""One HTML file of an evaluation: tables and pictures, nothing that is fetched or run when it is opened.

Names in it are other people's, so all text is escaped, and the page's own policy allows neither scripts nor addresses.
"""

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from saucer.cli.app import pages
from saucer.cli.evaluation_tables import (
    CLASS_COLUMNS,
    RECOMMENDATION_COLUMNS,
    SUSPECT_COLUMNS,
    class_row,
    recommendation_row,
    summary_rows,
    suspect_row,
)
from saucer.cli.output import moment
from saucer.drawing import evaluations as drawing
from saucer.drawing.wording import describe_case
from saucer.evaluation.v1 import evaluation_pb2, evaluation_pb2_grpc
from saucer.lib.scores import threshold_text

MAX_CASES = 50  # bad cases in the table
MAX_SUSPECTS = 20  # labels that may be wrong

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
img { max-width: 100%; height: auto }
p { max-width: 48rem }
@media print { section { break-inside: avoid } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Gathered:
    """What the page says. `recommendations` is the reason as text where there are none."""

    evaluation: evaluation_pb2.Evaluation
    curves: evaluation_pb2.PrecisionRecallCurves
    scores: evaluation_pb2.ScoreHistogram
    confusion: evaluation_pb2.ConfusionMatrix
    recommendations: Sequence[evaluation_pb2.ThresholdRecommendation] | str
    cases: Sequence[evaluation_pb2.BadCase]
    pictured: Sequence[evaluation_pb2.BadCase]
    suspects: Sequence[evaluation_pb2.SuspectedLabel]


def gather(
    stub: evaluation_pb2_grpc.EvaluationServiceStub, evaluation: evaluation_pb2.Evaluation, images: int
) -> Gathered:
    """Asks for all of it, at the evaluation's threshold; reads so many images of bad cases."""
    evaluation_id, at = evaluation.evaluation_id, evaluation.threshold

    def bad_cases(limit: int, *, include_images: bool = False) -> list[evaluation_pb2.BadCase]:
        request = evaluation_pb2.ListBadCasesRequest(
            evaluation_id=evaluation_id, threshold=at, include_images=include_images
        )
        return pages(stub.ListBadCases, request, "bad_cases", limit)

    suspected = evaluation_pb2.ListSuspectedLabelsRequest(evaluation_id=evaluation_id, threshold=at)
    return Gathered(
        evaluation,
        stub.GetPrecisionRecallCurves(evaluation_pb2.GetPrecisionRecallCurvesRequest(evaluation_id=evaluation_id)),
        stub.GetScoreHistograms(evaluation_pb2.GetScoreHistogramsRequest(evaluation_id=evaluation_id)).histograms[0],
        stub.GetConfusionMatrix(evaluation_pb2.GetConfusionMatrixRequest(evaluation_id=evaluation_id, threshold=at)),
        _recommended(stub, evaluation_id),
        bad_cases(MAX_CASES),
        bad_cases(images, include_images=True) if images else [],
        pages(stub.ListSuspectedLabels, suspected, "suspected_labels", MAX_SUSPECTS),
    )


def _recommended(
    stub: evaluation_pb2_grpc.EvaluationServiceStub, evaluation_id: str
) -> Sequence[evaluation_pb2.ThresholdRecommendation] | str:
    request = evaluation_pb2.RecommendThresholdsRequest(evaluation_id=evaluation_id)
    try:
        return stub.RecommendThresholds(request).recommendations
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        return error.details() or ""


def page(gathered: Gathered) -> str:
    """The file's text."""
    found = gathered.evaluation
    at = f"threshold {threshold_text(found.threshold)}"
    curves = {curve.class_name: curve for curve in gathered.curves.curves}
    parts = [
        _section("Summary", _table((), [row for row in (*summary_rows(found), *_context(found)) if row[1]])),
        _section(f"By class, at {at}", _table(CLASS_COLUMNS, map(class_row, found.classes))),
        _section(
            "Precision over recall",
            _picture("pr.svg", "One curve a class", lambda file: drawing.curves(file, found, curves.__getitem__)),
        ),
        _section("Recommended thresholds", _recommendations(gathered.recommendations)),
        _section(
            "Scores",
            _picture(
                "scores.svg",
                "Right and wrong detections by score",
                lambda file: drawing.scores(file, gathered.scores, found.threshold),
            ),
        ),
        _section(
            f"What is taken for what, at {at}",
            _picture(
                "confusion.svg",
                "Labels down, detections across",
                lambda file: drawing.confusion(file, gathered.confusion),
            ),
        ),
        _section(f"Bad cases, at {at}", _cases(gathered)),
        _section(
            "Labels that may be wrong",
            _text("Most suspicious first; the suspicion ranks and is no probability."),
            _table(SUSPECT_COLUMNS, map(suspect_row, gathered.suspects)),
        ),
    ]
    title = f"Evaluation {found.evaluation_id}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{''.join(parts)}</body></html>\n"
    )


def _context(found: evaluation_pb2.Evaluation) -> list[tuple[str, str]]:
    return [
        ("task id", found.task_id),
        ("data set version", found.dataset_version_id),
        ("evaluated", moment(found, "end_time")),
    ]


def _recommendations(found: Sequence[evaluation_pb2.ThresholdRecommendation] | str) -> str:
    if isinstance(found, str):
        return _text(found)
    return _text(
        "Chosen on the validation split; the figures are those of the test split, with the 95 % interval that "
        "the number of its boxes leaves, and last those of the validation split, which are a little kind."
    ) + _table(RECOMMENDATION_COLUMNS, map(recommendation_row, found))


def _cases(gathered: Gathered) -> str:
    found = gathered.evaluation
    rows = ((case.file_name, describe_case(found, case)) for case in gathered.cases)
    parts = [_table(("image", "what is wrong"), rows)]
    if len(gathered.cases) < found.bad_cases:
        parts.insert(0, _text(f"The {len(gathered.cases)} worst of {found.bad_cases}."))
    if gathered.pictured:
        parts.append(
            _picture(
                "sheet.png",
                "Bad cases with labels and detections",
                lambda file: drawing.bad_cases(
                    file, found, gathered.pictured, evaluation_pb2.ListBadCasesRequest(), found.bad_cases
                ),
            )
        )
    return "".join(parts)


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{''.join(content)}</section>\n"


def _text(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>\n" for row in rows)
    if not body:
        return _text("None.")
    return f"<table>{f'<tr>{head}</tr>' if head else ''}\n{body}</table>\n"


def _picture(name: str, says: str, draw: Callable[[Path], None]) -> str:
    data = base64.b64encode(drawing.drawn(name, draw)).decode()
    kind = "svg+xml" if name.endswith(".svg") else "png"
    return f'<img alt="{html.escape(says)}" src="data:image/{kind};base64,{data}">\n'
