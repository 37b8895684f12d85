"""`fuse_retrieval` in both frameworks: the nodes' scores, or the order in which documents were retrieved."""

import warnings

import pytest
from langchain_core.documents import Document
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker

from qrhead_rag import QRRetriever
from tests.helpers.tiny import tiny_model, tiny_tokenizer

QUERY = "who counts the ships?"
TEXTS = ["Storms came twice.", "The keeper counts the ships.", "A cat slept by the lamp.", "Bread is baked."]
SCORES = [0.1, 0.9, 0.3, 0.5]


@pytest.fixture(scope="module")
def scorer():
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 2)], mode="late")


def nodes(scores):
    return [NodeWithScore(node=TextNode(text=text), score=score) for text, score in zip(TEXTS, scores, strict=True)]


def test_llama_index_fuses_the_scores_of_the_nodes(scorer):
    reranker = LlamaIndexReranker(scorer=scorer, fuse_retrieval=1.0, top_n=None)
    expected = scorer.rank(QUERY, TEXTS, fuse_retrieval=1.0, retrieval_scores=SCORES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reranked = reranker.postprocess_nodes(nodes(SCORES), query_str=QUERY)
    assert [(node.text, node.score) for node in reranked] == [(r.passage.text, r.fused_score) for r in expected]
    assert [node.score for node in reranked] == sorted((node.score for node in reranked), reverse=True)


def test_llama_index_says_when_scores_are_missing(scorer):
    reranker = LlamaIndexReranker(scorer=scorer, fuse_retrieval=1.0)
    expected = scorer.rank(QUERY, TEXTS, fuse_retrieval=1.0)
    with pytest.warns(UserWarning, match="2 of 4 documents have no retrieval score"):
        reranked = reranker.postprocess_nodes(nodes([0.1, None, 0.3, None]), query_str=QUERY)
    assert [node.text for node in reranked] == [ranked.passage.text for ranked in expected]


def test_langchain_fuses_the_order_of_the_documents(scorer):
    reranker = LangChainReranker(scorer=scorer, fuse_retrieval=2.0)
    expected = scorer.rank(QUERY, TEXTS, fuse_retrieval=2.0)
    reranked = reranker.compress_documents([Document(page_content=text) for text in TEXTS], QUERY)
    assert [document.page_content for document in reranked] == [ranked.passage.text for ranked in expected]
    assert [document.metadata["relevance_score"] for document in reranked] == [r.fused_score for r in expected]


def test_without_fusion_missing_scores_do_not_matter(scorer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reranked = LlamaIndexReranker(scorer=scorer).postprocess_nodes(nodes([None] * 4), query_str=QUERY)
    assert [node.score for node in reranked] == [ranked.score for ranked in scorer.rank(QUERY, TEXTS)]


@pytest.mark.parametrize("component", [LlamaIndexReranker, LangChainReranker])
def test_a_wrong_weight_is_refused_where_the_component_is_made(component):
    with pytest.raises(ValueError, match=r"fuse_retrieval=-1(.0)? is not a weight"):
        component(fuse_retrieval=-1)
