"""Warnings and errors through frameworks: they name the user's own line, and documents by their ids."""

import asyncio
import inspect
import sys

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.qrhead import QRHeadMemory
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker

from qrhead_rag import QRRetriever
from qrhead_rag.core.scoring import NotFiniteError
from qrhead_rag.ranking import warn
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.warned import warnings_of_call

LONG = "The keeper counts the ships. " * 90
DOCUMENTS = [Document(page_content="Short."), Document(page_content=LONG, id="the-long-one")]
NODES = [NodeWithScore(node=TextNode(text="Short.")), NodeWithScore(node=TextNode(text=LONG, id_="the-long-one"))]


class Documents(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return DOCUMENTS


class Nodes(LlamaIndexRetriever):
    def _retrieve(self, query_bundle):
        return NODES


@pytest.fixture
def scorer():
    options = {"mode": "late", "context_length": 400, "piece_tokens": None}
    return QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0)], **options)


@pytest.fixture
def compression_retriever(scorer):
    return ContextualCompressionRetriever(base_compressor=LangChainReranker(scorer=scorer), base_retriever=Documents())


@pytest.fixture
def query_engine(scorer):
    reranker = LlamaIndexReranker(scorer=scorer)
    return RetrieverQueryEngine.from_args(Nodes(), llm=MockLLM(max_tokens=5), node_postprocessors=[reranker])


@pytest.mark.parametrize("framework", ["compression_retriever", "query_engine"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_warning_names_the_users_line_and_the_id(framework, is_async, request):
    component = request.getfixturevalue(framework)
    name = {"compression_retriever": "invoke", "query_engine": "query"}[framework]

    async def within_a_task():
        return await asyncio.gather(asyncio.create_task(in_a_task()))

    async def in_a_task():
        await getattr(component, f"a{name}")("who counts?")

    def ask():
        return asyncio.run(within_a_task()) if is_async else getattr(component, name)("who counts?")

    with pytest.warns(UserWarning, match=r"only the beginning of document 1 \(the-long-one\)") as caught:
        ask()
    warning = next(w for w in warnings_of_call(caught) if "only the beginning" in str(w.message))
    assert warning.filename == __file__
    assert "component" in inspect.getsource(sys.modules[__name__]).splitlines()[warning.lineno - 1]


async def test_a_warning_of_a_memory_names_the_users_line(scorer):
    memory = QRHeadMemory.from_defaults(scorer=scorer, token_limit=600, keep_last=1)
    await memory.aset([ChatMessage(role="user", content=text) for text in (LONG, "Short.", LONG, "who counts?")])
    with pytest.warns(UserWarning, match="only the beginning") as caught:
        await memory.aget()
    assert warnings_of_call(caught)[0].filename == __file__


def test_where_no_line_is_the_users_the_caller_of_the_package_is_named(scorer, monkeypatch):
    """As in an application that is itself installed."""
    monkeypatch.setattr(warn, "_is_installed_file", lambda file: True)
    with pytest.warns(UserWarning, match="only the beginning") as caught:
        scorer.rank("who counts?", [LONG])
    assert warnings_of_call(caught)[0].filename == __file__


def test_an_error_names_the_id(scorer, monkeypatch):
    def fail(*_, **__):
        raise NotFiniteError(layer=1, head=0, document=1)

    monkeypatch.setattr(scorer, "rank", fail)
    for rerank in (
        lambda: LangChainReranker(scorer=scorer).compress_documents(DOCUMENTS, "who?"),
        lambda: LlamaIndexReranker(scorer=scorer).postprocess_nodes(NODES, query_str="who?"),
    ):
        with pytest.raises(NotFiniteError, match="to document 1 is not finite") as caught:
            rerank()
        assert caught.value.__notes__ == ["The document is 1 (the-long-one)."]
