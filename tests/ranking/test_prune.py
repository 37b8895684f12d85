"""Rankings pruned to sentences, in every mode and however the list is asked."""

import copy
import json

import pytest

from qrhead_rag import Passage, QRRetriever
from qrhead_rag.core.pruning import Prune
from qrhead_rag.core.sentences import text_spans
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

QUERY = "Who counts the ships?"
DOCUMENTS = [
    Passage(title="Keeper", text="The keeper counts the ships. It is late. Bread is baked at dawn. Two ships pass."),
    {"text": "None of the ships pass. The lighthouse is tall. However, the keeper counts.", "id": "b"},
    "渡轮九点开。面包在黎明烤好。 The keeper.",
    "  ",
    "One sentence without a stop",
    "",
]


@pytest.fixture(scope="module", params=MODES)
def retriever(request):
    model = tiny_model(max_position_embeddings=2048)
    retriever = QRRetriever(model, tiny_tokenizer(), heads=[(1, 0), (2, 1)], mode=request.param)
    retriever.rank(QUERY, DOCUMENTS)  # the first pass over a list rounds otherwise than later ones
    return retriever


def facts(ranking):
    return [(ranked.index, ranked.score, ranked.truncated, ranked.fused_score) for ranked in ranking]


def cost(retriever, ranking, count_tokens=None):
    count = count_tokens or retriever.count_tokens
    return sum(count(Passage(title=r.passage.title, text=r.pruned).content) for r in ranking)


def test_without_it_nothing_changes(retriever):
    ranking = retriever.rank(QUERY, DOCUMENTS)
    assert facts(ranking) == facts(retriever.rank(QUERY, DOCUMENTS, prune=None))
    assert [(ranked.kept, ranked.pruned) for ranked in ranking] == [(None, r.passage.text) for r in ranking]


@pytest.mark.parametrize("share", [0.001, 0.1, 1.0])
def test_a_share_cuts_texts_and_changes_nothing_else(retriever, share):
    before = copy.deepcopy(DOCUMENTS)
    ranking = retriever.rank(QUERY, DOCUMENTS, prune=share)
    assert before == DOCUMENTS
    assert facts(ranking) == facts(retriever.rank(QUERY, DOCUMENTS))
    for ranked in ranking:
        text = ranked.passage.text
        assert ranked.kept or not text
        assert ranked.pruned.replace(" […] ", "|").count("[…]") <= 2
        ends = {start + len(text[start:end].rstrip()) for start, end in text_spans(text)}
        assert {end for _, end in ranked.kept} <= ends | {len(text)}


def test_a_higher_share_keeps_less(retriever):
    few, many = (retriever.rank(QUERY, DOCUMENTS, prune=share, order="original") for share in (1.0, 0.001))
    assert sum(len(ranked.pruned) for ranked in few) < sum(len(ranked.pruned) for ranked in many)


@pytest.mark.parametrize("budget", [1, 12, 30, 60, 2000])
def test_a_budget_is_held(retriever, budget):
    ranking = retriever.rank(QUERY, DOCUMENTS, prune=budget)
    assert cost(retriever, ranking) <= budget or (len(ranking) == 1 and ranking[0].pruned == "")
    everything = facts(retriever.rank(QUERY, DOCUMENTS))
    assert facts(ranking) == [fact for fact in everything if fact[0] in {ranked.index for ranked in ranking}]
    assert budget < 2000 or [r.pruned for r in ranking] == [r.passage.text for r in ranking]


def test_a_token_counter_and_whole_passages_in_a_budget_go_with_it(retriever):
    options = {"max_tokens": 120, "token_counter": len, "top_n": 3, "order": "original"}
    whole = retriever.rank(QUERY, DOCUMENTS, **options)
    pruned = retriever.rank(QUERY, DOCUMENTS, **options, prune=Prune(max_tokens=80, omission="…"))
    assert cost(retriever, pruned, len) <= 80 < cost(retriever, whole, len) <= 120
    assert {ranked.index for ranked in pruned} <= {ranked.index for ranked in whole}
    assert "[…]" not in "".join(ranked.pruned for ranked in pruned)


def test_an_explanation_is_of_the_whole_text(retriever):
    whole, pruned = (retriever.rank(QUERY, DOCUMENTS, prune=prune).explain() for prune in (None, 0.3))
    assert whole == pruned


def test_an_encoded_list_prunes_alike(retriever):
    encoded = retriever.encode(DOCUMENTS)
    for prune in (0.2, 40, Prune(min_share=0.1, max_tokens=50)):
        once = retriever.rank(QUERY, DOCUMENTS, prune=prune)
        (first, second) = encoded.rank_queries([QUERY, QUERY], prune=prune)
        assert [r.kept for r in once] == [r.kept for r in first] == [r.kept for r in second]
        assert [r.kept for r in encoded.rank(QUERY, prune=prune)] == [r.kept for r in once]
        assert [r.kept for r in retriever.rank_lists([QUERY], [DOCUMENTS], prune=prune)[0]] == [r.kept for r in once]


def test_windows_prune_too():
    model = tiny_model(max_position_embeddings=4096)
    options = {"heads": [(1, 0), (2, 1)], "mode": "listwise", "context_length": 400}
    retriever = QRRetriever(model, tiny_tokenizer(), **options)
    documents = [f"The keeper counts {number} ships. Bread is baked at dawn." for number in range(12)]
    with pytest.warns(UserWarning, match="longer together"):
        ranking = retriever.rank(QUERY, documents, prune=0.5)
    assert ranking.windowed
    assert all(ranked.kept for ranked in ranking)
    with pytest.warns(UserWarning, match="longer together"):
        ranking = retriever.rank(QUERY, documents, prune=60)
    assert cost(retriever, ranking) <= 60


def test_a_list_of_blanks_or_nothing(retriever):
    assert len(retriever.rank(QUERY, [], prune=0.1)) == 0
    assert len(retriever.rank(QUERY, [], prune=10)) == 0
    assert [ranked.pruned for ranked in retriever.rank(QUERY, ["", " "], prune=0.1)] == ["", " "]
    assert [ranked.pruned for ranked in retriever.rank(QUERY, [Passage(title="Keeper", text="")], prune=50)] == [""]


def test_what_cannot_be_is_refused_before_anything_is_read(retriever):
    with pytest.raises(ValueError, match="expected a number"):
        retriever.rank(QUERY, DOCUMENTS, prune=2.5)
    with pytest.raises(ValueError, match="expected a whole number"):
        retriever.encode(DOCUMENTS).rank(QUERY, prune=0)


def test_kept_ranges_are_plain_data(retriever):
    kept = [ranked.kept for ranked in retriever.rank(QUERY, DOCUMENTS, prune=0.2)]
    assert json.loads(json.dumps(kept)) == [[list(span) for span in ranges] for ranges in kept]
