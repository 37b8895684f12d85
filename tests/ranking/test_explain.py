"""A ranking's explanation: contributions that sum to the score, placed in the caller's own strings, in every mode."""

import pytest
import torch

from qrhead_rag import Passage, QRRetriever
from qrhead_rag.core.reading import Evidence
from qrhead_rag.ranking.explanation import explain_passage
from tests.helpers.modes import MODES, PER_PASSAGE_MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "Who counts the ships?"
PASSAGES = [
    Passage(text="The keeper of the lighthouse counts the ships that pass.", title="Keeper's log 🚢", id="1"),
    Passage(text="Bread is baked at dawn. Zwölf Brote, ثلاثة أرغفة, 👩‍🍳."),
    Passage(text="\n  Nobody \ud800 knows who\r\ncounts them.\n\n", title=""),
    Passage(text="", title="A title alone"),
    Passage(text="x", title="y" * 40),
]

every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_position_embeddings=4096)


def rank(model, mode, passages=PASSAGES, query=QUERY, **options):
    return QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode=mode, **options).rank(query, passages)


def check(explained):
    """What holds of every explained passage."""
    assert sum(token.contribution for token in explained.tokens) == pytest.approx(explained.score, abs=1e-5)
    parts = {"title": explained.passage.title, "text": explained.passage.text, "label": None}
    assert [token.part for token in explained.tokens] == sorted(
        (token.part for token in explained.tokens), key=["label", "title", "text"].index
    )
    for token in explained.tokens:
        if token.part != "label":
            assert parts[token.part][token.start : token.end] == token.text
        assert 0 <= token.start <= token.end


def covered(explained, part):
    return set().union(*(range(token.start, token.end) for token in explained.tokens if token.part == part))


@every_mode
@pytest.mark.parametrize("layout", ["given", "reversed"])
def test_contributions_sum_to_the_score_and_offsets_slice_the_callers_strings(model, mode, layout):
    ranking = rank(model, mode, layout=layout)
    explanation = ranking.explain()
    assert explanation.query == QUERY
    assert len(explanation) == len(PASSAGES)
    for explained, ranked in zip(explanation, ranking, strict=True):
        assert (explained.index, explained.score, explained.passage) == (ranked.index, ranked.score, ranked.passage)
        check(explained)
        assert covered(explained, "text") == set(range(len(explained.passage.text)))
        assert covered(explained, "title") == set(range(len(explained.passage.title or "")))
        assert any(token.contribution != 0 for token in explained.tokens)
        label = "".join(token.text for token in explained.tokens if token.part == "label")
        assert label.startswith("[")


@every_mode
def test_the_label_is_the_one_that_was_read(model, mode):
    explanation = rank(model, mode, ["one text", "two texts"]).explain()
    for explained in explanation:
        number = explained.index + 1 if mode == "listwise" else 1
        assert "".join(token.text for token in explained.tokens if token.part == "label").strip() == f"[{number}]"


@every_mode
def test_a_truncated_document_is_explained_as_far_as_it_was_read(model, mode):
    long = Passage(text="The keeper counts the ships. " * 90, title="Log", id="long")
    with pytest.warns(UserWarning, match="long"):
        ranking = rank(model, mode, [long], context_length=400, piece_tokens=None)
    (explained,) = ranking.explain()
    check(explained)
    read = covered(explained, "text")
    assert read == set(range(len(read)))
    assert 100 < len(read) < len(long.text)
    assert covered(explained, "title") == {0, 1, 2}


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_pieces_are_explained_where_they_stand(model, mode):
    long = Passage(text="".join(f"Ship {number} passes at night. " for number in range(60)), title="Log")
    ranking = rank(model, mode, [long, "Bread is baked."], piece_tokens=32)
    explained = next(passage for passage in ranking.explain() if passage.index == 0)
    assert sum(token.contribution for token in explained.tokens) == pytest.approx(explained.score, abs=1e-5)
    assert covered(explained, "text") == set(range(len(long.text)))
    text_tokens = [token for token in explained.tokens if token.part == "text"]
    assert all(long.text[token.start : token.end] == token.text for token in text_tokens)
    label = explained.stretches("label")
    assert "".join(stretch.text for stretch in label).strip() == "[1]", "once, however many pieces there are"
    of_label = sum(token.contribution for token in explained.tokens if token.part == "label")
    assert sum(stretch.contribution for stretch in label) == pytest.approx(of_label, abs=1e-6)
    # Only the best three pieces count.
    counting = [token.contribution != 0 for token in explained.tokens]
    assert 0 < sum(counting) < len(counting) / 2


@every_mode
def test_a_blank_document_has_no_tokens(model, mode):
    explanation = rank(model, mode, ["text", " "]).explain()
    assert explanation[1].index == 1
    assert explanation[1].tokens == ()


@every_mode
def test_only_what_is_kept_is_explained(model, mode):
    retriever = QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode=mode)
    ranking = retriever.rank(QUERY, PASSAGES, top_n=2, order="original")
    assert [explained.index for explained in ranking.explain()] == [ranked.index for ranked in ranking]
    encoded = retriever.encode(PASSAGES)
    for explained in encoded.rank(QUERY).explain():
        check(explained)


@every_mode
def test_an_explanation_outlives_what_is_asked_later(model, mode):
    retriever = QRRetriever(model, tiny_tokenizer(), heads=HEADS, mode=mode)
    encoded = retriever.encode(PASSAGES)
    first = encoded.rank(QUERY)
    before = first.explain()
    encoded.rank("What is baked?")
    encoded.extend(["more"])
    encoded.remove(0)
    assert first.explain() == before


def test_top_tokens():
    passage = Passage(text="ab cd")
    evidence = Evidence(torch.tensor([0.0, 3.0, -1.0, 5.0]), torch.tensor([(0, 3), (3, 5), (5, 7), (7, 9)]), "[1] ")
    explained = explain_passage(0, 7.0, passage, evidence)
    assert [(token.part, token.text, token.start, token.end) for token in explained.tokens] == [
        ("label", "[1]", 0, 3),
        ("text", "a", 0, 1),
        ("text", "b ", 1, 3),
        ("text", "cd", 3, 5),
    ]
    assert [token.text for token in explained.top(2)] == ["cd", "a"]


def test_a_token_across_a_joint_belongs_to_the_part_of_its_last_character():
    passage = Passage(title="T", text="xy")
    evidence = Evidence(torch.ones(3), torch.tensor([(0, 4), (4, 7), (7, 8)]), "[1] ")  # "[1] ", "T\nx", "y"
    explained = explain_passage(3, 3.0, passage, evidence)
    assert [(token.part, token.text, token.start, token.end) for token in explained.tokens] == [
        ("label", "[1] ", 0, 4),
        ("text", "x", 0, 1),
        ("text", "y", 1, 2),
    ]


def test_the_newline_after_a_title_is_in_neither_string():
    passage = Passage(title="T", text="x")
    evidence = Evidence(torch.ones(4), torch.tensor([(0, 4), (4, 5), (5, 6), (6, 7)]), "[1] ")
    explained = explain_passage(0, 4.0, passage, evidence)
    assert [(token.part, token.text) for token in explained.tokens] == [
        ("label", "[1] "),
        ("title", "T"),
        ("title", ""),
        ("text", "x"),
    ]


def test_the_words_of_the_answer_earn_the_score(embedded):
    """On the real model: what is found is what the question is about."""
    documents = ["Bread in the village is baked before dawn by two sisters.", "The harbour freezes in winter."]
    ranking = embedded.rank("Who bakes the bread?", documents)
    best = {token.text.strip().strip(".") for token in ranking.explain()[0].top(5)}
    assert best & {"sisters", "bread", "Bread", "baked", "two"}
