"""Questions made from passages: what they are made of, what gives nothing away, and corpora that cannot be asked."""

import random

import pytest

from qrhead_rag import Passage
from qrhead_rag.core.sentences import leans_on_neighbour
from qrhead_rag.datasets.encyclopedia import load_encyclopedia
from qrhead_rag.detect.finding import controls
from qrhead_rag.detect.made import MIN_CANDIDATES, make_examples
from tests.helpers.synonyms import synonym_corpus

PASSAGES = list({document.id: document for example in load_encyclopedia() for document in example.documents}.values())
ENGLISH = [passage for passage in PASSAGES if passage.id.startswith("en")] or PASSAGES[:200]


def test_a_sentence_asks_for_the_rest_of_its_passage():
    whole = {passage.title: passage.text for passage in ENGLISH}
    for example in make_examples(ENGLISH, count=60):
        (relevant,) = example.relevant
        right = example.documents[relevant]
        assert example.query in whole[right.title]
        assert not leans_on_neighbour(example.query)
        assert not any(example.query in document.text for document in example.documents)
        assert len(example.documents) == len({document.text for document in example.documents}) == 20
        for document in example.documents:  # each has lost one sentence, and nothing else
            assert 20 < len(document.text) < len(whole[document.title]) - 10


def test_a_passage_is_the_same_in_every_list():
    texts = {}
    for example in make_examples(ENGLISH, count=60):
        for document in example.documents:
            assert texts.setdefault(document.title, document.text) == document.text


@pytest.mark.slow
def test_nothing_but_the_content_tells_the_right_passage():
    examples = make_examples(PASSAGES, count=100)
    assert len(examples) == 100
    for name, value in controls(examples).items():
        assert value < (0.65 if name == "BM25" else 0.35), name


def test_scripts_without_spaces_have_questions():
    chinese = [passage for passage in PASSAGES if "的" in passage.text]
    examples = make_examples(chinese, count=10)
    assert len(examples) == 10
    assert all("。" in example.query for example in examples)


def test_equal_calls_make_equal_lists_and_another_seed_others():
    first, again, other = (make_examples(PASSAGES, count=20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_neither_near_copies_nor_passages_that_say_it_too_are_candidates():
    copies = [f"{text} And {number} more." for number, text in enumerate(synonym_corpus(30))]
    for example in make_examples([*synonym_corpus(30), *copies], count=20):
        subjects = [document.text.split("x")[0][1:] for document in example.documents]
        assert subjects.count(subjects[example.relevant[0]]) == 1


@pytest.mark.parametrize(
    "passages",
    [
        [],
        ["The same passage. It says the same. It is said again and again."] * 500,
        [f"{number} {number + 1}. {number}. {number * 7} {number * 3}." for number in range(500)],
        ["One sentence about the harbour and its many boats."] * 3,
        ["", " ", "\n"] * 50,
        ["<|im_start|>system<|im_end|>" * 20, "\x00\x01\x02" * 30, "\ud800" * 90] * 20,
        ["." * 10_000, "a" * 10_000] * 30,
        [f"Sentence number {number} of a list without any second sentence beside it" for number in range(100)],
    ],
    ids=["none", "equal", "numbers", "three", "blank", "control", "no stops", "one sentence each"],
)
def test_a_corpus_that_cannot_be_asked_is_refused_with_the_number(passages):
    with pytest.raises(
        ValueError, match=r"\d+ questions can be made from \d+ different passages; expected at least 20"
    ):
        make_examples(passages)


@pytest.mark.slow
def test_a_large_corpus_is_drawn_from():
    draw = random.Random(0)
    words = [f"word{number}" for number in range(3000)]
    passages = [
        ". ".join(" ".join(draw.choices(words, k=8)).capitalize() for _ in range(3)) + "." for _ in range(30_000)
    ]
    examples = make_examples(passages, count=20)
    assert len(examples) == 20


@pytest.mark.parametrize(("option", "value"), [("count", 0), ("candidates", MIN_CANDIDATES - 1)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}={value}: expected at least"):
        make_examples(PASSAGES, **{option: value})


def test_passages_of_any_kind_are_taken_and_left_alone():
    documents = [{"text": text, "metadata": {"page": 3}} for text in synonym_corpus(10)] + [
        Passage(text=t) for t in synonym_corpus(30)
    ]
    before = [dict(document) if isinstance(document, dict) else document for document in documents]
    make_examples(documents, count=20)
    assert documents == before
