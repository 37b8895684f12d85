"""Colours of a contribution and printable text, shared by pages, terminals and pictures.

Blue counts for the query, orange against it: blue and vermillion of Okabe and Ito's palette
(https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart and which are legible on light and dark
backgrounds. Printable text has no control sequences, and all of it can be encoded and drawn.
"""

from math import sqrt
from typing import TypeAlias

RGB: TypeAlias = tuple[int, int, int]

FOR: RGB = (0, 114, 178)
AGAINST: RGB = (213, 94, 0)


def colour_of(value: float) -> RGB:
    """The colour of a contribution: for the query (0 and above) or against it.

    >>> colour_of(0.2) == FOR, colour_of(-0.2) == AGAINST
    (True, True)
    """
    return FOR if value >= 0 else AGAINST


def strength(value: float, largest: float) -> float:
    """Strength of a contribution's shade, from 0 to 1: the square root of its share of the largest.

    A few tokens contribute most; without the root all others would be too pale to see.

    >>> strength(-0.25, 1.0), strength(0.0, 0.0)
    (0.5, 0.0)
    """
    return sqrt(min(abs(value) / largest, 1.0)) if largest else 0.0


_PICTURES = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}  # ␀ to ␟, ␡
_NO_CHARACTERS = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
_REPLACEMENTS: dict[int, int | None] = {
    **_PICTURES,
    **_NO_CHARACTERS,
    ord("\n"): ord("\n"),
    ord("\t"): ord("\t"),
    ord("\r"): None,
}


def printable(text: str) -> str:
    """The text with control characters as symbols, lone surrogates as �, and without carriage returns.

    >>> printable("red \\x1b[31m, CR LF\\r\\n")
    'red ␛[31m, CR LF\\n'
    """
    return text.translate(_REPLACEMENTS)
