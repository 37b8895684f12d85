"""The evidence of a list, and rankings that say that nothing was found."""

import random

import pytest
import torch

from qrhead_rag import QRRetriever
from qrhead_rag.demo import load_handbook
from tests.helpers.modes import MODES, PER_PASSAGE_MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

HEADS = [(1, 0), (1, 3), (2, 1), (2, 2)]
QUERY = "Who counts the ships?"
WORDS = ["the", "keeper", "counts", "ships", "that", "pass", "lighthouse", "of", "bread", "is", "baked", "at", "dawn"]


def make(mode="late", **options):
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=HEADS, mode=mode, **{"readout": "evidence", **options})


def documents(number=5, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 8))) for _ in range(number)]


@pytest.mark.parametrize("mode", MODES)
def test_evidence_is_a_share_and_the_same_however_a_list_is_asked(mode):
    retriever = make(mode)
    for seed in range(5):
        docs = documents(seed + 1, seed)
        evidence = retriever.rank(QUERY, docs).evidence
        assert 0 < evidence <= 1
        encoded = retriever.encode(docs)
        assert encoded.rank(QUERY).evidence == pytest.approx(evidence, rel=1e-4)
        queries = ["When is bread baked?", QUERY]
        assert encoded.rank_queries(queries)[1].evidence == pytest.approx(evidence, rel=1e-4)
        assert retriever.rank_lists([QUERY], [docs])[0].evidence == pytest.approx(evidence, rel=1e-4)
        assert retriever.rank(QUERY, docs, top_n=1).evidence == pytest.approx(evidence, rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("docs", [[], ["", "  "]], ids=["empty", "blank"])
def test_a_list_without_text_has_no_evidence(mode, docs):
    retriever = make(mode)
    assert retriever.rank(QUERY, docs).evidence == 0.0
    assert retriever.encode(docs).rank(QUERY, min_evidence=0.1).abstained
    refused = retriever.rank(QUERY, docs, min_evidence=0.1, fallback="first_stage")
    assert refused.abstained
    assert [ranked.index for ranked in refused] == list(range(len(docs)))


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_evidence_does_not_depend_on_the_order(mode):
    retriever, docs = make(mode, cache_bytes=0), documents(6)
    evidence = retriever.rank(QUERY, docs).evidence
    assert retriever.rank(QUERY, docs[::-1]).evidence == pytest.approx(evidence, rel=1e-4)
    assert retriever.rank(QUERY, [*docs, " "]).evidence == pytest.approx(evidence, rel=1e-4)


@pytest.mark.parametrize("mode", PER_PASSAGE_MODES)
def test_evidence_changes_little_with_another_copy_of_the_worst_passage(mode):
    retriever = make(mode, cache_bytes=0)
    for seed in range(5):
        docs = documents(6, seed)
        ranking = retriever.rank(QUERY, docs)
        longer = retriever.rank(QUERY, [*docs, docs[ranking[-1].index]])
        assert longer.evidence == pytest.approx(ranking.evidence, rel=0.25)


@pytest.mark.parametrize("mode", MODES)
def test_a_list_below_the_floor_is_refused(mode):
    retriever, docs = make(mode), documents(5)
    evidence = retriever.rank(QUERY, docs).evidence
    accepted = retriever.rank(QUERY, docs, min_evidence=evidence * 0.99)
    assert not accepted.abstained
    assert len(accepted) == 5
    encoded = retriever.encode(docs)
    for ask in (
        lambda **options: retriever.rank(QUERY, docs, **options),
        lambda **options: retriever.rank_lists([QUERY], [docs], **options)[0],
        lambda **options: encoded.rank(QUERY, **options),
        lambda **options: encoded.rank_queries([QUERY], **options)[0],
    ):
        refused = ask(min_evidence=evidence * 1.01)
        assert refused.abstained
        assert not len(refused)
        assert refused.evidence == pytest.approx(evidence, rel=1e-4)
        first = ask(min_evidence=evidence * 1.01, fallback="first_stage", top_n=3, min_share=0.99)
        assert first.abstained
        assert [ranked.index for ranked in first] == [0, 1, 2]


def test_the_first_stage_is_what_its_scores_say():
    retriever, docs = make(), documents(4)
    options = {"min_evidence": 1.0, "fallback": "first_stage", "fuse_retrieval": 0.5}
    refused = retriever.rank(QUERY, docs, retrieval_scores=[1.0, 4.0, 2.0, 3.0], **options)
    assert [ranked.index for ranked in refused] == [1, 3, 2, 0]
    assert {ranked.fused_score for ranked in refused} == {None}
    scores = retriever.score(QUERY, docs)
    assert [ranked.score for ranked in refused] == pytest.approx([scores[index] for index in (1, 3, 2, 0)], rel=1e-4)


def test_the_first_stage_may_come_as_an_array():
    options = {"min_evidence": 1.0, "fallback": "first_stage", "fuse_retrieval": 1}
    ranking = make().rank(QUERY, documents(3), retrieval_scores=torch.tensor([0.1, 0.9, 0.5]), **options)
    assert [ranked.index for ranked in ranking] == [1, 2, 0]


def test_a_list_in_windows_has_evidence_and_can_be_refused():
    retriever, docs = make("listwise", context_length=220, window=3, stride=2), documents(12)
    with pytest.warns(UserWarning, match="sliding windows"):
        ranking = retriever.rank(QUERY, docs)
    assert ranking.windowed
    assert 0 < ranking.evidence <= 1
    with pytest.warns(UserWarning, match="sliding windows"):
        assert retriever.rank(QUERY, docs, min_evidence=1.0).abstained


@pytest.mark.parametrize("mode", MODES)
def test_the_published_readout_has_no_evidence_and_refuses_a_floor(mode):
    retriever, docs = make(mode, readout="published"), documents(3)
    assert retriever.rank(QUERY, docs).evidence is None
    for refused in (retriever.rank, lambda query, docs, **options: retriever.encode(docs).rank(query, **options)):
        with pytest.raises(ValueError, match=r"min_evidence=0.5, but the readout 'published' gives no evidence"):
            refused(QUERY, docs, min_evidence=0.5)


@pytest.mark.parametrize("floor", [-0.1, 1.5, True, "0.5", float("nan")])
def test_a_floor_is_a_share(floor):
    with pytest.raises(ValueError, match=r"min_evidence=.* is not a share; expected a number from 0 to 1"):
        make().rank(QUERY, documents(2), min_evidence=floor)


def test_a_refused_ranking_says_so():
    refused = make().rank(QUERY, documents(3), min_evidence=1.0)
    assert "abstained=True" in repr(refused)
    assert "nothing was found" in refused._repr_html_()
    explained = refused.explain()
    assert explained.abstained
    assert "less evidence" in repr(explained)
    assert "nothing was found" in explained.to_html()
    ranked = make().rank(QUERY, documents(3))
    assert "nothing was found" not in ranked._repr_html_() + ranked.explain().to_html()


def test_short_lists_of_the_handbook_have_more_evidence_with_the_answer_than_without(embedded):
    handbook, questions = load_handbook()
    more = 0
    for number, question in enumerate(questions):
        right = [passage for passage in handbook if passage.id in question.relevant][:1]
        rest = [passage for passage in handbook if passage.id not in question.relevant]
        others = [rest[(7 * number + index) % len(rest)] for index in range(5)]
        with_answer, without = (embedded.rank(question.query, docs).evidence for docs in (right + others[:4], others))
        more += with_answer > without
    assert more >= len(questions) * 2 / 3
