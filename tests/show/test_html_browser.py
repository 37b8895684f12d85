"""Cards as a real browser draws them: cards, bars and shades are there, nothing overflows, in light and in dark."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from qrhead_rag import Passage, RankedPassage, Ranking
from qrhead_rag.ranking.explanation import ExplainedPassage, Explanation, TokenContribution
from qrhead_rag.show.ink import AGAINST, FOR
from tests.helpers.browser import BROWSER, draw

pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no browser is installed")]

every_page = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
every_width = pytest.mark.parametrize("width", [400, 1200])

# Boxes of what is drawn, and everything that runs over its edge: of the page, or of the card it stands in.
MEASURE = """(document, window) => {
  const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const all = selector => [...document.querySelectorAll(selector)];
  const colours = element => {
    const chain = [];
    for (let one = element; one; one = one.parentElement) chain.push(window.getComputedStyle(one));
    return { ink: window.getComputedStyle(element).color, grounds: chain.map(style => style.backgroundColor),
             opacity: chain.reduce((product, style) => product * style.opacity, 1) };
  };
  const over = [];
  for (const card of all(".qr-card")) {
    const [left, , right] = box(card);
    for (const element of card.querySelectorAll("*"))
      for (const part of element.getClientRects())
        if (part.left < left - 0.5 || part.right > right + 0.5) over.push(element.className);
  }
  return {
    width: window.innerWidth, scrolled: document.documentElement.scrollWidth, over,
    sideways: all(".qr-text").filter(text => text.scrollWidth > text.clientWidth).length,
    cards: all(".qr-card").map(box), bars: all(".qr-bar").map(box), tracks: all(".qr-track").map(box),
    zeros: all(".qr-zero").map(box), scores: all(".qr-score").map(score => score.textContent),
    shades: all(".qr-text .qr-shade").map(shade => ({ left: shade.getClientRects()[0].left, top: shade.getClientRects()[0].top, tip: shade.title,
                                                        ...colours(shade) })),
    texts: all(".qr-text").map(text => ({ direction: window.getComputedStyle(text).direction,
                                          text: text.textContent, ...colours(text) })),
    faint: all(".qr-faint, .qr-unread, .qr-place").map(colours), legend: all(".qr-legend .qr-shade").length,
    scripts: document.scripts.length, bold: all("b").length,
  };
}"""


def explained(index, score, text, contributions, *, title=None, id=None, read=None, truncated=False):
    """A passage whose text is cut into as many tokens of like length as there are contributions."""
    read = len(text) if read is None else read
    cuts = [read * number // len(contributions) for number in range(len(contributions) + 1)] if contributions else []
    tokens = [
        TokenContribution(text[start:end], "text", start, end, contribution)
        for start, end, contribution in zip(cuts, cuts[1:], contributions, strict=False)
    ]
    if title and contributions:
        tokens.insert(0, TokenContribution(title, "title", 0, len(title), contributions[0] / 3))
    return ExplainedPassage(index, score, Passage(text=text, title=title, id=id), tuple(tokens), truncated)


EXPLANATION = Explanation(
    "Who counts <b>the</b> ships? " + "Q" * 150,
    (
        explained(4, 0.6, "The keeper of the lighthouse counts the ships that pass.", (0.4, -0.1, 0.2), title="Log"),
        explained(0, 0.3, "<script>document.body.innerHTML = ''</script><b>bold</b>", (0.1, -0.2, 0.05), id="<b>id"),
        explained(1, 0.1, "W" * 900 + " https://example.org/" + "a/b" * 300, (0.1, 0.2), title="T" * 300, id="i" * 300),
        explained(2, 0.05, "ثلاثة أرغفة من الخبز تخبز عند الفجر \u202e abc", (0.1, -0.02), title="خبز القرية"),
        explained(3, -0.1, "Read until here. " * 30, (0.1, -0.3), title="Long", read=200, truncated=True),
        explained(5, -0.2, "\n indented\n" + "line\n" * 200, (-0.1, -0.1)),
        explained(6, -0.3, " ", ()),
    ),
)
PAGE = EXPLANATION.to_html()


@cache
def drawn(width, dark, html=PAGE, height=3000):
    """What was measured on a page, and its picture."""
    with TemporaryDirectory() as folder:
        picture = Path(folder, "page.png")
        layout = draw(html, width, height, picture=picture, dark=dark, script=MEASURE)
        assert layout["width"] == width
        return layout, Image.open(picture).convert("RGB")


def rgba(colour):
    red, green, blue, *opacity = map(float, colour.partition("(")[2].rstrip(")").split(","))
    return (red, green, blue), opacity[0] if opacity else 1.0


def blend(top, opacity, bottom):
    return tuple(opacity * over + (1 - opacity) * under for over, under in zip(top, bottom, strict=True))


def painted(colours):
    """The colours that a reader sees of an element: of its ground and of its text."""
    ground = (255.0, 255.0, 255.0)
    for layer in reversed(colours["grounds"]):
        ground = blend(*rgba(layer), ground)
    text, opacity = rgba(colours["ink"])
    return ground, blend(text, opacity * colours["opacity"], ground)


def contrast(first, second):
    """WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


@every_width
@every_page
def test_nothing_overflows(width, dark):
    layout, _ = drawn(width, dark)
    assert layout["scrolled"] == width
    assert layout["over"] == []
    assert layout["sideways"] == 0
    assert all(0 <= left < right <= width for left, _, right, _ in layout["cards"])


@every_width
@every_page
def test_cards_stand_below_each_other_with_bars_to_scale(width, dark):
    layout, picture = drawn(width, dark)
    cards, scores = layout["cards"], [passage.score for passage in EXPLANATION]
    assert len(cards) == len(scores)
    assert layout["scores"] == [f"{score:.4f}" for score in scores]
    assert all(upper[3] < lower[1] for upper, lower in pairwise(cards))
    for score, bar, track, zero in zip(scores, layout["bars"], layout["tracks"], layout["zeros"], strict=True):
        pixels = (track[2] - track[0]) / (max(scores) - min(scores))
        assert bar[2] - bar[0] == pytest.approx(abs(score) * pixels, abs=1)
        start = bar[0] if score >= 0 else bar[2]
        assert start == pytest.approx(track[0] - min(scores) * pixels, abs=1)
        assert zero[0] == pytest.approx(start, abs=1)
        middle = (int((bar[0] + bar[2]) / 2), int((bar[1] + bar[3]) / 2))
        assert picture.getpixel(middle) == (FOR if score >= 0 else AGAINST)


@every_width
@every_page
def test_shades_are_on_the_picture_and_their_colours_tell_the_sign(width, dark):
    layout, picture = drawn(width, dark)
    contributions = [t.contribution for p in EXPLANATION for t in p.tokens if t.part == "text"]
    assert [float(shade["tip"]) for shade in layout["shades"]] == contributions
    assert layout["legend"] == 4
    for shade in layout["shades"][:3]:
        ground, _ = painted(shade)
        above_letters = [picture.getpixel((int(shade["left"]) + x, int(shade["top"]) + 2)) for x in range(2, 10)]
        assert pytest.approx(ground, abs=3) in above_letters
        red, _, blue = ground
        plain_red, _, plain_blue = painted(layout["texts"][0])[0]
        assert (blue - red > plain_blue - plain_red) == (float(shade["tip"]) > 0)


@every_page
def test_text_can_be_read_on_every_shade(dark):
    layout, _ = drawn(1200, dark)
    for element in (*layout["shades"], *layout["texts"], *layout["faint"]):
        assert contrast(*painted(element)) >= 4.5
    background = painted(layout["texts"][0])[0]
    assert (sum(background) < 150) == dark


@every_page
def test_text_is_shown_as_it_is_and_runs_nothing(dark):
    layout, _ = drawn(400, dark)
    assert (layout["scripts"], layout["bold"]) == (0, 0)
    assert layout["texts"][1]["text"] == EXPLANATION[1].passage.text
    assert [text["direction"] for text in layout["texts"]] == ["ltr", "ltr", "ltr", "rtl", "ltr", "ltr"]


@every_page
def test_a_notebook_has_its_own_ground(dark):
    """JupyterLab says its colours in variables, whatever the system prefers."""
    ink, paper = ("rgba(255, 255, 255, 1)", "#111111") if dark else ("rgba(0, 0, 0, 0.87)", "white")
    ranking = Ranking("Who?", tuple(RankedPassage(p.index, p.score, p.passage) for p in EXPLANATION), "late")
    html = (
        f"<!DOCTYPE html><style>:root {{ --jp-content-font-color1: {ink}; }} body {{ background: {paper}; margin: 0; }}"
        f"</style>{EXPLANATION._repr_html_()}{ranking._repr_html_()}"
    )
    layout, picture = drawn(1200, not dark, html, 4000)
    assert len(layout["cards"]) == 2 * len(EXPLANATION)
    assert layout["over"] == []
    assert layout["scrolled"] == 1200
    assert painted(layout["texts"][0])[0] == pytest.approx(picture.getpixel((1100, 5)), abs=8)
    for element in (*layout["shades"], *layout["texts"]):
        assert contrast(*painted(element)) >= 4.5


def test_two_explanations_on_a_page_look_as_each_alone():
    bare = "<!DOCTYPE html><body style='margin: 0'>"
    full, short = EXPLANATION._repr_html_(), Explanation("Which?", EXPLANATION.passages[:3])._repr_html_()
    first, second, both = (drawn(1200, False, bare + html, 4000)[0] for html in (full, short, full + short))
    for name in ("cards", "bars", "texts", "shades"):
        looks = [[look(element) for element in layout[name]] for layout in (first, second, both)]
        assert looks[0] + looks[1] == looks[2]


def look(element):
    """Size of a box, or colours of an element, wherever it stands."""
    if isinstance(element, list):
        left, top, right, bottom = element
        return round(right - left, 2), round(bottom - top, 2)
    return element["ink"], element["grounds"], element["opacity"]
