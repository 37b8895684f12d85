"""Foreign text made fit to be shown: nothing in it steers a terminal, and all of it can be encoded and drawn."""

_PICTURES = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}  # ␀ to ␟, ␡
_NO_CHARACTERS = dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], 0xFFFD)
_SHOWN_AS: dict[int, int | None] = {
    **_PICTURES,
    **_NO_CHARACTERS,
    ord("\n"): ord("\n"),
    ord("\t"): ord("\t"),
    ord("\r"): None,
}


def printable(text: str) -> str:
    """The text with control characters as their pictures, lone surrogates as �, and without carriage returns.

    >>> printable("red \\x1b[31m, CR LF\\r\\n")
    'red ␛[31m, CR LF\\n'
    """
    return text.translate(_SHOWN_AS)
