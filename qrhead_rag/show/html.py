"""Documents as cards on a page: a bar for the score, each stretch of text shaded by its contribution.

Plain HTML and CSS, for notebooks and as a standalone page. Text is escaped and isolated from its surroundings. Shades
and bars have inline colours, because viewers drop the style sheets of untrusted notebooks. In a notebook the background
is the notebook's; a standalone page is light or dark like the reader's system.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from qrhead_rag.ranking.explanation import ExplainedPassage, Explanation, Stretch
from qrhead_rag.ranking.result import Ranking
from qrhead_rag.show.ink import colour_of, printable, strength

_FULL_SHADE = 0.75  # opacity; text keeps a contrast of 4.5 on it, on light and on dark grounds
_FAINTEST = 0.1  # strength below which there is no shade: a hundredth of the largest contribution
_MARKED = 0.25  # strength from which a token has a mark besides its shade
_ABSTAINED = "nothing was found: less evidence than min_evidence"

_STYLE = """
.qrhead-cards { color: var(--jp-content-font-color1, inherit); font-family: var(--jp-content-font-family, inherit);
  font-size: 14px; line-height: 1.55; max-width: 62em; overflow-wrap: anywhere; text-align: start; }
.qrhead-cards div { box-sizing: border-box; }
.qrhead-cards .qr-query { font-size: 1.15em; font-weight: 600; }
.qrhead-cards .qr-faint { font-size: .86em; font-weight: 400; opacity: .72; }
.qrhead-cards .qr-legend { display: flex; flex-wrap: wrap; align-items: baseline; gap: .3em .5em; margin-top: .3em; }
.qrhead-cards .qr-legend .qr-shade { padding: 0 .5em; font-size: .86em; font-variant-numeric: tabular-nums; }
.qrhead-cards .qr-card { border: 1px solid rgba(128, 128, 128, .35); border-radius: 8px; padding: .65em .9em;
  margin-top: .7em; background: rgba(128, 128, 128, .05); }
.qrhead-cards .qr-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .25em .8em; }
.qrhead-cards .qr-place { font-variant-numeric: tabular-nums; opacity: .72; }
.qrhead-cards .qr-name { flex: 8 1 15em; min-width: 0; font-weight: 600; }
.qrhead-cards .qr-meter { flex: 1 1 15em; min-width: 0; display: flex; align-items: center; gap: .7em; }
.qrhead-cards .qr-track { flex: 1 1 6em; position: relative; height: .75em; border-radius: 3px; overflow: hidden;
  background: rgba(128, 128, 128, .2); }
.qrhead-cards .qr-bar { height: 100%; }
.qrhead-cards .qr-zero { position: absolute; top: 0; bottom: 0; border-left: 1px solid currentColor; opacity: .6; }
.qrhead-cards .qr-score { font-variant-numeric: tabular-nums; min-width: 4em; text-align: right; }
.qrhead-cards .qr-text { margin-top: .35em; max-height: 28em; overflow-y: auto; white-space: pre-wrap; }
.qrhead-cards .qr-title { white-space: pre-wrap; }
.qrhead-cards .qr-shade { border-radius: 2px; }
.qrhead-cards .qr-against { text-decoration: underline dotted 2px; text-underline-offset: .2em; }
.qrhead-cards .qr-break::before { content: "↵"; opacity: .6; }
.qrhead-cards .qr-unread { opacity: .65; }
@media print { .qrhead-cards .qr-text { max-height: none; } .qrhead-cards .qr-card { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1.2em; background: #ffffff; color: #1f2328; font-family: system-ui, sans-serif; }}
body > .qrhead-cards {{ margin: 0 auto; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #15181d; color: #e6edf3; }} }}
</style>
</head>
<body>
{cards}
</body>
</html>
"""


@dataclass(frozen=True)
class Card:
    """One document on the page.

    Attributes:
        index: of the document in the list that was ranked.
        score: of the document.
        id: of the document, if it has one.
        label: the prompt's label before the document.
        title: its title in stretches.
        text: its text in stretches.
        note: a remark below the title, for instance that only the beginning was read.

    >>> '0.7500' in cards_html("When?", [Card(index=0, score=0.75, text=(Stretch("At nine."),))])
    True
    """

    index: int
    score: float
    id: str | None = None
    label: tuple[Stretch, ...] = ()
    title: tuple[Stretch, ...] = ()
    text: tuple[Stretch, ...] = ()
    note: str = ""


def ranking_html(ranking: Ranking) -> str:
    """The passages of a ranking as cards with the beginning of their texts, as a fragment of a page."""
    cards = [
        Card(
            index=ranked.index,
            score=ranked.score,
            id=ranked.passage.id,
            title=(Stretch(ranked.passage.title),) if ranked.passage.title else (),
            text=(Stretch(_opening(ranked.passage.text)),),
            note="only the beginning was read" if ranked.truncated else "",
        )
        for ranked in ranking
    ]
    facts: list[str] = [ranking.mode]
    if ranking.windowed:
        facts.append("in sliding windows")
    if ranking.evidence is not None:
        facts.append(f"evidence {ranking.evidence:.3f}")
    if ranking.abstained:
        facts.append(_ABSTAINED)
    return cards_html(ranking.query, cards, ", ".join(facts))


def explanation_html(explanation: Explanation) -> str:
    """The passages of an explanation as cards, shaded token by token, as a fragment of a page."""
    return cards_html(explanation.query, *_explanation_cards(explanation))


def explanation_page(explanation: Explanation) -> str:
    """The same as a standalone page."""
    return page_html(explanation.query, *_explanation_cards(explanation))


def cards_html(query: str, cards: Sequence[Card], note: str = "") -> str:
    """The query and the cards in their order, as a fragment of a page for a notebook."""
    return "".join(_cards(query, cards, note))


def page_html(query: str, cards: Sequence[Card], note: str = "") -> str:
    """The same as a standalone page, which fetches nothing and runs no script."""
    return _PAGE.format(title=_escaped(query), cards=cards_html(query, cards, note))


def _explanation_cards(explanation: Explanation) -> tuple[list[Card], str]:
    """The cards, and what is said above them."""
    return [_explanation_card(passage) for passage in explanation.passages], _ABSTAINED * explanation.abstained


def _explanation_card(explained: ExplainedPassage) -> Card:
    notes = [explained.reason, "only the beginning was read" if explained.truncated else ""]
    return Card(
        index=explained.index,
        score=explained.score,
        id=explained.passage.id,
        label=explained.stretches("label"),
        title=explained.stretches("title"),
        text=explained.stretches("text") if explained.tokens else (),
        note=", ".join(filter(None, notes)) if explained.tokens else "blank, not read",
    )


def _opening(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _cards(query: str, cards: Sequence[Card], note: str) -> Iterator[str]:
    contributions = [
        stretch.contribution or 0.0 for card in cards for stretch in (*card.label, *card.title, *card.text)
    ]
    largest = max(map(abs, contributions), default=0.0)
    scores = [0.0, *(card.score for card in cards)]
    yield f'<div class="qrhead-cards"><style>{_STYLE}</style><div class="qr-query" dir="auto">{_escaped(query)}</div>'
    if note:
        yield f'<div class="qr-faint">{_escaped(note)}</div>'
    if largest:
        yield _legend(largest, negative=min(contributions) < 0)
    yield '<div role="list">'
    for rank, card in enumerate(cards, start=1):
        yield f'<div class="qr-card" role="listitem"><div class="qr-head"><span class="qr-place">{rank}</span>'
        yield f'<div class="qr-name">{_name(card, largest)}</div>{_meter(card.score, min(scores), max(scores))}</div>'
        if card.text:
            yield f'<div class="qr-text" dir="auto">{_shade_stretches(card.text, largest)}</div>'
        yield "</div>"
    yield "</div></div>"


def _name(card: Card, largest: float) -> str:
    """Title, index, id, label and note of a document."""
    facts = [f"index {card.index}"]
    if card.id is not None:
        facts.append(f"id <bdi>{_escaped(card.id)}</bdi>")
    if card.label:
        facts.append(f"label&nbsp;{_shade_stretches(card.label, largest)}")
    if card.note:
        facts.append(_escaped(card.note))
    title = f'<bdi class="qr-title">{_shade_stretches(card.title, largest)}</bdi> ' if card.title else ""
    return f'{title}<span class="qr-faint">{" · ".join(facts)}</span>'


def _meter(score: float, low: float, high: float) -> str:
    """A bar from zero to the score; the scale covers zero and every score of the list."""
    width = high - low or 1.0
    start, end = min(score, 0.0), max(score, 0.0)
    zero = f'<div class="qr-zero" style="left: {-low / width:.2%}"></div>' if low < 0 else ""
    return (
        f'<div class="qr-meter"><div class="qr-track" aria-hidden="true"><div class="qr-bar" style="margin-left: '
        f"{(start - low) / width:.2%}; width: {(end - start) / width:.2%}; "
        f'background-color: rgb{colour_of(score)}"></div>{zero}</div><div class="qr-score">{score:.4f}</div></div>'
    )


def _legend(largest: float, negative: bool) -> str:
    """The scale of the shades: a quarter of the largest contribution has half the shade."""
    steps = (-largest, -largest / 4) * negative + (largest / 4, largest)
    swatches = "".join(_shaded_span(f"{step:+.2g}", step, largest) for step in steps)
    return f'<div class="qr-legend"><span class="qr-faint">what a token contributed</span>{swatches}</div>'


def _shade_stretches(stretches: Sequence[Stretch], largest: float) -> str:
    return "".join(_shade_stretch(stretch, largest) for stretch in stretches)


def _shade_stretch(stretch: Stretch, largest: float) -> str:
    if stretch.contribution is None:
        return f'<span class="qr-unread" title="not read">{_escaped(stretch.text)}</span>'
    if not stretch.contribution:
        return _escaped(stretch.text)
    space, word = stretch.halves
    tokens = f", {stretch.num_tokens} tokens" if stretch.num_tokens > 1 else ""
    tip = f' title="{stretch.contribution:+.5f}{tokens}"'
    return space + _shaded_span(word, stretch.contribution, largest, tip)


def _shaded_span(text: str, contribution: float, largest: float, attributes: str = "") -> str:
    """A span with its shade. Strong negative tokens are underlined too; a strong line break has a visible sign."""
    shade = strength(contribution, largest)
    against = " qr-against" * (contribution < 0 and shade >= _MARKED)
    line_break = " qr-break" * (shade >= _MARKED and not text.strip() and (not text or "\n" in text))
    red, green, blue = colour_of(contribution)
    opacity = _FULL_SHADE * shade if shade >= _FAINTEST else 0.0
    return (
        f'<span class="qr-shade{against}{line_break}" '
        f'style="background-color: rgba({red},{green},{blue},{opacity:.2f})"{attributes}>'
        f"{_escaped(text)}</span>"
    )


def _escaped(text: str) -> str:
    return escape(printable(text))
