"""Explanations on a terminal: a passage's text, each token shaded by what it contributed.

Green is for the query, red against it; the stronger the shade, the more the token counts beside the strongest one of
the passage. The strongest tokens also stand below it in words, for terminals and eyes without colour.
"""

from rich.color import Color
from rich.style import Style
from rich.text import Text

from qrhead_rag.explain import ExplainedPassage

_FOR, _AGAINST = (22, 163, 74), (220, 38, 38)
_PAPER = (255, 255, 255)
_FAINTEST = 0.05  # of the strongest token; below it, shades cannot be told apart


def shaded(passage: ExplainedPassage) -> Text:
    """Title and text of a passage, shaded; a passage that was not read has no shades."""
    highest = max((abs(token.contribution) for token in passage.tokens), default=0.0)
    title = Text(passage.passage.title or "")
    body = Text(passage.passage.text)
    for token in passage.tokens:
        part = {"title": title, "text": body}.get(token.part)
        share = token.contribution / highest if highest else 0.0
        if part is not None and abs(share) >= _FAINTEST:
            part.stylize(_shade(share), token.start, token.end)
    title.stylize("bold")
    return Text("\n").join([title, body]) if title else body


def strongest(passage: ExplainedPassage, number: int = 8) -> str:
    """The tokens that count most, for or against, with their contributions, strongest first."""
    tokens = sorted(passage.tokens, key=lambda token: -abs(token.contribution))[:number]
    return ", ".join(f"{token.text.strip() or repr(token.text)} {token.contribution:+.4f}" for token in tokens)


def _shade(share: float) -> Style:
    """The background for a share of the strongest contribution, from -1 to 1."""
    ink = _FOR if share > 0 else _AGAINST
    red, green, blue = (round(paper + (full - paper) * abs(share)) for paper, full in zip(_PAPER, ink, strict=True))
    return Style(color="black", bgcolor=Color.from_rgb(red, green, blue))
