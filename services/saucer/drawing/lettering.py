"""Names and other texts of people as they stand on pictures: cut, and in fonts that have their characters.

None of other scripts comes with Saucer, since one of Chinese alone takes megabytes; those that are installed are used.
"""

import functools
from itertools import groupby

from matplotlib.font_manager import FontPath, FontProperties, findfont, fontManager, get_font
from PIL import ImageDraw, ImageFont

MAX_NAME = 30  # characters of a class's name
FONT = "DejaVu Sans"  # comes with matplotlib
FALLBACKS = (  # families that systems have for the characters which FONT lacks
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai"),
    *("Arial Unicode MS", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI", "Unifont"),
)


def short(name: str, most: int = MAX_NAME) -> str:
    """The name, or its beginning and its end, since names that begin alike are told apart by the end."""
    text = drawable(name)
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"


def drawable(text: str) -> str:
    """The text, with a character that no font has as its code point: as empty boxes all names would look alike."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if _font_of(letter) else f"\\u{ord(letter):04x}" for letter in text)


def families() -> list[str]:
    """Of fonts, for matplotlib: it looks for a character in each of them, in this order."""
    return list(_installed(FALLBACKS))


class Lettering:
    """A size of these fonts for Pillow, which writes a text in one font only: a run of characters in the first that has
    them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._fonts: dict[FontPath, ImageFont.FreeTypeFont] = {}
        self._ascent = self._font(_paths(FALLBACKS)[0]).getmetrics()[0]

    def width(self, text: str) -> float:
        return sum(font.getlength(run) for font, run in self._runs(text))

    def write(self, pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, ink: str) -> None:
        """corner: the upper left one, of FONT whatever the text's fonts are."""
        x, y = corner
        for font, run in self._runs(text):
            pen.text((x, y + self._ascent), run, ink, font, "ls")
            x += font.getlength(run)

    def _runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        shown, first = drawable(text), _paths(FALLBACKS)[0]
        if shown.isascii():
            return [(self._font(first), shown)]
        runs = groupby(shown, lambda letter: _font_of(letter) or first)
        return [(self._font(path), "".join(letters)) for path, letters in runs]

    def _font(self, path: FontPath) -> ImageFont.FreeTypeFont:
        if path not in self._fonts:
            self._fonts[path] = ImageFont.truetype(str(path), self.size, index=path.face_index)
        return self._fonts[path]


def _font_of(letter: str) -> FontPath | None:
    return next((path for path in _paths(FALLBACKS) if get_font(path).get_char_index(ord(letter))), None)


@functools.cache
def _installed(fallbacks: tuple[str, ...]) -> tuple[str, ...]:
    known = {entry.name for entry in fontManager.ttflist}
    return (FONT, *(name for name in fallbacks if name in known))


@functools.cache
def _paths(fallbacks: tuple[str, ...]) -> tuple[FontPath, ...]:
    return tuple(findfont(FontProperties(family=[name])) for name in _installed(fallbacks))
