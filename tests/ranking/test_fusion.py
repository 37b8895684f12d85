"""The first stage's order fused with the heads'."""

import pytest

from qrhead_rag import QRRetriever
from qrhead_rag.core.selection import FUSION_CONSTANT, Selection, fuse_ranks
from qrhead_rag.evaluate.methods import make_method
from tests.helpers.modes import MODES
from tests.helpers.tiny import tiny_model, tiny_tokenizer

QUERY = "who counts the ships?"
DOCUMENTS = ["Storms came twice.", "The keeper counts the ships.", "", "A cat slept by the lamp.", "Bread is baked."]


def retriever(mode="late", **options):
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 2)], mode=mode, **options)


@pytest.mark.parametrize("mode", MODES)
def test_the_list_s_own_order_is_the_first_stage_s_without_scores(mode):
    alone = [ranked.index for ranked in retriever(mode).rank(QUERY, DOCUMENTS)]
    fused = retriever(mode).rank(QUERY, DOCUMENTS, fuse_retrieval=0.5)
    read = [0, 1, 3, 4]
    by_hand = {
        index: 1 / (FUSION_CONSTANT + 1 + alone.index(index)) + 0.5 / (FUSION_CONSTANT + 1 + read.index(index))
        for index in read
    }
    assert [ranked.index for ranked in fused] == [*sorted(read, key=lambda index: -by_hand[index]), 2]
    for ranked in fused:
        assert ranked.fused_score == (pytest.approx(by_hand[ranked.index]) if ranked.index in read else None)
    assert [ranked.score for ranked in sorted(fused, key=lambda r: r.index)] == pytest.approx(
        retriever(mode).score(QUERY, DOCUMENTS)
    )


def test_a_heavy_first_stage_decides_and_a_light_one_does_not():
    scores = [1.0, 2.0, 9.0, 4.0, 3.0]
    heavy = retriever().rank(QUERY, DOCUMENTS, fuse_retrieval=1e6, retrieval_scores=scores)
    assert [ranked.index for ranked in heavy] == [3, 4, 1, 0, 2]  # a blank document is last whatever retrieved it
    light = retriever().rank(QUERY, DOCUMENTS, fuse_retrieval=1e-6, retrieval_scores=scores)
    assert [ranked.index for ranked in light] == [ranked.index for ranked in retriever().rank(QUERY, DOCUMENTS)]


def test_equal_retrieval_scores_keep_the_caller_s_order():
    fused = fuse_ranks([3, 1, 0], [5.0, 5.0, 9.0, 5.0], weight=1.0)
    assert fused[0] == 1 / (FUSION_CONSTANT + 3) + 1 / (FUSION_CONSTANT + 1)


def test_windows_are_fused_too():
    asked = retriever("listwise", window=2, context_length=220)
    documents = [f"{text} " * 6 for text in DOCUMENTS if text]
    with pytest.warns(UserWarning, match="sliding windows"), pytest.warns(UserWarning, match="only the beginning"):
        ranking = asked.rank(QUERY, documents, fuse_retrieval=1e6, retrieval_scores=[1, 2, 3, 4])
    assert [ranked.index for ranked in ranking] == [3, 2, 1, 0]


def test_the_token_budget_follows_the_fused_order():
    scores = [5.0, 1.0, 0.0, 4.0, 3.0]
    ranking = retriever().rank(QUERY, DOCUMENTS, fuse_retrieval=1e6, retrieval_scores=scores, top_n=2)
    assert [ranked.index for ranked in ranking] == [0, 3]
    assert len(ranking.explain().passages) == 2


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "1", True])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="is not a weight"):
        retriever().rank(QUERY, DOCUMENTS, fuse_retrieval=weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retrieval_scores": [1.0] * 5}, "fuse_retrieval is None"),
        ({"fuse_retrieval": 1, "retrieval_scores": [1.0] * 4}, "4 retrieval_scores for 5 documents"),
        ({"fuse_retrieval": 1, "retrieval_scores": [1.0, 2.0, None, 4.0, 5.0]}, r"retrieval_scores\[2\] is None"),
        ({"fuse_retrieval": 1, "retrieval_scores": [1.0, float("nan"), 3.0, 4.0, 5.0]}, r"retrieval_scores\[1\]"),
    ],
)
def test_scores_that_do_not_belong_to_the_list_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        retriever().rank(QUERY, DOCUMENTS, **options)


def test_without_fusion_nothing_has_a_fused_score():
    assert all(ranked.fused_score is None for ranked in retriever().rank(QUERY, DOCUMENTS))
    assert Selection().fuse_retrieval is None


def test_evaluation_fuses_two_methods():
    pytest.importorskip("bm25s")
    loaded = retriever()
    fused = make_method("default@late+bm25", load_retriever=lambda heads, mode, readout: loaded)
    passages = [ranked.passage for ranked in loaded.rank(QUERY, DOCUMENTS)]
    heads, bm25 = (
        make_method(name, load_retriever=lambda heads, mode, readout: loaded) for name in ("default", "bm25")
    )
    expected = fuse_ranks(heads(QUERY, passages).order, bm25(QUERY, passages).scores, 1.0)
    result = fused(QUERY, passages)
    assert result.scores == [expected[index] for index in range(len(passages))]
    assert result.order == sorted(expected, key=lambda index: -expected[index])
