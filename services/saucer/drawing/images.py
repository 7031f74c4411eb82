"""Boxes on images: pure functions from plain data to PNG."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from saucer.drawing.lettering import MAX_NAME, Lettering, short
from saucer.drawing.palette import BOXES, GREY, INK
from saucer.lib.scores import at_score_precision, threshold_text
from saucer.serving.exif import orientation, turn

MAX_TILES = 48  # beyond it the last tile's place says how many more there are
MAX_PIXELS = 60_000_000  # an image of more is refused before it is decoded
TILE_PX = (380, 300)  # the room of an image on a sheet
CAPTION_LINES = 3
MIN_NAME = 5  # characters of a class that an image shows, however narrow it is
TITLE_LINE_PX = 24
GAP_PX = 12
DASH_PX = 9

Colour = tuple[int, int, int]


class LabelledBox(NamedTuple):
    """Corners in pixels of the image; score is None for a label that a person made, which alone may be of a crowd."""

    x1: float
    y1: float
    x2: float
    y2: float
    class_name: str
    score: float | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Tile:
    """An image (JPEG, PNG, ... bytes) with what is there, what was found, and a sentence."""

    image: bytes
    truth: Sequence[LabelledBox] = ()
    found: Sequence[LabelledBox] = ()
    caption: str = ""


def boxes_on_image(image: bytes, boxes: Sequence[LabelledBox], classes: Sequence[str], threshold: float = 0.0) -> bytes:
    """A PNG of the image with the boxes from the threshold on, and a line below that says what is drawn.

    classes gives the order of colours. Boxes without a score are always drawn. Raises ValueError for bytes that are no
    image, or one of more than MAX_PIXELS.
    """
    picture = _opened(image)
    least = at_score_precision(threshold)
    shown = [box for box in boxes if box.score is None or at_score_precision(box.score) >= least]
    _draw(picture, shown, classes, 1.0, dashed=False)
    font = Lettering(max(12, min(picture.width // 32, 28)))
    sentence = _sentence(boxes, shown, threshold)
    lines = _wrapped(sentence, font, picture.width - 2 * GAP_PX)
    line_px = font.size + 6
    framed = Image.new("RGB", (picture.width, picture.height + line_px * len(lines) + GAP_PX), "white")
    framed.paste(picture)
    pen = ImageDraw.Draw(framed)
    for row, line in enumerate(lines):
        font.write(pen, (GAP_PX, picture.height + GAP_PX // 2 + row * line_px), line, INK)
    buffer = io.BytesIO()
    framed.save(buffer, "PNG")
    return buffer.getvalue()


def sheet(path: Path, tiles: Sequence[Tile], columns: int = 3, *, classes: Sequence[str] = (), title: str = "") -> None:
    """A sheet of images: what is there in solid lines, what was found in dashed ones, a caption below each.

    classes gives the order of colours; without it, the names in alphabetical order. Raises ValueError for columns
    below 1. An image that cannot be read leaves a tile that says so.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, is {columns}")
    names = list(classes) or sorted({box.class_name for tile in tiles for box in [*tile.truth, *tile.found]})
    shown = tiles if len(tiles) <= MAX_TILES else tiles[: MAX_TILES - 1]
    places = max(1, len(shown) + (len(shown) < len(tiles)))
    columns = min(columns, max(places, 2))
    small, large = Lettering(14), Lettering(17)
    across, down = TILE_PX[0] + GAP_PX, TILE_PX[1] + GAP_PX + CAPTION_LINES * 18
    width = columns * across + GAP_PX
    heading = _wrapped(title, large, width - 2 * GAP_PX)
    top = GAP_PX + TITLE_LINE_PX * (1 + len(heading))
    canvas = Image.new("RGB", (width, math.ceil(places / columns) * down + top + GAP_PX), "white")
    pen = ImageDraw.Draw(canvas)
    for row, line in enumerate(heading):
        large.write(pen, (GAP_PX, GAP_PX // 2 + row * TITLE_LINE_PX), line, INK)
    _legend(pen, names, top - 22, canvas.width, small)
    for index, tile in enumerate(shown):
        corner = GAP_PX + index % columns * across, top + GAP_PX + index // columns * down
        _tile(canvas, tile, names, corner, small)
    corner = GAP_PX + (places - 1) % columns * across, top + GAP_PX + (places - 1) // columns * down
    if not tiles:
        large.write(pen, corner, "Nothing to show: there is no such image.", INK)
    elif len(shown) < len(tiles):
        large.write(pen, corner, f"and {len(tiles) - len(shown)} more", INK)
    canvas.save(path, "PNG")


def _opened(image: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"an image of {opened.width} x {opened.height} pixels is too large to draw on")
            # As the detector sees it: turned the way its camera was held.
            return Image.fromarray(turn(np.asarray(opened.convert("RGB")), orientation(image)))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError("the image cannot be read") from error


def _rgb(colour: str) -> Colour:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _colour(class_name: str, classes: Sequence[str]) -> str:
    return BOXES[classes.index(class_name) % len(BOXES)] if class_name in classes else BOXES[-1]


def _sentence(boxes: Sequence[LabelledBox], shown: Sequence[LabelledBox], threshold: float) -> str:
    if shown:
        counts = {
            name: sum(box.class_name == name for box in shown) for name in sorted({box.class_name for box in shown})
        }
        return (
            ", ".join(f"{short(name)}: {count}" for name, count in counts.items())
            + f"   (threshold {threshold_text(threshold)})"
        )
    best = max((box for box in boxes), key=lambda box: box.score or 0.0, default=None)
    if best is None:
        return f"Nothing found (threshold {threshold_text(threshold)})."
    # Rounded, a score just below the threshold would be told as the threshold itself.
    highest = f"{short(best.class_name)} {threshold_text(best.score or 0.0)}"
    return f"Nothing reaches the threshold of {threshold_text(threshold)}; the highest below it is {highest}."


def _draw(
    picture: Image.Image, boxes: Sequence[LabelledBox], classes: Sequence[str], scale: float, *, dashed: bool
) -> None:
    """Draws boxes, given in the pixels of the image before it was scaled, in place."""
    pen = ImageDraw.Draw(picture)
    width = max(2, round(min(picture.size) / 160))
    font = Lettering(max(11, min(round(min(picture.size) / 26), 26)))
    for box in boxes:
        colour = _colour(box.class_name, classes)
        x1, y1, x2, y2 = (value * scale for value in box[:4])
        sides = (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1)))
        for start, end in sides:
            # A dark seam keeps the line visible on a ground of its own colour.
            _line(pen, start, end, "black", width + 2, dashed=dashed)
            _line(pen, start, end, colour, width, dashed=dashed)
    for box in boxes:
        if not dashed or box.score is not None:
            colour = _colour(box.class_name, classes)
            _label(pen, box, scale, size=picture.size, colour=colour, font=font, below=dashed)


def _line(
    pen: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    width: int,
    *,
    dashed: bool,
) -> None:
    length = math.dist(start, end)
    if not dashed or length == 0:
        pen.line([start, end], colour, width)
        return
    way = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    for begin in np.arange(0, length, 2 * DASH_PX).tolist():
        stop = min(begin + DASH_PX, length)
        pen.line([(start[0] + way[0] * d, start[1] + way[1] * d) for d in (begin, stop)], colour, width)


def _label(
    pen: ImageDraw.ImageDraw,
    box: LabelledBox,
    scale: float,
    *,
    size: tuple[int, int],
    colour: str,
    font: Lettering,
    below: bool,
) -> None:
    """Writes what a box is at its upper left corner, outside; `below`: at the lower left one."""
    text = _name(box, font, size[0] - 6)
    across, high = font.width(text) + 6, font.size + 4
    x = max(0.0, min(box.x1 * scale, size[0] - across))
    y = box.y2 * scale + 2 if below else box.y1 * scale - high - 1
    y = max(0.0, min(y, size[1] - high))
    red, green, blue = _rgb(colour)
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "white"
    pen.rectangle((x, y, x + across, y + high), colour, "black")
    font.write(pen, (x + 3, y + 1), text, ink)


def _name(box: LabelledBox, font: Lettering, width: float) -> str:
    """The class, cut to what is left of the width by what follows it."""
    told = " (crowd)" if box.crowd else ""
    if box.score is not None:
        told = f" {box.score:.2f}"
    room = width - font.width(told)
    names = (short(box.class_name, most) for most in range(MAX_NAME, MIN_NAME, -1))
    return next((name for name in names if font.width(name) <= room), short(box.class_name, MIN_NAME)) + told


def _wrapped(text: str, font: Lettering, width: float) -> list[str]:
    lines: list[str] = []
    for word in (part for whole in text.split() for part in _fitting(whole, font, width)):
        if lines and font.width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _fitting(word: str, font: Lettering, width: float) -> list[str]:
    """The word, in parts if it is wider: a file's name, or one of a language that puts no blanks between words."""
    if font.width(word) <= width:
        return [word]
    parts = [""]
    for letter in word:
        if parts[-1] and font.width(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _legend(pen: ImageDraw.ImageDraw, names: Sequence[str], y: int, width: int, font: Lettering) -> None:
    x = float(GAP_PX)
    for text, dashed in (("there", False), ("found", True)):
        _line(pen, (x, y + 9), (x + 42, y + 9), INK, 3, dashed=dashed)
        font.write(pen, (x + 48, y), text, INK)
        x += 48 + font.width(text) + 18
    for whole in names:
        name = short(whole)
        if x + 24 + font.width(name) > width - 2 * GAP_PX:
            font.write(pen, (x, y), "…", INK)
            break
        pen.rectangle((x, y + 2, x + 14, y + 16), _colour(whole, names), "black")
        font.write(pen, (x + 20, y), name, INK)
        x += 20 + font.width(name) + 16


def _tile(canvas: Image.Image, tile: Tile, names: Sequence[str], corner: tuple[int, int], font: Lettering) -> None:
    pen = ImageDraw.Draw(canvas)
    try:
        picture = _opened(tile.image)
    except ValueError as error:
        pen.rectangle((*corner, corner[0] + TILE_PX[0], corner[1] + TILE_PX[1]), "#EEEEEE", GREY)
        font.write(pen, (corner[0] + GAP_PX, corner[1] + TILE_PX[1] // 2), str(error), INK)
    else:
        scale = min(TILE_PX[0] / picture.width, TILE_PX[1] / picture.height)
        fitted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(fitted, Image.Resampling.LANCZOS)
        _draw(picture, tile.truth, names, scale, dashed=False)
        _draw(picture, tile.found, names, scale, dashed=True)
        canvas.paste(picture, (corner[0] + (TILE_PX[0] - fitted[0]) // 2, corner[1] + TILE_PX[1] - fitted[1]))
    lines = _wrapped(tile.caption, font, TILE_PX[0] - font.width(" …"))
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], lines[CAPTION_LINES - 1] + " …"]
    for row, line in enumerate(lines):
        font.write(pen, (corner[0], corner[1] + TILE_PX[1] + 4 + row * 18), line, INK)
