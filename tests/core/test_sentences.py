"""Sentences cover their text, whatever it is, and lean on their neighbour where they begin with a pronoun."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrhead_rag.core.sentences import leans_on_neighbour, sentence_spans


@given(st.text())
def test_spans_cover_the_text_in_order(text):
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)
    assert all(text[start:end].strip() for start, end in spans[1:])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Dr. Ash measured 3.5 km. It was late, e.g. after 5 p.m. on Monday.", 2),
        ("渡轮九点开。面包在黎明烤好。你好吗？", 3),
        ("غادرت العبارة في التاسعة. هل عاد؟ نعم.", 3),
        ("कुत्ता भौंका। बिल्ली भागी।", 2),
        ("- first item\n- second item\n\nA paragraph without a stop", 3),
        ("\ud800 broken. Whole.", 2),
        ("." * 200_000, 1),
        ("a" * 200_000, 1),
    ],
)
def test_stops_of_many_scripts_are_known(text, number):
    assert len(sentence_spans(text)) == number


@pytest.mark.parametrize(
    "sentence",
    ["It sank.", '"However, it sank."', "Deshalb sank sie.", "Elle coula.", "Ellos huyeron.", "但是下雨。", "لكنه"],
)
def test_a_sentence_that_begins_with_a_pronoun_or_connective_leans(sentence):
    assert leans_on_neighbour(sentence)


@pytest.mark.parametrize(
    "sentence", ["The ferry sank.", "Itineraries changed.", "Der Turm steht.", "桥很长。", "العبارة", "", "..."]
)
def test_another_sentence_stands_by_itself(sentence):
    assert not leans_on_neighbour(sentence)
