"""Names as they stand on pictures."""

import functools

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

MAX_NAME = 30  # characters of a class's name


def short(name: str) -> str:
    """The name, or its beginning and its end, since names that begin alike are told apart by the end.

    A character that the font of pictures does not have stands as its number: as an empty box it would look like every
    other.
    """
    legible = "".join(letter if ord(letter) in _letters() else f"\\u{ord(letter):04x}" for letter in name)
    if len(legible) <= MAX_NAME:
        return legible
    head = MAX_NAME // 2
    return f"{legible[:head]}…{legible[head + 1 - MAX_NAME :]}"


@functools.cache
def _letters() -> frozenset[int]:
    """Code points of DejaVu Sans, which comes with matplotlib and is what it draws with."""
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())
