"""Cards as HTML: every character and every contribution is there, escaped, and the styles touch nothing else."""

import json
import re
from html.parser import HTMLParser

import pytest

from qrhead_rag import Passage, QRRetriever, RankedPassage, Ranking
from qrhead_rag.ranking.explanation import ExplainedPassage, Explanation, Stretch, TokenContribution
from qrhead_rag.show.html import Card, cards_html, page_html
from qrhead_rag.show.ink import printable
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "Who counts <the> ships & why?"
PASSAGES = [
    Passage(text="The keeper of the lighthouse counts the ships that pass.", title="Keeper's log 🚢", id='<"1">'),
    Passage(text="</div></style><script>alert('gone')</script> &amp; <!-- "),
    Passage(text="\n  Nobody \ud800 knows\x00 who\x1b[31m\r\ncounts them.\n\n", title="\u202eright"),
    Passage(text="Bread is baked at dawn. Zwölf Brote, ثلاثة أرغفة, 👩‍🍳."),
    Passage(text="", title="A title alone"),
    Passage(text=" \n"),
]


class Page(HTMLParser):
    """Elements of a page: their classes, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(html)
        assert self._open == [], "an element is left open"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in ("meta", "!doctype"):
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def of(self, name):
        return [node for node in self.elements if name in node.get("class", "").split() or node["tag"] == name]


@pytest.fixture(scope="module", params=MODES)
def ranking(request):
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, mode=request.param).rank(QUERY, PASSAGES)


def test_every_document_is_a_card_in_rank_order_with_its_whole_text(ranking):
    page = Page(ranking.explain()._repr_html_())
    assert [score["text"] for score in page.of("qr-score")] == [f"{ranked.score:.4f}" for ranked in ranking]
    assert [rank["text"] for rank in page.of("qr-place")] == ["1", "2", "3", "4", "5", "6"]
    for name, ranked in zip(page.of("qr-name"), ranking, strict=True):
        assert name["text"].startswith(printable(ranked.passage.title or ""))
        assert f"index {ranked.index}" in name["text"]
        assert ('id <"1">' in name["text"]) == (ranked.passage.id is not None)
        assert ("blank, not read" in name["text"]) == (ranked.passage.content.strip() == "")
        label = f"label\xa0[{ranked.index + 1 if ranking.mode == 'listwise' else 1}]"
        assert (label in name["text"]) == (ranked.passage.content.strip() != "")
    texts = [printable(ranked.passage.text) for ranked in ranking if ranked.passage.text.strip()]
    assert [text["text"] for text in page.of("qr-text")] == texts


def test_tooltips_sum_to_the_scores(ranking):
    explanation = ranking.explain()
    for explained in explanation:
        page = Page(Explanation(QUERY, (explained,))._repr_html_())
        tips = [float(shade["title"].partition(",")[0]) for shade in page.of("qr-shade") if "title" in shade]
        # Each tip is rounded to five places, and the score is a sum of float32.
        assert sum(tips) == pytest.approx(explained.score if explained.tokens else 0.0, abs=5e-6 * len(tips) + 1e-5)


def test_no_markup_comes_from_text(ranking):
    explanation = ranking.explain()
    for page in (Page(explanation._repr_html_()), Page(explanation.to_html()), Page(ranking._repr_html_())):
        assert {node["tag"] for node in page.elements} <= {
            *("html", "head", "meta", "title", "style", "body"),
            *("div", "span", "bdi"),
        }
        assert QUERY in [query["text"] for query in page.of("qr-query")]
        assert any("<script>alert('gone')</script>" in text["text"] for text in page.of("qr-text"))


def test_a_page_can_be_written_and_fetches_nothing(ranking, tmp_path):
    path = tmp_path / "explanation.html"
    ranking.explain().save(path)
    html = path.read_text(encoding="utf-8")
    assert html == ranking.explain().to_html()
    assert html.startswith("<!DOCTYPE html>")
    page = Page(html)
    assert page.of("title")[0]["text"] == QUERY
    assert "default-src 'none'" in page.of("meta")[2]["content"]
    assert not re.search(r"\b(src|href|url|@import)\b", "".join(style["text"] for style in page.of("style")))
    assert not any({"src", "href", "onclick"} & set(node) for node in page.elements)
    json.dumps(ranking.explain()._repr_html_()).encode()
    ranking._repr_html_().encode()


def test_styles_touch_only_the_cards():
    style = Page(cards_html("q", [])).of("style")[0]["text"]
    rules = re.sub(r"@media print \{(.*?\}) \}", r"\1", style, flags=re.DOTALL)
    selectors = [selector.strip() for selector, _ in re.findall(r"([^{}]+)\{([^}]*)\}", rules)]
    assert len(selectors) > 15
    assert all(selector == ".qrhead-cards" or selector.startswith(".qrhead-cards ") for selector in selectors)


def test_a_ranking_shows_the_beginning_of_each_text_and_no_shades():
    passages = (
        RankedPassage(7, 0.5, Passage(text="x" * 400, title="Log", id="n"), truncated=True),
        RankedPassage(2, -0.25, Passage(text="y" * 300)),
    )
    page = Page(Ranking(QUERY, passages, "late", windowed=True)._repr_html_())
    assert [text["text"] for text in page.of("qr-text")] == ["x" * 300 + "…", "y" * 300]
    assert [name["text"] for name in page.of("qr-name")] == [
        "Log index 7 · id n · only the beginning was read",
        "index 2",
    ]
    assert not page.of("qr-shade")
    assert page.of("qr-faint")[0]["text"] == "late, in sliding windows"


def test_nothing_ranked_is_a_page_without_cards():
    for html in (Ranking(QUERY, (), "late")._repr_html_(), Explanation(QUERY, ()).to_html()):
        page = Page(html)
        assert not page.of("qr-card")
        assert page.of("qr-query")[0]["text"] == QUERY


def styles(page, name):
    return [node["style"] for node in page.of(name)]


def test_bars_begin_at_zero():
    def bars(*scores):
        return styles(Page(cards_html("q", [Card(index, score) for index, score in enumerate(scores)])), "qr-bar")

    def bar(start, width, colour):
        return f"margin-left: {start}; width: {width}; background-color: rgb{colour}"

    blue, orange = "(0, 114, 178)", "(213, 94, 0)"
    assert bars(0.75, 0.0, -0.25) == [
        bar("25.00%", "75.00%", blue),
        bar("25.00%", "0.00%", blue),
        bar("0.00%", "25.00%", orange),
    ]
    assert bars(4.0, 1.0) == [bar("0.00%", "100.00%", blue), bar("0.00%", "25.00%", blue)]
    assert bars(-1.0, -4.0) == [bar("75.00%", "25.00%", orange), bar("0.00%", "100.00%", orange)]
    assert bars(0.0) == [bar("0.00%", "0.00%", blue)]


def test_shades_follow_the_contributions():
    read = [Stretch(f" {value}", value) for value in (0.5, 0.125, -0.5, -0.01, 0.004, 0.0)]
    stretches = (*read, Stretch("unread", None))
    page = Page(cards_html("q", [Card(0, 1.0, text=stretches)]))
    shades = [shade for shade in page.of("qr-shade") if "title" in shade]
    assert [(shade["text"], shade["title"]) for shade in shades] == [
        ("0.5", "+0.50000"),
        ("0.125", "+0.12500"),
        ("-0.5", "-0.50000"),
        ("-0.01", "-0.01000"),
        ("0.004", "+0.00400"),
    ]
    colours = [shade["style"].removeprefix("background-color: ") for shade in shades]
    assert colours == [
        "rgba(0,114,178,0.75)",
        "rgba(0,114,178,0.38)",
        "rgba(213,94,0,0.75)",
        "rgba(213,94,0,0.11)",
        "rgba(0,114,178,0.00)",
    ]
    assert ["qr-against" in shade["class"] for shade in shades] == [False, False, True, False, False]
    assert [(node["text"], node["title"]) for node in page.of("qr-unread")] == [("unread", "not read")]
    assert [node["text"] for node in page.of("qr-legend")[0:1]] == ["what a token contributed-0.5-0.12+0.12+0.5"]
    assert page.of("qr-text")[0]["text"] == " 0.5 0.125 -0.5 -0.01 0.004 0.0unread"


def test_a_line_break_that_counts_has_a_sign():
    stretches = (Stretch("", 0.5), Stretch("\n\n", -0.5), Stretch("\n", 0.001), Stretch("  ", 0.5), Stretch("a\n", 0.5))
    page = Page(page_html("q", [Card(0, 1.0, text=(*stretches, Stretch("x")))]))
    signed = ["qr-break" in shade["class"] for shade in page.of("qr-shade") if "title" in shade]
    assert signed == [True, True, False, False, False]


def test_the_space_before_a_word_is_not_shaded():
    halves = {text: Stretch(text, 0.5).halves for text in (" ship", "  ship", "ship ", " ", "\n ", "")}
    assert halves == {
        " ship": (" ", "ship"),
        "  ship": (" ", " ship"),
        "ship ": ("", "ship "),
        " ": ("", " "),
        "\n ": ("", "\n "),
        "": ("", ""),
    }


def test_tokens_that_share_a_character_are_one_stretch():
    passage = Passage(text="a 🚢 b. unread", title="T")
    tokens = (
        TokenContribution("[1]", "label", 0, 3, 0.25),
        TokenContribution("T", "title", 0, 1, 0.5),
        TokenContribution("", "title", 1, 1, -0.125),
        TokenContribution("a", "text", 0, 1, 1.0),
        TokenContribution(" 🚢", "text", 1, 3, 0.5),
        TokenContribution("🚢", "text", 2, 3, 0.25),
        TokenContribution("🚢", "text", 2, 3, -1.0),
        TokenContribution("b.", "text", 4, 6, 0.0),
    )
    explained = ExplainedPassage(0, 1.375, passage, tokens)
    assert explained.stretches("label") == (Stretch("[1]", 0.25),)
    assert explained.stretches("title") == (Stretch("T", 0.5), Stretch("", -0.125))
    assert explained.stretches("text") == (
        Stretch("a", 1.0),
        Stretch(" 🚢", -0.25, 3),
        Stretch(" ", None),
        Stretch("b.", 0.0),
        Stretch(" unread", None),
    )
    shades = Page(Explanation("q", (explained,))._repr_html_()).of("qr-shade")
    assert "-0.25000, 3 tokens" in [shade.get("title") for shade in shades]
