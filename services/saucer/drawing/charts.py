"""Charts of a run and of an evaluation: pure functions from plain data to PNG, or SVG if the file's name ends so.

An SVG's text is drawn as outlines, so that it looks the same everywhere. Nothing here keeps state: matplotlib's figures
are objects of their own, never pyplot's. Margins are fixed, or made for the names at them: matplotlib's layouts take a
third of the time of a chart, and people wait for charts.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PathCollection
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as MplPath
from matplotlib.textpath import TextPath
from numpy.typing import ArrayLike, NDArray

from saucer.drawing.lettering import short
from saucer.drawing.palette import BLUE, GREEN, GREY, INK, LINES, ORANGE, PURPLE, STYLES, VERMILION
from saucer.lib.scores import threshold_text

CHART_PX = (1200, 720)
DPI = 120
MAX_CURVES = 12  # more cannot be told apart
MATRIX_PX = (1200, 1080)
# Of a chart's width and height: what its axes take, with one line between its title and them.
MARGINS = {"left": 0.09, "right": 0.92, "bottom": 0.1, "top": 0.87}
# Of a confusion matrix, in pixels: the names of its sides, its title, and what is between texts.
SIDE_NAME_PX, TITLE_PX, GAP_PX = 48, 76, 10
# From one digit to the next, of a font of size 1: in DejaVu Sans, which comes with matplotlib, all are as wide.
DIGIT_ADVANCE = 0.63625
MAX_MATRIX = 24  # classes of a confusion matrix; beyond it those with the most boxes off the diagonal are drawn


@dataclass(frozen=True)
class Curve:
    """A class's curve: recall and precision, each (n,) and in the same order; ap is 0..1, or None: of a classification.

    recall_at and precision_at are those at the chart's threshold, or None where there is none. They are not read off
    the curve, whose points may be thinned.
    """

    class_name: str
    ap: float | None
    recall: ArrayLike
    precision: ArrayLike
    recall_at: float | None = None
    precision_at: float | None = None


def training_curve(
    path: Path, metrics: Sequence[Mapping[str, float]], *, expected_accuracy: float | None = None, title: str = ""
) -> None:
    """Draws loss and learning rate above, validation accuracy below, over epochs.

    Each of metrics has `epoch` and any of `loss`, `lr`, `map`, `map_50` and `top_1`; what is not finite is left out.
    The size is CHART_PX.
    """
    figure = _figure(title)
    if not any(_series(metrics, name)[0] for name in ("loss", "lr", "map", "map_50", "top_1")):
        _say(figure, "No metrics yet: the run has not reported an iteration.")
        _save(figure, path)
        return
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={**MARGINS, "hspace": 0.25})
    _training_axes(above, metrics)
    _validation_axes(below, metrics, expected_accuracy)
    _save(figure, path)


def _training_axes(axes: Axes, metrics: Sequence[Mapping[str, float]]) -> None:
    loss = axes.plot(*_series(metrics, "loss"), color=BLUE, label="loss")
    right = axes.twinx()
    rate = right.plot(*_series(metrics, "lr"), color=VERMILION, linestyle="--", label="learning rate (right)")
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set(ylabel="loss")
    right.set(ylabel="learning rate")
    for side in (axes, right):
        side.set_ylim(bottom=0)
    _legend_above(axes, [*loss, *rate])


def _validation_axes(axes: Axes, metrics: Sequence[Mapping[str, float]], expected_accuracy: float | None) -> None:
    lines: list[Line2D] = []
    for name, shown_as, colour, style, marker in (
        ("map_50", "mAP@0.50", GREEN, "-", "o"),
        ("map", "mAP@0.50:0.95", PURPLE, "-.", "s"),
        ("top_1", "top-1", GREEN, "-", "o"),
    ):
        epochs, values = _series(metrics, name)
        if epochs:
            label = f"{shown_as}, best {max(values):.3f}"
            lines += axes.plot(epochs, values, color=colour, linestyle=style, marker=marker, label=label)
    if not lines:
        axes.text(0.5, 0.4, "not validated yet", ha="center", transform=axes.transAxes, color=GREY)
    if expected_accuracy is not None:
        measure = "top-1" if _series(metrics, "top_1")[0] else "mAP@0.50"
        label = f"expected {measure}, {expected_accuracy:.2f}"
        lines.append(axes.axhline(expected_accuracy, color=INK, linestyle="--", linewidth=1.2, label=label))
    axes.set(xlabel="epoch", ylabel="validation", ylim=(0, 1.02))
    _legend_above(axes, lines)


def precision_recall(
    path: Path, curves: Sequence[Curve], *, threshold: float = 0.5, title: str = "", which: str = ""
) -> None:
    """Draws a curve per class, of at most MAX_CURVES, with its AP; a dot marks where the threshold lies on it.

    `which` says which classes these are, if they are not all. The size is CHART_PX. Raises ValueError: there are more.
    """
    if len(curves) > MAX_CURVES:
        raise ValueError(f"{len(curves)} curves; {MAX_CURVES} are the most.")
    figure = _figure(title)
    if not curves:
        _say(figure, "No curve: of what the test split has no label of, there is none.")
        _save(figure, path)
        return
    axes = figure.subplots(gridspec_kw=MARGINS)
    lines: list[Line2D] = []
    for index, curve in enumerate(curves):
        colour, style = LINES[index % len(LINES)], STYLES[index % len(STYLES)]
        if curve.recall_at is not None and curve.precision_at is not None:
            dot = curve.recall_at, curve.precision_at
            axes.plot(*dot, "o", color=colour, markersize=9, markeredgecolor=INK, zorder=3)
        lines += axes.plot(
            curve.recall, curve.precision, color=colour, linestyle=style, label=_plain(curve_label(curve, threshold))
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05))
    axes.set_title(which, fontsize="medium")
    _legend_beside(axes, lines)
    _save(figure, path)


def curve_label(curve: Curve, threshold: float) -> str:
    """The class, its AP, and its precision and recall at the threshold, as far as there are any."""
    name = short(curve.class_name)
    label = name if curve.ap is None else f"{name}: AP@0.50 {curve.ap:.3f}"
    if curve.recall_at is None or curve.precision_at is None:
        return label
    return f"{label}; at {threshold_text(threshold)} precision {curve.precision_at:.2f}, recall {curve.recall_at:.2f}"


def confusion_matrix(path: Path, names: Sequence[str], rows: Sequence[Sequence[int]], *, title: str = "") -> None:
    """Draws boxes by what they are (down) and what they are taken for (across), each row in shares of its sum.

    names are those of the rows and of the columns; the last is the background. The size is MATRIX_PX.
    """
    figure = _figure(title, MATRIX_PX)
    whole = np.asarray(rows, float).reshape(len(names), len(names))
    if not whole.any():
        _say(figure, "No matrix: there is neither a label nor a detection.")
        _save(figure, path)
        return
    wrong = (whole.sum(axis=0) + whole.sum(axis=1) - 2 * np.diagonal(whole))[:-1]
    drawn = np.sort(np.argsort(-wrong, kind="stable")[:MAX_MATRIX])
    table = whole[np.ix_([*drawn, -1], [*drawn, -1])]
    share = table / np.maximum(whole.sum(axis=1)[[*drawn, -1], None], 1)
    axes = figure.add_axes((0, 0, 1, 1), xticks=(), yticks=())
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    cell_px = _name_cells(axes, [_plain(short(names[place])) for place in (*drawn, -1)])
    _numbers(axes, table, share > 0.55, cell_px)
    said = ["the darker, the more of its row"]
    if len(table) < len(names):
        said.append(f"the {len(drawn)} of {len(names) - 1} classes with the most mistakes")
    axes.set_title("; ".join(said), fontsize="medium")
    _save(figure, path, grid=False)


def _name_cells(axes: Axes, names: Sequence[str]) -> float:
    """Names rows and columns, and gives the axes what is left of the picture; the side of a cell, in pixels.

    Not by ticks, which take as long to draw as all the rest.
    """
    figure = axes.figure
    width_px, height_px = MATRIX_PX
    outside = 0.5 + 0.01 * len(names)
    rows = [axes.text(-outside, place, name, ha="right", va="center") for place, name in enumerate(names)]
    widest_px = max(text.get_window_extent().width for text in rows)
    left_px = SIDE_NAME_PX + GAP_PX + widest_px
    across_px = width_px - left_px - 2 * GAP_PX
    # Names lean where they would meet.
    lean = {"rotation": 45, "ha": "right"} if widest_px + GAP_PX > across_px / len(names) else {"ha": "center"}
    columns = [axes.text(place, len(names) - 1 + outside, name, va="top", **lean) for place, name in enumerate(names)]
    bottom_px = SIDE_NAME_PX + GAP_PX + max(text.get_window_extent().height for text in columns)
    down_px = height_px - bottom_px - TITLE_PX
    axes.set_position((left_px / width_px, bottom_px / height_px, across_px / width_px, down_px / height_px))
    figure.supxlabel("found as", fontsize="medium")
    figure.supylabel("labelled as", fontsize="medium")
    return min(across_px, down_px) / len(names)


def _numbers(axes: Axes, table: NDArray[np.float64], dark: NDArray[np.bool_], cell_px: float) -> None:
    """Writes what is not zero into its cell. As outlines of one artist: a text for each of hundreds of cells takes a
    second."""
    size = max(6, 15 - len(table) // 2)
    digits = int(cell_px / (DIGIT_ADVANCE * size * DPI / 72))
    rows, columns = np.nonzero(table)
    texts = [_count(round(value), digits) for value in table[rows, columns]]
    outlines = {text: _outline(text, size) for text in set(texts)}
    numbers = PathCollection(
        [outlines[text] for text in texts],
        offsets=np.column_stack([columns, rows]),
        offset_transform=axes.transData,
        facecolors=["white" if ink else INK for ink in dark[rows, columns]],
        linewidths=0,
        transform=axes.figure.dpi_scale_trans,
    )
    axes.add_collection(numbers)


def _count(number: int, digits: int) -> str:
    """In full if it has at most so many digits, else in thousands or millions."""
    text = str(number)
    for unit, size in (("k", 1_000), ("M", 1_000_000)):
        if len(text) > digits:
            text = f"{round(number / size)}{unit}"
    return text


def _outline(digits: str, size: float) -> MplPath:
    """Centred at the origin, in inches; `size` in points."""
    outlines = [_digit(digit) for digit in digits]
    vertices = np.concatenate(
        [points + np.array([place * DIGIT_ADVANCE, 0]) for place, (points, _) in enumerate(outlines)]
    )
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    return MplPath((vertices - middle) * size / 72, np.concatenate([codes for _, codes in outlines]))


@functools.cache
def _digit(digit: str) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Vertices and codes of its outline, in a font of size 1."""
    outline = TextPath((0, 0), digit, size=1)
    return np.asarray(outline.vertices, float), np.asarray(outline.codes, np.uint8)


def score_histogram(
    path: Path,
    edges: Sequence[float],
    right: Sequence[int],
    wrong: Sequence[int],
    *,
    threshold: float | None = None,
    title: str = "",
) -> None:
    """Draws how many detections have which score, right and wrong side by side; the scale is logarithmic.

    right and wrong have a number for each two neighbouring edges. The size is CHART_PX.
    """
    figure = _figure(title)
    if not sum(right) + sum(wrong):
        _say(figure, "No detection, so there is no score.")
        _save(figure, path)
        return
    axes = figure.subplots(gridspec_kw=MARGINS)
    low, width = np.asarray(edges[:-1], float), np.diff(np.asarray(edges, float))
    right_bars = axes.bar(low + width * 0.28, right, width * 0.42, color=BLUE, label=f"right: {sum(right)}")
    wrong_bars = axes.bar(
        low + width * 0.72, wrong, width * 0.42, color=ORANGE, hatch="//", edgecolor=INK, label=f"wrong: {sum(wrong)}"
    )
    lines: list[Artist | Container] = [right_bars, wrong_bars]
    if threshold is not None:
        lines.append(axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold {threshold_text(threshold)}"))
    axes.set_yscale("log")
    axes.set(xlabel="score", ylabel="detections", xlim=(edges[0], edges[-1]), ylim=(0.7, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _legend_above(axes, lines)
    _save(figure, path)


def _figure(title: str, size_px: tuple[int, int] = CHART_PX) -> Figure:
    figure = Figure(figsize=(size_px[0] / DPI, size_px[1] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)  # which also measures texts
    if title:
        figure.suptitle(_plain(title))
    return figure


def _plain(text: str) -> str:
    """The same text for matplotlib, which takes what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def _save(figure: Figure, path: Path, *, grid: bool = True) -> None:
    for axes in figure.axes if grid else ():
        axes.spines["top"].set_visible(False)
        axes.set_axisbelow(True)
    for axes in figure.axes[:2] if grid else ():
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    if path.suffix.lower() == ".svg":
        FigureCanvasSVG(figure).print_svg(path)  # type: ignore[no-untyped-call]
    else:
        # Quickly: at a higher level it takes twice as long for as many bytes.
        FigureCanvasAgg(figure).print_png(path, pil_kwargs={"compress_level": 1})  # type: ignore[no-untyped-call]


def _say(figure: Figure, sentence: str) -> None:
    figure.text(0.5, 0.5, sentence, ha="center", va="center", fontsize=15, color=INK)


def _legend_beside(axes: Axes, lines: Sequence[Line2D]) -> None:
    """To the right of the axes, which get what it leaves."""
    legend = axes.legend(
        handles=lines, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0, frameon=False, fontsize="small"
    )
    right = 1 - (legend.get_window_extent().width + GAP_PX) / CHART_PX[0]
    axes.set_position((MARGINS["left"], MARGINS["bottom"], right - MARGINS["left"], MARGINS["top"] - MARGINS["bottom"]))


def _legend_above(axes: Axes, lines: Sequence[Artist | Container]) -> None:
    """Above the axes, where it covers no line."""
    if lines:
        axes.legend(handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), frameon=False)


def _series(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["epoch"], row[name]) for row in metrics if name in row and math.isfinite(row[name])]
    return [epoch for epoch, _ in points], [value for _, value in points]
