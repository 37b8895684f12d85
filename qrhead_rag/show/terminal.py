"""Explanations on a terminal: a passage's text, each token shaded by its contribution.

Blue counts for the query, orange and underlined against it. By its share of the passage's strongest token, a token is
coloured, on a coloured background, or bold on it. Both colours are legible on light and dark terminals. The strongest
tokens are also listed in words, for terminals without colour.
"""

from collections.abc import Iterator

from rich.color import Color
from rich.style import Style
from rich.text import Text

from qrhead_rag.ranking.explanation import ExplainedPassage, Stretch, TokenContribution
from qrhead_rag.show.ink import colour_of, printable, strength

_COLOURED, _BACKGROUND, _BOLD = 0.25, 0.5, 0.75  # strengths from which each style applies


def shade_passage(passage: ExplainedPassage) -> Text:
    """Title and text of a passage, shaded; text that was not read is dim."""
    highest = max((abs(token.contribution) for token in passage.tokens), default=0.0)
    title, body = (
        Text.assemble(*(half for stretch in passage.stretches(part) for half in _styled_halves(stretch, highest)))
        for part in ("title", "text")
    )
    title.stylize("bold")
    return Text("\n").join([title, body]) if title else body


def strongest_tokens(passage: ExplainedPassage, number: int = 8) -> str:
    """The tokens with the largest contributions, for or against, strongest first; label tokens are marked."""
    tokens = sorted(passage.tokens, key=lambda token: -abs(token.contribution))[:number]
    return ", ".join(f"{_word(token)} {token.contribution:+.4f}" for token in tokens)


def _word(token: TokenContribution) -> str:
    word = printable(token.text.strip()) or repr(token.text)
    return f"{word} (label)" if token.part == "label" else word


def _styled_halves(stretch: Stretch, highest: float) -> Iterator[tuple[str, Style]]:
    space, word = stretch.halves
    yield space, Style()
    yield printable(word), _style(stretch.contribution, highest)


def _style(contribution: float | None, highest: float) -> Style:
    if contribution is None:
        return Style(dim=bool(highest))
    shade = strength(contribution, highest)
    if shade < _COLOURED:
        return Style()
    colour = Color.from_rgb(*colour_of(contribution))
    against = contribution < 0
    if shade < _BACKGROUND:
        return Style(color=colour, underline=against)
    return Style(color="#000000" if against else "#ffffff", bgcolor=colour, bold=shade >= _BOLD, underline=against)
