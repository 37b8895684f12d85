"""Pruned texts: what is kept lies in the text, in its order, on sentence ends, and within the budget."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qrhead_rag.core.pruning import Prune, ReadText, prune_texts
from qrhead_rag.core.sentences import LONGEST_SENTENCE, OMISSION, cut_text, leaning_on, text_spans

HOSTILE = {
    "a word of 200,000 characters": "a" * 200_000,
    "200,000 characters without a stop": "ferry mast " * 18_000,
    "only stops": "." * 200_000,
    "only stops and spaces": ". " * 2_000,
    "a pronoun in every sentence": "It sank. " * 20_000,
    "lines": "a\n" * 50_000,
    "mixed scripts": "渡轮九点开。The ferry sank. غادرت العبارة في التاسعة. कुत्ता भौंका। " * 50,
    "CJK without a stop": "渡轮九点开" * 2_000,
    "code": "def f(x):\n    return x.y.z\n\n\nclass A:\n    pass\n" * 100,
    "a table": "| ship | year |\n| --- | --- |\n" + "| Ash | 1912 |\n" * 200,
    "a list": "- first item\n- second item\n\nA paragraph. Another one.",
    "blank": " \n ",
    "empty": "",
    "lone surrogates": "\ud800 broken. Whole. It \udc00 stays.",
    "combining marks": "e\u0301" * 3_000,
}
SENTENCES = st.sampled_from(
    [
        "It rains.",
        "The ferry leaves at nine.",
        "However, bread!",
        "渡轮九点开。",
        "\n\n",
        " ",
        "a | b",
        "x" * 50,
        "\ud800?",
    ]
)
TEXTS = st.lists(SENTENCES, max_size=12).map(" ".join) | st.text(max_size=60)


def words(text):
    return len(text.split())


def read(text, contributions, before=""):
    """A text whose tokens are its characters in groups of three."""
    ends = range(0, len(text), 3)
    shares = (contributions[index % len(contributions)] for index in range(len(ends)))
    return ReadText.of(text, zip(ends, shares, strict=True), before)


@st.composite
def lists(draw):
    contributions = st.lists(st.floats(-1, 1), min_size=1, max_size=7)
    before = st.sampled_from(["", "A title\n"])
    return [read(draw(TEXTS), draw(contributions), draw(before)) for _ in range(draw(st.integers(1, 4)))]


def check_ranges(text, ranges, on_bounds=True):
    """In the text, in order, without overlap; on the bounds of sentences but for white space."""
    starts = {start + len(text[start:end]) - len(text[start:end].lstrip()) for start, end in text_spans(text)}
    ends = {start + len(text[start:end].rstrip()) for start, end in text_spans(text)}
    reached = 0
    for start, end in ranges:
        assert reached <= start < end <= len(text)
        reached = end
        assert not on_bounds or (start, end) == (0, len(text)) or (start in starts and end in ends)
    assert all(text[end:start].strip() for (_, end), (start, _) in pairwise(ranges))


@given(lists(), st.floats(0.001, 1))
def test_a_share_keeps_whole_sentences_of_every_passage(texts, share):
    kept = prune_texts(texts, range(len(texts)), Prune(min_share=share), words)
    assert kept.keys() == set(range(len(texts)))
    for index, ranges in kept.items():
        check_ranges(texts[index].text, ranges)
        assert ranges or not texts[index].text


@pytest.mark.parametrize("count_tokens", [words, len], ids=["words", "characters"])
@given(lists(), st.integers(1, 60))
def test_a_budget_is_kept_to_the_token(count_tokens, texts, max_tokens):
    prune = Prune(max_tokens=max_tokens)
    kept = prune_texts(texts, range(len(texts)), prune, count_tokens)
    cuts = [cut_text(texts[index].text, ranges) for index, ranges in kept.items()]
    total = sum(count_tokens(texts[index].before + cut) for index, cut in zip(kept, cuts, strict=True))
    alone = len(kept) == 1
    assert total <= max_tokens or (alone and cuts == [""])  # the title of the best by itself
    for index, ranges in kept.items():
        check_ranges(texts[index].text, ranges, on_bounds=not alone)


@given(lists())
def test_a_budget_that_all_fits_keeps_all(texts):
    whole = sum(len(text.before + text.text) for text in texts)
    kept = prune_texts(texts, range(len(texts)), Prune(max_tokens=max(1, whole)), len)
    assert [cut_text(text.text, kept[index]) for index, text in enumerate(texts)] == [text.text for text in texts]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("prune", [Prune(min_share=0.01), Prune(max_tokens=100), Prune(max_tokens=2)], ids=repr)
def test_any_text_is_pruned(name, prune):
    text = HOSTILE[name]
    ranges = prune_texts([read(text, [0.1, 0.0, 0.3])], [0], prune, len)[0]
    assert prune.max_tokens is None or len(cut_text(text, ranges)) <= prune.max_tokens
    check_ranges(text, ranges, on_bounds=prune.max_tokens is None)


@pytest.mark.parametrize("name", HOSTILE)
def test_spans_cover_the_text_and_are_bounded(name):
    text, spans = HOSTILE[name], text_spans(HOSTILE[name])
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(len(text[start:end].strip()) <= LONGEST_SENTENCE for start, end in spans)


def test_a_long_sentence_is_cut_at_a_line_then_at_a_word():
    rows = "| Ash | 1912 |\n" * 200
    assert all(rows[end - 1] == "\n" for _, end in text_spans(rows))
    line = "ferry mast " * 300
    assert all(line[end - 1] == " " for _, end in text_spans(line))


RAIN = "It rains. The ferry leaves at nine. Bread is good. He came late."
TOKENS = ((1, 0.0), (16, 0.2), (32, 0.6), (40, 0.05), (60, 0.1))  # weights of the sentences: 0, 2.9, 0.2, 0.4


@pytest.mark.parametrize(
    ("prune", "expected"),
    [
        (Prune(min_share=0.5), "[…] The ferry leaves at nine. […]"),
        (Prune(min_share=0.4), "[…] The ferry leaves at nine. Bread is good. He came late."),  # "He" leans
        (Prune(min_share=0.5, omission=" (…) "), "(…) The ferry leaves at nine. (…)"),
        (Prune(min_share=0.5, omission=" "), "The ferry leaves at nine."),
        (Prune(max_tokens=64), RAIN),
        (Prune(max_tokens=63), "[…] The ferry leaves at nine. Bread is good. He came late."),
        (Prune(max_tokens=50), "[…] The ferry leaves at nine. […] He came late."),  # without what it leans on
        (Prune(max_tokens=30), "[…] The ferry leaves at […]"),
        (Prune(max_tokens=5), ""),
    ],
)
def test_what_is_kept(prune, expected):
    text = ReadText.of(RAIN, TOKENS)
    assert cut_text(RAIN, prune_texts([text], [0], prune, len)[0], prune.omission) == expected


def test_sentences_of_all_passages_compete_and_the_rest_leave():
    poor, rich = ReadText.of("Dull words.", [(3, 0.1)]), ReadText.of(RAIN, TOKENS)
    assert prune_texts([poor, rich], [1, 0], Prune(max_tokens=35), len) == {1: ((10, 35),)}
    assert prune_texts([poor, rich], [1, 0], Prune(min_share=0.6), len) == {1: ((10, 35),), 0: ((0, 11),)}
    assert prune_texts([poor, rich], [0], Prune(min_share=0.6), len) == {0: ((0, 11),)}


def test_a_title_costs_tokens():
    text = ReadText.of(RAIN, TOKENS, before="Ferries\n")
    assert prune_texts([text], [0], Prune(max_tokens=64), len)[0] != ((0, 64),)
    assert prune_texts([text], [0], Prune(max_tokens=72), len)[0] == ((0, 64),)


def test_a_sentence_leans_on_at_most_two():
    sentences = ["The ferry sank.", "It was old.", "It was red.", "It was late.", "Bread is good."]
    assert [list(leaning_on(sentences, index)) for index in range(5)] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [4]]


def test_a_token_count_that_does_not_add_up_is_held_to_the_budget():
    def superadditive(text):
        return words(text) ** 2

    text = read("The ferry leaves. Bread is good. Stones lie. Ships pass. " * 5, [0.3, 0.1, 0.2])
    for max_tokens in range(1, 400, 7):
        kept = prune_texts([text], [0], Prune(max_tokens=max_tokens), superadditive)[0]
        assert superadditive(cut_text(text.text, kept)) <= max_tokens


def test_a_number_is_a_share_or_a_budget():
    assert Prune.of(0.1) == Prune(min_share=0.1)
    assert Prune.of(1.0) == Prune(min_share=1.0)
    assert Prune.of(1) == Prune(max_tokens=1)
    assert Prune.of(None) is None
    assert Prune.of(torch.tensor(0.5)) == Prune.of(np.array(0.5)) == Prune(min_share=0.5)
    assert Prune.of(torch.tensor(5)) == Prune.of(np.int64(5)) == Prune(max_tokens=5)
    assert Prune(min_share=0.1).omission == OMISSION


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, 0, -3, True, "much", float("nan"), [1]])
def test_another_value_is_refused(value):
    with pytest.raises(ValueError, match=r"expected a (whole )?number"):
        Prune.of(value)


def test_a_measure_is_needed():
    with pytest.raises(ValueError, match="without a measure"):
        Prune()
    with pytest.raises(ValueError, match="Extra inputs"):
        Prune(min_share=0.1, share=0.2)
