"""`min_evidence` and `fallback` in both rerankers: nothing comes back, or the first stage's order, and a log says so."""

import copy
import logging

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker
from pydantic import Field

from qrhead_rag import QRRetriever
from tests.helpers.tiny import tiny_model, tiny_tokenizer

QUERY = "Who counts the ships?"
TEXTS = ["Soup is served at noon.", "The keeper counts the ships. Fog hides the pier.", "The lighthouse is tall."]
REFUSED = {"min_evidence": 1.0}  # no list has as much
LOGGER = "qrhead_rag.frameworks.rerank"


@pytest.fixture(scope="module")
def scorer():
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0), (2, 2)], mode="late", readout="evidence")


def nodes_of():
    return [
        NodeWithScore(node=TextNode(text=text, metadata={"page": n}), score=0.5 - 0.1 * n)
        for n, text in enumerate(TEXTS)
    ]


def documents_of():
    return [Document(page_content=text, metadata={"page": n}) for n, text in enumerate(TEXTS)]


def test_an_empty_list_comes_back_and_the_log_says_why(scorer, caplog):
    evidence = scorer.rank(QUERY, TEXTS).evidence
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert LangChainReranker(scorer=scorer, **REFUSED).compress_documents(documents_of(), QUERY) == []
        assert (
            LlamaIndexReranker(scorer=scorer, metadata_mode="none", **REFUSED).postprocess_nodes(
                nodes_of(), query_str=QUERY
            )
            == []
        )
    messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    expected = f"the evidence of 3 documents is {evidence:.4f}, below min_evidence=1.0; 0 come back (fallback='empty')"
    assert messages == [f"nothing was found: {expected}"] * 2
    assert {record.levelname for record in caplog.records if record.name == LOGGER} == {"INFO"}


async def test_async_gives_the_same(scorer):
    assert await LangChainReranker(scorer=scorer, **REFUSED).acompress_documents(documents_of(), QUERY) == []
    assert await LlamaIndexReranker(scorer=scorer, **REFUSED).apostprocess_nodes(nodes_of(), query_str=QUERY) == []


@pytest.mark.parametrize("floor", [None, 0.0])
def test_a_list_of_enough_evidence_is_ranked_as_without_a_floor(scorer, floor, caplog):
    caplog.set_level(logging.INFO, logger=LOGGER)
    options = {"scorer": scorer, "min_evidence": floor, "fallback": "first_stage"}
    documents = LangChainReranker(**options).compress_documents(documents_of(), QUERY)
    assert documents == LangChainReranker(scorer=scorer).compress_documents(documents_of(), QUERY)
    nodes = nodes_of()
    assert LlamaIndexReranker(**options).postprocess_nodes(nodes, query_str=QUERY) == LlamaIndexReranker(
        scorer=scorer
    ).postprocess_nodes(nodes, query_str=QUERY)
    assert not caplog.records


def test_the_first_stages_order_comes_back_marked_and_without_new_scores(scorer, caplog):
    options = {"scorer": scorer, "fallback": "first_stage", "top_n": 2, **REFUSED}
    nodes, documents = nodes_of(), documents_of()
    before = copy.deepcopy([nodes, documents])
    with caplog.at_level(logging.INFO, logger=LOGGER):
        returned = LangChainReranker(**options).compress_documents(documents, QUERY)
        kept = LlamaIndexReranker(**options).postprocess_nodes(nodes, query_str=QUERY)
    assert [nodes, documents] == before
    assert caplog.text.count("2 come back (fallback='first_stage')") == 2
    assert [document.page_content for document in returned] == TEXTS[:2]
    assert [document.metadata for document in returned] == [{"page": n, "qrhead_abstained": True} for n in range(2)]
    assert [(node.text, node.score) for node in kept] == [(node.text, node.score) for node in nodes[:2]]
    for node, original in zip(kept, nodes, strict=False):
        assert node.metadata["qrhead_abstained"] is True
        for reader in (MetadataMode.LLM, MetadataMode.EMBED):
            assert node.get_content(metadata_mode=reader) == original.get_content(metadata_mode=reader)


def test_the_first_stages_order_is_that_of_the_scores_which_fusion_reads(scorer):
    nodes = nodes_of()[::-1]
    reranker = LlamaIndexReranker(scorer=scorer, fallback="first_stage", fuse_retrieval=1.0, **REFUSED)
    assert [node.text for node in reranker.postprocess_nodes(nodes, query_str=QUERY)] == TEXTS


def test_what_falls_back_is_pruned_too(scorer):
    reranker = LangChainReranker(scorer=scorer, fallback="first_stage", prune=1.0, **REFUSED)
    kept = reranker.compress_documents(documents_of(), QUERY)[1]
    assert len(kept.page_content) < len(TEXTS[1])
    assert {"qrhead_kept", "qrhead_full_text_sha256", "qrhead_abstained", "page"} == kept.metadata.keys()


class Ends(BaseEventHandler):
    seen: list = Field(default_factory=list)

    def handle(self, event, **_):
        if isinstance(event, ReRankEndEvent):
            self.seen.append(event.nodes)


class FixedNodes(LlamaIndexRetriever):
    def _retrieve(self, query_bundle):
        return nodes_of()


def test_events_of_llama_index_tell_of_an_empty_list_and_its_engine_answers_so(scorer):
    ends, debug = Ends(), LlamaDebugHandler(print_trace_on_end=False)
    reranker = LlamaIndexReranker(scorer=scorer, **REFUSED)
    engine = RetrieverQueryEngine.from_args(FixedNodes(), llm=MockLLM(), node_postprocessors=[reranker])
    root = get_dispatcher()
    root.add_event_handler(ends)
    try:
        response = engine.query(QUERY)
        reranker.callback_manager = CallbackManager([debug])
        reranker.postprocess_nodes(nodes_of(), query_str=QUERY)
    finally:
        root.event_handlers.remove(ends)
    assert str(response) == "Empty Response"
    assert response.source_nodes == []
    assert ends.seen == [[], []]
    ((_, after),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert after.payload[EventPayload.NODES] == []


class Runs(BaseCallbackHandler):
    def __init__(self):
        self.outputs = []

    def on_chain_end(self, outputs, **_):
        self.outputs.append(outputs)


class FixedDocuments(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return documents_of()


def test_a_traced_run_of_langchain_shows_the_empty_list(scorer):
    runs = Runs()
    reranker = LangChainReranker(scorer=scorer, **REFUSED)
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=FixedDocuments())
    assert retriever.invoke(QUERY, {"callbacks": [runs]}) == []
    assert runs.outputs == [[]]


@pytest.mark.parametrize("component", [LlamaIndexReranker, LangChainReranker])
def test_a_floor_or_a_fallback_out_of_range_is_refused_where_the_component_is_made(component):
    with pytest.raises(ValueError, match=r"min_evidence=2(.0)? is not a share"):
        component(min_evidence=2)
    with pytest.raises(ValueError, match="fallback"):
        component(fallback="second_stage")


def test_a_readout_without_evidence_is_refused(scorer):
    published = QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0)], readout="published")
    with pytest.raises(ValueError, match="gives no evidence of a list"):
        LangChainReranker(scorer=published, min_evidence=0.1).compress_documents(documents_of(), QUERY)
