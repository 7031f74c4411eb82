"""The pictures: PNG files of a stated size that say what they show, also where there is nothing to show."""

import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageChops, ImageDraw

from saucer.drawing import charts, evaluations, images, lettering
from saucer.drawing.charts import (
    CHART_PX,
    MATRIX_PX,
    Curve,
    confusion_matrix,
    precision_recall,
    score_histogram,
    training_curve,
)
from saucer.drawing.images import TILE_PX, TITLE_LINE_PX, LabelledBox, Tile, boxes_on_image, sheet
from saucer.drawing.lettering import MAX_NAME, Lettering, drawable
from saucer.evaluation.messages import curve_message
from saucer.evaluation.pictures import MAX_CASES
from saucer.evaluation.thinning import PrPoints, Thinner
from saucer.evaluation.v1 import evaluation_pb2
from saucer.evaluation.v1.evaluation_pb2 import (
    BadCase,
    ClassResult,
    ConfusionMatrix,
    ConfusionRow,
    Evaluation,
    ListBadCasesRequest,
    PrecisionRecallCurve,
    PrecisionRecallPoint,
    ScoreHistogram,
)

CUP = LabelledBox(20, 30, 120, 110, "cup", 0.9)
PLATE = LabelledBox(-15, 60, 400, 300, "plate", 0.4)


def photograph(width: int = 320, height: int = 240, orientation: int | None = None) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height), (120, 130, 140)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def opened(path: Path) -> Image.Image:
    image = Image.open(path)
    assert image.format == "PNG"
    return image


def ink(image: Image.Image) -> int:
    """Pixels that are not white."""
    return int((np.asarray(image.convert("L")) < 200).sum())


def written_on_images(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts as they are written, which then are not drawn."""
    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _pen, _corner, text, *_: written.append(text))
    return written


def test_a_training_curve_is_a_png_of_the_stated_size(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    metrics = [{"epoch": epoch / 4, "loss": 3 / (1 + epoch), "lr": 0.002} for epoch in range(1, 20)]
    metrics += [{"epoch": float(epoch), "map_50": 0.15 * epoch, "map": 0.1 * epoch} for epoch in range(1, 5)]
    training_curve(path, metrics, expected_accuracy=0.9)
    assert opened(path).size == CHART_PX


def test_the_expected_accuracy_is_drawn(tmp_path: Path) -> None:
    metrics = [{"epoch": 1.0, "loss": 1.0, "lr": 0.1, "map_50": 0.5}]
    training_curve(tmp_path / "with.png", metrics, expected_accuracy=0.9)
    training_curve(tmp_path / "without.png", metrics)
    assert ink(opened(tmp_path / "with.png")) > ink(opened(tmp_path / "without.png")) + 300


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"epoch": 1.0}],
        [{"epoch": 0.1, "loss": float("nan"), "lr": float("inf")}],
        [{"epoch": 0.1, "loss": 2.0}],
        [{"epoch": 1.0, "map_50": 0.0}],
    ],
)
def test_a_training_curve_of_little_or_nothing_is_still_a_picture(
    tmp_path: Path, metrics: list[dict[str, float]]
) -> None:
    training_curve(tmp_path / "curve.png", metrics, expected_accuracy=0.8)
    image = opened(tmp_path / "curve.png")
    assert image.size == CHART_PX
    assert ink(image) > 300


def curve(name: str, ap: float) -> Curve:
    return Curve(name, ap, [0.1, 0.5, 0.9], [1.0, 0.9, 0.6], 0.5, 0.9)


@pytest.mark.parametrize("count", [0, 1, 2, charts.MAX_CURVES])
def test_precision_and_recall_of_any_number_of_classes(tmp_path: Path, count: int) -> None:
    precision_recall(tmp_path / "pr.png", [curve(f"class {i}", i / 80) for i in range(count)], threshold=0.5)
    image = opened(tmp_path / "pr.png")
    assert image.size == CHART_PX
    assert ink(image) > 300
    with pytest.raises(ValueError, match="13 curves"):
        precision_recall(tmp_path / "pr.png", [curve("cup", 0.5)] * 13)


@pytest.mark.parametrize("count", [1, 3, charts.MAX_CURVES])
@pytest.mark.parametrize("name", ["cup", "W" * 100])
def test_the_legend_of_curves_covers_none_of_them_and_is_inside_the_picture(
    monkeypatch: pytest.MonkeyPatch, count: int, name: str
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "_save", lambda figure, _: figures.append(figure))
    precision_recall(Path("pr.png"), [curve(name, 0.5)] * count)
    (axes,) = figures[0].axes
    legend = axes.get_legend()
    assert legend is not None
    extent, drawn = legend.get_window_extent(), axes.get_window_extent()
    assert not extent.overlaps(drawn)
    assert extent.x1 <= CHART_PX[0]
    assert 0 <= extent.y0 < extent.y1 <= CHART_PX[1]
    assert drawn.width > CHART_PX[0] * 0.45


def drawn_curves(answer: list[PrecisionRecallCurve], evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> Axes:
    """The axes of the picture, which is not saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "_save", lambda figure, _: figures.append(figure))
    evaluations.curves(Path("pr.png"), evaluation, {curve.class_name: curve for curve in answer}.__getitem__)
    return figures[0].axes[0]


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def dots(axes: Axes) -> list[tuple[float, float]]:
    return [tuple(np.column_stack(line.get_data())[0]) for line in axes.lines if line.get_marker() == "o"]


def test_the_dot_and_the_legend_tell_the_figures_at_the_threshold_also_where_the_curve_lost_that_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score = np.array([0.9, 0.7, 0.5, 0.1], np.float32).astype(float)
    points = PrPoints(np.array([0.0, 0.25, 0.5, 0.75]), np.array([0.9, 0.9, 0.9, 0.9]), score)
    (thinned,) = Thinner([points], 200).thin(200)
    assert score[1] not in thinned.points.threshold
    evaluation = Evaluation(
        threshold=0.7, classes=[ClassResult(class_name="cup", ap_50=0.5, precision=0.9, recall=0.25)]
    )
    axes = drawn_curves([curve_message("cup", 0.5, thinned)], evaluation, monkeypatch)
    assert legend_of(axes) == ["cup\nAP@0.50 0.500; at 0.7 precision 0.90, recall 0.25"]
    assert dots(axes) == [(0.25, 0.9)]


def test_a_class_without_a_detection_above_the_threshold_has_no_dot_and_no_figures_in_the_legend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = PrecisionRecallPoint(recall=0.5, precision=1, threshold=0.6)
    answer = [PrecisionRecallCurve(class_name="cup", ap_50=0.5, points=[point])]
    evaluation = Evaluation(threshold=0.95, classes=[ClassResult(class_name="cup", ap_50=0.5, recall=0)])
    axes = drawn_curves(answer, evaluation, monkeypatch)
    assert legend_of(axes) == ["cup\nAP@0.50 0.500"]
    assert dots(axes) == []


@pytest.mark.parametrize("classification", [False, True])
def test_a_class_of_which_nothing_is_found_is_in_the_legend_and_has_no_line(
    monkeypatch: pytest.MonkeyPatch, classification: bool
) -> None:
    point = PrecisionRecallPoint(recall=1, precision=1, threshold=0.9)
    ap = (None, None) if classification else (1.0, 0.0)
    answer = [
        PrecisionRecallCurve(class_name="cup", ap_50=ap[0], points=[point]),
        PrecisionRecallCurve(class_name="plate", ap_50=ap[1]),
        PrecisionRecallCurve(class_name="without a label"),
    ]
    classes = [
        ClassResult(class_name="cup", boxes=5, ap_50=ap[0], precision=1, recall=1),
        ClassResult(class_name="plate", boxes=50, ap_50=ap[1], recall=0),
        ClassResult(class_name="without a label"),
    ]
    evaluation = Evaluation(threshold=0.5, classification=classification, classes=classes)
    axes = drawn_curves(answer, evaluation, monkeypatch)
    names = [text.partition("\n")[0] for text in legend_of(axes)]
    assert names == ["cup", "plate"]
    assert dots(axes) == [(1, 1)]
    assert sum(np.size(line.get_xdata()) > 0 for line in axes.lines) == 2  # the dot and the line of the cup


@pytest.mark.parametrize(
    ("classification", "class_name", "said"),
    [
        (False, "$plate", "No curve: the test split has no label of\n$plate.\nLabels of crowds do not count."),
        (True, "$plate", "No curve: the test split has no label of\n$plate."),
        (False, "", "No curve: the test split has no label.\nLabels of crowds do not count."),
    ],
)
def test_why_a_class_has_no_curve_is_said(
    monkeypatch: pytest.MonkeyPatch, classification: bool, class_name: str, said: str
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "_save", lambda figure, _: figures.append(figure))
    known = [ClassResult(class_name="$plate")]
    if class_name:
        known.append(ClassResult(class_name="cup", boxes=3, ap_50=0.5))
    evaluation = Evaluation(threshold=0.5, classification=classification, classes=known)
    evaluations.curves(Path("pr.png"), evaluation, lambda _: PrecisionRecallCurve(), class_name)
    sentence = figures[0].texts[-1]
    assert sentence.get_text().replace("\\$", "$") == said
    assert sentence.get_window_extent().x0 > 0


def test_of_many_classes_those_with_the_lowest_ap_are_drawn_and_of_a_classification_with_the_lowest_f1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The higher the AP, the lower the F1."""
    point = PrecisionRecallPoint(recall=1, precision=1, threshold=0.9)
    for classification, title, worst in (
        (False, "the 12 of 20 classes with the lowest AP", range(12)),
        (True, "the 12 of 20 classes with the lowest F1 at 0.75", range(19, 7, -1)),
    ):
        aps = [None if classification else number / 20 for number in range(20)]
        answer = [PrecisionRecallCurve(class_name=f"c{n}", ap_50=ap, points=[point]) for n, ap in enumerate(aps)]
        classes = [ClassResult(class_name=f"c{n}", boxes=1, ap_50=ap, f1=(19 - n) / 20) for n, ap in enumerate(aps)]
        evaluation = Evaluation(threshold=0.75, classification=classification, classes=classes)
        axes = drawn_curves(answer, evaluation, monkeypatch)
        assert axes.get_title() == title
        assert [text.partition("\n")[0] for text in legend_of(axes)] == [f"c{number}" for number in worst]


def drawn_texts(draw: Callable[[Path], None]) -> str:
    """Of an SVG: each text stands beside its outlines in a comment."""
    return evaluations.drawn("picture.svg", draw).decode()


def test_a_threshold_is_drawn_as_it_is_and_not_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = 0.996
    cup = ClassResult(class_name="cup", ap_50=0.5, precision=0.9, recall=0.25)
    evaluation = Evaluation(threshold=at, classes=[cup])
    point = PrecisionRecallPoint(recall=0.5, precision=1, threshold=0.6)
    drawn = PrecisionRecallCurve(class_name="cup", ap_50=0.5, points=[point])
    assert "; at 0.996 precision" in drawn_texts(lambda file: evaluations.curves(file, evaluation, lambda _: drawn))
    histogram = ScoreHistogram(edges=[0, 1], true_positives=[3], false_positives=[2])
    assert "threshold 0.996 " in drawn_texts(lambda file: evaluations.scores(file, histogram, at))
    matrix = ConfusionMatrix(threshold=at, rows=[ConfusionRow(boxes=[0])])
    assert "at threshold 0.996 " in drawn_texts(lambda file: evaluations.confusion(file, matrix))
    titles: list[str] = []
    monkeypatch.setattr(images, "sheet", lambda *_, title, **__: titles.append(title))
    evaluations.bad_cases(tmp_path / "sheet.png", evaluation, [], ListBadCasesRequest(), 0)
    assert "at threshold 0.996" in titles[0]
    just_below = CUP._replace(score=0.9962)
    assert boxes_on_image(photograph(), [just_below], [], 0.9964) != boxes_on_image(photograph(), [just_below], [], 1.0)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("name", ["$5_and_$6", "_hidden", r"a\$b$c", "100%_{x}^2"])
def test_a_class_name_is_drawn_as_it_is_in_every_chart(tmp_path: Path, name: str, suffix: str) -> None:
    paths = [tmp_path / f"{chart}{suffix}" for chart in ("training", "curves", "matrix", "scores")]
    training_curve(paths[0], [{"epoch": 1.0, "loss": 1.0, "map_50": 0.5}], title=f"Of {name}")
    precision_recall(paths[1], [curve(name, 0.5), curve("cup", 0.7)], title=f"Of {name}")
    confusion_matrix(paths[2], [name, "cup", "background"], [[3, 1, 0], [0, 2, 1], [1, 0, 0]])
    score_histogram(paths[3], [0, 0.5, 1], [2, 3], [1, 0], title=f"Of {name}")
    for path in paths:
        if suffix == ".png":
            assert ink(opened(path)) > 300
        else:  # each text stands beside its outlines in a comment
            assert f"<!-- {name}" in path.read_text() or f"<!-- Of {name} -->" in path.read_text()
    if suffix == ".svg":
        assert f"<!-- {name} -->" in paths[1].read_text()


@pytest.mark.parametrize("count", [0, 1, 5, 60])
def test_a_confusion_matrix_of_any_number_of_classes(tmp_path: Path, count: int) -> None:
    rows = np.arange((count + 1) ** 2).reshape(count + 1, count + 1).tolist()
    confusion_matrix(tmp_path / "matrix.png", [*(f"class {i}" for i in range(count)), "background"], rows)
    image = opened(tmp_path / "matrix.png")
    assert image.size == MATRIX_PX
    assert ink(image) > 300


def test_a_confusion_matrix_is_drawn_also_where_all_that_is_in_it_is_right_and_of_other_classes(tmp_path: Path) -> None:
    rows = np.zeros((31, 31), int)
    rows[29, 29] = 5
    confusion_matrix(tmp_path / "matrix.png", [*(f"class {i}" for i in range(30)), "background"], rows.tolist())
    assert ink(opened(tmp_path / "matrix.png")) > 300


def drawn_matrix(names: list[str], count: int, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """Laid out, with such a count in each cell, and not saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "_save", lambda figure, *_, **__: figures.append(figure))
    rows = np.full((len(names) + 1, len(names) + 1), count).tolist()
    confusion_matrix(Path("matrix.png"), [*names, "background"], rows, title="Labels taken for what")
    figures[0].draw_without_rendering()
    return figures[0]


def overlap(one: Text, other: Text) -> bool:
    """Of two that lean, whose extents always overlap, whether the lines are further apart than they are high."""
    if one.get_rotation() == other.get_rotation() == 45:
        places = [text.get_transform().transform(text.get_unitless_position())[0] for text in (one, other)]
        apart = places[0] - places[1]
        return bool(abs(apart) * np.sqrt(0.5) < float(one.get_fontsize()) * charts.DPI / 72)
    return bool(one.get_window_extent().overlaps(other.get_window_extent()))


@pytest.mark.parametrize(
    "names",
    [
        ["cup"],
        ["cup", "a class whose name is long", "plate"],
        ["W" * 100, "cup"],
        ["cup", "plate", "W" * 100, "fork"],
        ["a class whose name is long"] * 3,
        [f"class {number}" for number in range(8)],
        [*"abcdefgh", "W" * 100, *"ijklmnop"],
        [f"class {number}" for number in range(charts.MAX_MATRIX)],
        ["W" * 100] * charts.MAX_MATRIX,
    ],
)
def test_the_texts_of_a_confusion_matrix_are_inside_it_and_none_is_over_another(
    monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    figure = drawn_matrix(names, 7, monkeypatch)
    (axes,) = figure.axes
    texts = [*axes.texts, axes.title, *figure.texts]
    assert [(one.get_text(), other.get_text()) for one, other in combinations(texts, 2) if overlap(one, other)] == []
    for text in texts:
        extent = text.get_window_extent()
        assert min(extent.x0, extent.y0) >= 0
        assert extent.x1 <= MATRIX_PX[0]
        assert extent.y1 <= MATRIX_PX[1]
        assert not extent.overlaps(axes.get_window_extent())
    assert axes.get_window_extent().width > 0.4 * MATRIX_PX[0]


@pytest.mark.parametrize("count", [7, 1234, 99_999, 123_456, 999_999, 1_234_567])
@pytest.mark.parametrize("classes", [2, 12, charts.MAX_MATRIX])
@pytest.mark.parametrize("name", ["cup", "W" * 100])
def test_a_count_of_a_confusion_matrix_stays_in_its_cell(
    monkeypatch: pytest.MonkeyPatch, count: int, classes: int, name: str
) -> None:
    figure = drawn_matrix([name] * classes, count, monkeypatch)
    (axes,) = figure.axes
    (numbers,) = (entry for entry in axes.collections if isinstance(entry, PathCollection))
    cell = axes.get_window_extent().width / (classes + 1)
    assert max(path.get_extents().width for path in numbers.get_paths()) * charts.DPI <= cell - charts.NUMBER_GAP_PX


def test_a_count_is_shortened_only_where_it_does_not_fit() -> None:
    counts = [999, 1000, 1234, 9949, 9950, 12_345, 999_499, 999_500, 1_250_000, 12_345_678]
    assert [charts._count(count, room=10) for count in counts] == [str(count) for count in counts]
    shortened = ["999", "1.0k", "1.2k", "9.9k", "10k", "12k", "999k", "1.0M", "1.2M", "12M"]
    assert [charts._count(count, room=1) for count in counts] == shortened


LONG_NAME = "a name of a class " + "W" * 72 + " that ends so"


def test_a_long_class_name_is_cut_in_a_legend_and_in_a_title_which_keep_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "_save", lambda figure, *_, **__: figures.append(figure))
    precision_recall(tmp_path / "pr.png", [curve(LONG_NAME, 0.5)])
    (label,) = legend_of(figures[0].axes[0])
    assert label.startswith("a name of")
    assert "that ends so\nAP@0.50 0.500" in label
    assert len(label.partition("\n")[0]) == MAX_NAME
    histogram = ScoreHistogram(edges=[0, 1], true_positives=[3], false_positives=[2], class_name=LONG_NAME)
    evaluations.scores(tmp_path / "scores.png", histogram, 0.5)
    (title,) = figures[1].texts
    assert title.get_text().endswith("that ends so by score")
    assert title.get_window_extent().x0 >= 0


def test_a_long_class_name_is_cut_on_images_before_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    written = written_on_images(monkeypatch)
    long = CUP._replace(class_name=LONG_NAME)
    for threshold, said in ((0.5, "that ends so: 1 (threshold 0.5)"), (0.95, "that ends so 0.9.")):
        written.clear()
        boxes_on_image(photograph(), [long], [LONG_NAME], threshold)
        assert "WWWWW" * 10 not in " ".join(written)
        assert " ".join(written).endswith(said)
    boxes_on_image(photograph(), [long], [LONG_NAME], 0.5)
    (label,) = (text for text in written if text.endswith("that ends so 0.90"))
    assert len(label) == MAX_NAME + len(" 0.90")


def test_a_class_name_is_cut_further_on_a_narrow_image_which_keeps_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    written = written_on_images(monkeypatch)
    boxes_on_image(photograph(120, 240), [CUP._replace(class_name=LONG_NAME)], [], 0.5)
    assert written[0].startswith("a na")
    assert written[0].endswith("so 0.90")
    assert Lettering(11).width(written[0]) <= 120


def test_a_caption_that_is_cut_stays_below_its_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = written_on_images(monkeypatch)
    sheet(tmp_path / "sheet.png", [Tile(photograph(), caption="W" * 200)])
    (last,) = (text for text in written if text.endswith(" …"))
    assert Lettering(14).width(last) <= TILE_PX[0]


def test_a_long_class_name_is_cut_in_the_legend_of_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = written_on_images(monkeypatch)
    sheet(tmp_path / "sheet.png", [Tile(photograph())] * 3, classes=["W" * 100, "cup"])
    assert "cup" in written


def test_a_word_wider_than_a_tile_goes_on_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = written_on_images(monkeypatch)
    sheet(tmp_path / "sheet.png", [Tile(photograph(), caption="W" * 40 + ".jpg")])
    parts = [text for text in written if "W" in text]
    assert "".join(parts) == "W" * 40 + ".jpg"
    assert len(parts) > 1
    assert all(Lettering(14).width(part) <= TILE_PX[0] for part in parts)


OF_NO_FONT = "\u732b", "\u72d7"  # a cat and a dog, in Chinese
OF_STIX = "\u2332"  # comes with matplotlib, in a font that is not the usual one


def chart_bytes(folder: Path, name: str, suffix: str) -> list[bytes]:
    paths = [folder / f"{chart}{suffix}" for chart in ("curves", "matrix", "scores")]
    precision_recall(paths[0], [curve(name, 0.5)])
    confusion_matrix(paths[1], [name, "background"], [[3, 1], [0, 2]])
    score_histogram(paths[2], [0, 1], [2], [1], title=f"Detections of {name}")
    return [path.read_bytes() for path in paths]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_names_of_which_no_font_has_the_characters_are_told_apart_in_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(lettering, "FALLBACKS", ())
    for one, other in zip(*(chart_bytes(tmp_path, name, suffix) for name in OF_NO_FONT), strict=True):
        assert one != other
        if suffix == ".svg":
            assert b"\\u732b" in one


@pytest.mark.filterwarnings("error")
def test_names_of_which_no_font_has_the_characters_are_told_apart_on_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "FALLBACKS", ())
    one, other = (boxes_on_image(photograph(), [CUP._replace(class_name=name)], []) for name in OF_NO_FONT)
    assert one != other


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_character_is_drawn_in_another_font_if_one_is_installed_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(lettering, "FALLBACKS", ("No Such Font", "STIXGeneral"))
    assert drawable(f"a{OF_STIX}{OF_NO_FONT[0]}") == f"a{OF_STIX}\\u732b"
    for with_it, without in zip(*(chart_bytes(tmp_path, name, suffix) for name in (OF_STIX, "")), strict=True):
        assert with_it != without
    written = written_on_images(monkeypatch)
    boxes_on_image(photograph(), [CUP._replace(class_name=f"cup {OF_STIX}")], [])
    assert written[:3] == ["cup ", OF_STIX, " 0.90"]


def test_letters_of_another_font_are_as_wide_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "FALLBACKS", ("STIXGeneral",))
    font = Lettering(20)
    assert font.width(f"a{OF_STIX}b") == font.width("a") + font.width(OF_STIX) + font.width("b")
    canvas = Image.new("L", (100, 40), "white")
    font.write(ImageDraw.Draw(canvas), (5, 5), f"a{OF_STIX}b", "black")
    left, top, right, bottom = ImageChops.invert(canvas).getbbox() or (0, 0, 0, 0)
    assert left >= 5
    assert right <= 5 + font.width(f"a{OF_STIX}b")
    assert top >= 5
    assert bottom <= 5 + font.size + 4


@pytest.mark.parametrize("wrong", [[0, 0], [5000, 3]])
def test_a_histogram_of_some_scores_or_none(tmp_path: Path, wrong: list[int]) -> None:
    score_histogram(tmp_path / "scores.png", [0, 0.5, 1], [0, wrong[0]], wrong, threshold=0.4)
    image = opened(tmp_path / "scores.png")
    assert image.size == CHART_PX
    assert ink(image) > 300


@pytest.mark.parametrize("most", [3, 5, 40, 5000])
def test_the_scale_of_a_histogram_can_be_read_whatever_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "_save", lambda figure, path: figures.append(figure))
    score_histogram(tmp_path / "scores.png", [0, 0.5, 1], [0, most], [1, 0], threshold=0.4)
    (axes,) = figures[0].axes
    low, high = axes.get_ylim()
    assert len([tick for tick in axes.get_yticks() if low <= tick <= high]) >= 2


def test_a_chart_is_an_svg_if_its_name_says_so(tmp_path: Path) -> None:
    precision_recall(tmp_path / "pr.svg", [curve("cup", 0.5)])
    assert "<svg" in (tmp_path / "pr.svg").read_text()


def test_only_boxes_from_the_threshold_on_are_drawn() -> None:
    both = boxes_on_image(photograph(), [CUP, PLATE], ["cup", "plate"], 0.4)
    one = boxes_on_image(photograph(), [CUP, PLATE], ["cup", "plate"], 0.41)
    none = boxes_on_image(photograph(), [CUP, PLATE], ["cup", "plate"], 0.95)
    ground = np.array((120, 130, 140))
    coloured = [
        int((np.abs(np.asarray(Image.open(io.BytesIO(png)))[:240].astype(int) - ground).max(axis=2) > 40).sum())
        for png in (both, one, none)
    ]
    assert coloured[0] > coloured[1] > coloured[2] == 0


def test_a_score_that_equals_the_threshold_in_single_precision_is_drawn() -> None:
    score = float(np.float32(0.7))
    assert score < 0.7
    drawn = boxes_on_image(photograph(), [CUP._replace(score=score)], ["cup"], 0.7)
    assert drawn == boxes_on_image(photograph(), [CUP._replace(score=0.7)], ["cup"], 0.7)


def test_the_image_keeps_its_size_above_a_line_of_text() -> None:
    png = Image.open(io.BytesIO(boxes_on_image(photograph(), [], ["cup"], 0.5)))
    assert png.format == "PNG"
    assert png.width == 320
    assert 240 < png.height < 300


def test_a_photograph_is_turned_as_its_camera_was_held() -> None:
    png = Image.open(io.BytesIO(boxes_on_image(photograph(orientation=6), [], [], 0.5)))
    assert png.width == 240


@pytest.mark.parametrize("data", [b"", b"nonsense", photograph()[:300]])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        boxes_on_image(data, [CUP], ["cup"])


def test_an_image_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 320 * 240 - 1)
    with pytest.raises(ValueError, match="320 x 240"):
        boxes_on_image(photograph(), [CUP], ["cup"])


def test_a_sheet_has_room_for_each_tile_and_draws_truth_and_finding_differently(tmp_path: Path) -> None:
    truth, found = [CUP._replace(score=None)], [CUP]
    sheet(tmp_path / "truth.png", [Tile(photograph(), truth, [], "a miss")] * 4, 2, classes=["cup"])
    sheet(tmp_path / "found.png", [Tile(photograph(), [], found, "a false positive")] * 4, 2, classes=["cup"])
    one, other = opened(tmp_path / "truth.png"), opened(tmp_path / "found.png")
    assert one.size == other.size
    assert not np.array_equal(np.asarray(one), np.asarray(other))
    sheet(tmp_path / "six.png", [Tile(photograph())] * 6, 2)
    assert opened(tmp_path / "six.png").height > one.height


def test_a_label_of_a_crowd_is_told_from_others_on_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = written_on_images(monkeypatch)
    labels = [evaluation_pb2.LabelledBox(class_name="cup", crowd=crowd) for crowd in (False, True)]
    cases = [BadCase(image=photograph(), truth=labels)]
    evaluations.bad_cases(tmp_path / "sheet.png", Evaluation(), cases, ListBadCasesRequest(), 1)
    assert written[-2:] == ["cup", "cup (crowd)"]


def test_an_empty_sheet_says_so(tmp_path: Path) -> None:
    sheet(tmp_path / "sheet.png", [], 3, title="Bad cases")
    assert ink(opened(tmp_path / "sheet.png")) > 300


def test_a_title_wider_than_the_sheet_goes_on_below(tmp_path: Path) -> None:
    sheet(tmp_path / "short.png", [Tile(photograph())], title="Bad cases")
    sheet(tmp_path / "long.png", [Tile(photograph())], title="Bad cases of which the title is long " * 4)
    assert opened(tmp_path / "long.png").height == opened(tmp_path / "short.png").height + TITLE_LINE_PX


def test_an_unreadable_image_leaves_a_tile_and_a_long_caption_is_cut(tmp_path: Path) -> None:
    sheet(tmp_path / "sheet.png", [Tile(b"nonsense", [CUP], [], "word " * 200), Tile(photograph(1, 900))], 2)
    assert ink(opened(tmp_path / "sheet.png")) > 300


def test_a_sheet_of_too_many_tiles_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_TILES", 4)
    sheet(tmp_path / "four.png", [Tile(photograph())] * 4, 2)
    sheet(tmp_path / "many.png", [Tile(photograph())] * 50, 2)
    assert opened(tmp_path / "four.png").size == opened(tmp_path / "many.png").size


def test_a_sheet_without_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="columns"):
        sheet(tmp_path / "sheet.png", [], 0)


def test_a_sheet_of_as_many_tiles_as_the_api_draws_fits_a_grpc_message_whatever_is_on_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*TILE_PX[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    sheet(tmp_path / "noise.png", [Tile(buffer.getvalue(), caption="noise " * 40)] * MAX_CASES, title="Noise")
    assert (tmp_path / "noise.png").stat().st_size < 4 * 1024**2
