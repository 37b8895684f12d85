"""Explanations on a terminal: for and against can be told apart, and text stands where it stood."""

import io

import pytest
from rich.console import Console

from qrhead_rag import Passage
from qrhead_rag.ranking.explanation import ExplainedPassage, TokenContribution
from qrhead_rag.show.ink import AGAINST, FOR
from qrhead_rag.show.terminal import shade_passage, strongest_tokens


def look(text):
    """Each styled piece of a text: its colours, and whether it is bold, underlined, dim."""
    style_of = {}
    for span in text.spans:
        style = span.style
        if not isinstance(style, str):
            colours = tuple(colour and tuple(colour.get_truecolor()) for colour in (style.color, style.bgcolor))
            style_of[text.plain[span.start : span.end]] = (*colours, style.bold, style.underline, style.dim)
    return style_of


def test_shades_tell_for_from_against():
    passage = Passage(text="ships pass so near by", title="Log")
    tokens = (
        TokenContribution("[1] ", "label", 0, 4, 0.5),
        TokenContribution("Log", "title", 0, 3, -0.1),
        TokenContribution("ships", "text", 0, 5, 1.0),
        TokenContribution(" pass", "text", 5, 10, -1.0),
        TokenContribution(" so", "text", 10, 13, 0.3),
        TokenContribution(" near", "text", 13, 18, 0.1),
        TokenContribution(" by", "text", 18, 21, 0.01),
    )
    explained = ExplainedPassage(0, 0.81, passage, tokens)
    text = shade_passage(explained)
    assert text.plain == "Log\nships pass so near by"
    style_of = look(text)
    assert style_of["ships"] == ((255, 255, 255), FOR, True, False, None)
    assert style_of["pass"] == ((0, 0, 0), AGAINST, True, True, None)
    assert style_of["so"] == ((255, 255, 255), FOR, False, False, None)
    assert style_of["near"] == (FOR, None, None, False, None)
    assert style_of["Log"] == (AGAINST, None, None, True, None)
    assert style_of.get("by", (None,) * 5) == (None,) * 5
    assert strongest_tokens(explained, 3) == "ships +1.0000, pass -1.0000, [1] (label) +0.5000"


def test_a_passage_that_was_not_read_is_shown_plain():
    explained = ExplainedPassage(0, 0.0, Passage(text=""), ())
    assert (shade_passage(explained).plain, strongest_tokens(explained)) == ("", "")
    blank = shade_passage(ExplainedPassage(0, 0.0, Passage(text=" \n", title="\t"), ()))
    assert blank.plain == "\t\n \n"


def test_what_was_not_read_is_dim():
    tokens = (TokenContribution("read", "text", 0, 4, 1.0),)
    style_of = look(shade_passage(ExplainedPassage(0, 1.0, Passage(text="read, not read"), tokens, truncated=True)))
    assert style_of[", not read"] == (None, None, None, None, True)


@pytest.mark.parametrize("before", ["\r\n", "\x07\x08\x0b\x0c", "\x1b[31m", "\ud800", "[red]", "👩‍🍳 "])
def test_shades_stay_in_place_and_nothing_steers_the_terminal(before):
    text = f"{before}ships{before}"
    start = len(before)
    tokens = (
        TokenContribution(before, "text", 0, start, 0.0),
        TokenContribution("ships", "text", start, start + 5, 1.0),
        TokenContribution(before, "text", start + 5, len(text), -0.5),
    )
    explained = ExplainedPassage(0, 0.5, Passage(text=text, title=text), tokens)
    assert look(shade_passage(explained))["ships"][1] == FOR
    console = Console(file=io.StringIO(), width=80)
    console.print(shade_passage(explained))
    console.print(strongest_tokens(explained), markup=False)
    printed = console.file.getvalue()
    assert not set(printed) & {*map(chr, range(32)), *map(chr, range(0xD800, 0xE000))} - {"\n"}
    assert printed.count("ships") == 3
