"""Charts of a run and of an evaluation: pure functions from plain data to PNG, or SVG if the file's name ends so.

An SVG's text is drawn as outlines, so that it looks the same everywhere. Nothing here keeps state: matplotlib's figures
are objects of their own, never pyplot's. Margins are fixed, or made for the names at them: matplotlib's layouts take a
third of the time of a chart, and people wait for charts.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike, NDArray

from saucer.drawing.lettering import drawable, families, short
from saucer.drawing.palette import BLUE, GREEN, GREY, INK, LINES, ORANGE, PURPLE, STYLES, VERMILION
from saucer.lib.scores import threshold_text

CHART_PX = (1200, 720)
DPI = 120
MAX_CURVES = 12  # more cannot be told apart
MATRIX_PX = (1200, 1080)
# Of a chart's width and height: what its axes take, with one line between its title and them.
MARGINS = {"left": 0.09, "right": 0.92, "bottom": 0.1, "top": 0.87}
# Of a confusion matrix, in pixels: the names of its sides, its title, and what is between texts and numbers.
SIDE_NAME_PX, TITLE_PX, GAP_PX, NUMBER_GAP_PX = 34, 76, 10, 3
MANY_NAMES = 12  # beyond it those of a confusion matrix are smaller
# From a character to the next, of a font of size 1: of DejaVu Sans, which comes with matplotlib.
ADVANCE = {**dict.fromkeys("0123456789", 0.63623), ".": 0.31787, "k": 0.57910, "M": 0.86279}
FEW = 100  # detections of a bin; below it powers of ten are too few to read a bar's height from
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
    path: Path,
    curves: Sequence[Curve],
    *,
    threshold: float = 0.5,
    title: str = "",
    which: str = "",
    none_because: str = "nothing has been evaluated.",
) -> None:
    """Draws a curve per class, of at most MAX_CURVES, with its AP; a dot marks where the threshold lies on it.

    `which` says which classes these are, if they are not all; none_because why there is no curve, if there is none.
    The size is CHART_PX. Raises ValueError: there are more.
    """
    if len(curves) > MAX_CURVES:
        raise ValueError(f"{len(curves)} curves; {MAX_CURVES} are the most.")
    figure = _figure(title)
    if not curves:
        _say(figure, _plain(f"No curve: {none_because}"))
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


def _legend_beside(axes: Axes, lines: Sequence[Line2D]) -> None:
    """To the right of the axes, which get what it leaves: the worst curves may lie anywhere."""
    legend = axes.legend(
        handles=lines,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        prop={"family": families(), "size": "small"},
    )
    right = 1 - (legend.get_window_extent().width + 2 * GAP_PX) / CHART_PX[0]
    left, bottom, top = MARGINS["left"], MARGINS["bottom"], MARGINS["top"]
    axes.set_position((left, bottom, right - left, top - bottom))


def curve_label(curve: Curve, threshold: float) -> str:
    """The class, and below it its AP, and its precision and recall at the threshold, as far as there are any."""
    figures = [] if curve.ap is None else [f"AP@0.50 {curve.ap:.3f}"]
    if curve.recall_at is not None and curve.precision_at is not None:
        at = threshold_text(threshold)
        figures.append(f"at {at} precision {curve.precision_at:.2f}, recall {curve.recall_at:.2f}")
    return f"{short(curve.class_name)}\n{'; '.join(figures)}".rstrip()


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
    sides = np.arange(len(table) + 1) - 0.5
    # Cells, since an image is sampled for each pixel, which takes five times as long.
    axes.pcolormesh(sides, sides, share, cmap="Blues", vmin=0, vmax=1)
    axes.set(aspect="equal", xlim=sides[[0, -1]], ylim=sides[[-1, 0]])
    cell_px = _name_cells(axes, [_plain(short(names[place])) for place in (*drawn, -1)])
    _numbers(axes, table, share > 0.55, size=max(6, 15 - len(table) // 2), cell_px=cell_px)
    said = ["the darker, the more of its row"]
    if len(table) < len(names):
        said.append(f"the {len(drawn)} of {len(names) - 1} classes with the most mistakes")
    axes.set_title("; ".join(said), fontsize="medium")
    _save(figure, path, grid=False)


def _name_cells(axes: Axes, names: Sequence[str]) -> float:
    """Names rows and columns, gives the axes what is left of the picture, and returns a cell's side in pixels.

    Not by ticks, which take as long to draw as all the rest. Columns' names lean where one is wider than its cell.
    """
    style: dict[str, Any] = {"fontfamily": families(), "fontsize": "small" if len(names) > MANY_NAMES else "medium"}
    outside = 0.5 + 0.01 * len(names)
    rows = [axes.text(-outside, place, name, ha="right", va="center", **style) for place, name in enumerate(names)]
    extents = [text.get_window_extent() for text in rows]
    widest, line = max(extent.width for extent in extents), max(extent.height for extent in extents)
    width, height = MATRIX_PX
    left, bottom = SIDE_NAME_PX + GAP_PX + widest, SIDE_NAME_PX + GAP_PX + line
    across, down = width - 2 * GAP_PX - left, height - TITLE_PX - bottom
    if widest + GAP_PX > min(across, down) / len(names):
        style |= {"rotation": 45, "ha": "right"}
        leaning = (widest + line) * math.sqrt(0.5)
        bottom, down = bottom + leaning - line, down - leaning + line
    for place, name in enumerate(names):
        axes.text(place, len(names) - 1 + outside, name, va="top", **{"ha": "center", **style})
    axes.set_position((left / width, bottom / height, across / width, down / height))
    axes.figure.supxlabel("found as", fontsize="medium", y=GAP_PX / height)
    axes.figure.supylabel("labelled as", fontsize="medium", x=GAP_PX / width)
    return min(across, down) / len(names)


def _numbers(axes: Axes, table: NDArray[np.float64], dark: NDArray[np.bool_], *, size: float, cell_px: float) -> None:
    """Writes what is not zero into its cell, in points of at most `size`.

    As outlines of one artist: a text for each of hundreds of cells takes a second.
    """
    rows, columns = np.nonzero(table)
    room = (cell_px - NUMBER_GAP_PX) / (size * DPI / 72)
    texts = [_count(value, room) for value in table[rows, columns]]
    size *= min(1.0, room / max(map(_advance, texts), default=room))
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


def _count(count: float, room: float) -> str:
    """As it is, or if it is too wide in thousands or millions; room is in sizes of the font."""
    exact = f"{count:.0f}"
    if count < 1000 or _advance(exact) <= room:
        return exact
    value, unit = (count / 1e3, "k") if count < 999_500 else (count / 1e6, "M")
    return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"


def _advance(number: str) -> float:
    return sum(ADVANCE[character] for character in number)


def _outline(number: str, size: float) -> MplPath:
    """Centred at the origin, in inches; `size` in points."""
    outlines = [_character(character) for character in number]
    starts = itertools.accumulate((ADVANCE[character] for character in number[:-1]), initial=0.0)
    vertices = np.concatenate(
        [points + np.array([start, 0]) for start, (points, _) in zip(starts, outlines, strict=True)]
    )
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    return MplPath((vertices - middle) * size / 72, np.concatenate([codes for _, codes in outlines]))


@functools.cache
def _character(character: str) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Vertices and codes of its outline, in a font of size 1."""
    outline = TextPath((0, 0), character, size=1)
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
    if max(*right, *wrong) < FEW:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.minorticks_off()  # they take a third of the time of the chart
    axes.set(xlabel="score", ylabel="detections", xlim=(edges[0], edges[-1]), ylim=(0.7, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _legend_above(axes, lines)
    _save(figure, path)


def _figure(title: str, size_px: tuple[int, int] = CHART_PX) -> Figure:
    figure = Figure(figsize=(size_px[0] / DPI, size_px[1] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)  # which also measures texts
    if title:
        figure.suptitle(_plain(drawable(title)), fontfamily=families())
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
    figure.text(0.5, 0.5, sentence, ha="center", va="center", fontsize=15, color=INK, fontfamily=families())


def _legend_above(axes: Axes, lines: Sequence[Artist | Container]) -> None:
    """Above the axes, where it covers no line."""
    if lines:
        axes.legend(handles=lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), frameon=False)


def _series(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["epoch"], row[name]) for row in metrics if name in row and math.isfinite(row[name])]
    return [epoch for epoch, _ in points], [value for _, value in points]
