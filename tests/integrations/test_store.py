"""Encoded at ingestion, ranked from the store: in both frameworks the reranker runs nothing that was ingested."""

import asyncio
import json
import pickle
import threading

import pytest
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.stores import InMemoryByteStore
from langchain_qrhead import QRHeadEncoder as LangChainEncoder
from langchain_qrhead import QRHeadReranker as LangChainReranker
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.postprocessor.qrhead import KVByteStore, QRHeadEncoder, QRHeadMemory, QRHeadReranker

from qrhead_rag import PassageStore
from qrhead_rag.frameworks.scorer import ScorerOptions
from qrhead_rag.ranking import encoding
from tests.helpers.tiny import save_tiny

QUERY = "who counts the ships?"
TEXTS = ["The keeper counts the ships.", "Storms came twice. They broke the lamp.", "A cat slept.", "Fog came at noon."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return {"model": str(save_tiny(tmp_path_factory.mktemp("tiny"))), "heads": ((1, 0), (2, 1)), "mode": "late"}


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "chunks.db")


@pytest.fixture
def nothing_runs(monkeypatch):
    """From its call on, encoding a passage fails; models are loaded anew, so that nothing is in memory either."""

    def forbid():
        ScorerOptions.release_scorers()
        monkeypatch.setattr(encoding, "_run", lambda *arguments: pytest.fail("a passage was run"))

    return forbid


def nodes():
    return [
        TextNode(
            text=text,
            id_=f"n{number}",
            metadata={"file": f"log{number}.txt", "name": f"Day {number}"},
            excluded_embed_metadata_keys=["file"] if number else [],
            text_template="{metadata_str} | {content}",
        )
        for number, text in enumerate(TEXTS)
    ]


def documents():
    return [Document(page_content=text, metadata={"name": f"Day {n}"}, id=f"d{n}") for n, text in enumerate(TEXTS)]


def stored(store):
    return sum(settings.passages for settings in PassageStore(store).contents())


READ_AS = [
    {},
    {"title_key": "name"},
    {"metadata_mode": MetadataMode.NONE},
    {"metadata_mode": MetadataMode.ALL, "title_key": "file"},
]


@pytest.mark.parametrize("read_as", READ_AS)
def test_what_a_pipeline_encodes_is_what_the_reranker_reads(read_as, model, store, nothing_runs):
    original = nodes()
    ingested = IngestionPipeline(transformations=[QRHeadEncoder(store=store, **model, **read_as)]).run(nodes=original)
    assert list(ingested) == nodes(), "nodes come back untouched"
    assert stored(store) == len(TEXTS)
    retrieved = [NodeWithScore(node=node, score=0.5) for node in ingested]
    expected = QRHeadReranker(**model, **read_as).postprocess_nodes(retrieved, query_str=QUERY)
    nothing_runs()
    reranked = QRHeadReranker(store=store, **model, **read_as).postprocess_nodes(retrieved, query_str=QUERY)
    assert [node.node_id for node in reranked] == [node.node_id for node in expected]
    assert [node.score for node in reranked] == pytest.approx([node.score for node in expected], abs=1e-6)


def test_another_reading_of_the_same_nodes_is_not_taken_for_it(model, store):
    QRHeadEncoder(store=store, **model)(nodes())
    QRHeadEncoder(store=store, **model, title_key="name")(nodes())
    assert stored(store) == 2 * len(TEXTS)


def test_a_pipeline_splits_then_encodes_and_again_encodes_nothing(model, store, nothing_runs):
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=30, chunk_overlap=0), QRHeadEncoder(store=store, **model)],
        disable_cache=True,
    )
    whole = [LlamaDocument(text=" ".join(TEXTS * 3), metadata={"source": "log"})]
    chunks = pipeline.run(documents=whole)
    texts = {chunk.get_content(metadata_mode=MetadataMode.EMBED) for chunk in chunks}
    assert stored(store) == len(texts) > 1
    nothing_runs()
    assert len(pipeline.run(documents=whole)) == len(chunks)
    assert len(asyncio.run(pipeline.arun(documents=whole))) == len(chunks)


def test_async_ingestion_leaves_the_event_loop_free(model, store):
    threads = []

    class Watched(QRHeadEncoder):
        def __call__(self, nodes, **kwargs):
            threads.append(threading.current_thread())
            return super().__call__(nodes, **kwargs)

    asyncio.run(Watched(store=store, **model).acall(nodes()))
    assert threads != [threading.main_thread()]
    assert stored(store) == len(TEXTS)


@pytest.mark.slow
def test_workers_of_a_pipeline_write_each_passage_once(model, store, tmp_path):
    many = [TextNode(text=f"Ship number {number} came at {number} o'clock.") for number in range(12)]
    pipeline = IngestionPipeline(transformations=[QRHeadEncoder(store=store, **model)])
    assert len(pipeline.run(nodes=many, num_workers=2)) == 12
    assert stored(store) == 12
    assert QRHeadReranker(store=store, **model).load_scorer().encode_to_store([node.text for node in many]) == 0


def test_an_encoder_is_data_and_needs_a_store(model, store):
    encoder = QRHeadEncoder(store=store, title_key="name", **model)
    assert QRHeadEncoder.from_dict(encoder.to_dict()).to_dict() == encoder.to_dict()
    assert pickle.loads(pickle.dumps(encoder)).store == store
    for kind in (QRHeadEncoder, LangChainEncoder):
        with pytest.raises(ValueError, match="QRHeadEncoder has no store; expected store="):
            kind(**model)


def test_a_reranker_with_a_store_is_data(model, store):
    reranker = QRHeadReranker(store=store, **model)
    assert json.loads(reranker.to_json())["store"] == store
    assert QRHeadReranker.from_dict(reranker.to_dict()).store == store
    byte_store = InMemoryByteStore()
    in_memory = LangChainReranker(store=byte_store, **model)
    assert in_memory.model_dump()["store"] is None, "an object is no data; scores are the same without it"
    assert in_memory.model_copy(deep=True).store is byte_store
    assert LangChainReranker(scorer=reranker.load_scorer()).store == store
    with pytest.raises(ValueError, match=r"store='.*other\.db' contradicts scorer="):
        LangChainReranker(scorer=reranker.load_scorer(), store="other.db")


@pytest.mark.parametrize("title_key", [None, "name"])
def test_langchain_encodes_what_it_ranks(title_key, model, store, nothing_runs):
    encoder = LangChainEncoder(store=store, title_key=title_key, **model)
    assert isinstance(encoder, BaseDocumentTransformer)
    original = documents()
    assert encoder.transform_documents(original) is original
    assert original == documents()
    expected = LangChainReranker(title_key=title_key, **model).compress_documents(original, QUERY)
    assert asyncio.run(encoder.atransform_documents(original)) == documents()
    assert stored(store) == len(TEXTS)
    nothing_runs()
    reranker = LangChainReranker(store=store, title_key=title_key, **model)
    reranked = reranker.compress_documents(original, QUERY)
    assert [document.id for document in reranked] == [document.id for document in expected]
    scores = [[document.metadata["relevance_score"] for document in each] for each in (reranked, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_langchain_encodes_by_the_reranker_with_progress(model, store, capsys):
    reranker = LangChainReranker(store=store, **model)
    assert reranker.encode_documents(documents()[:3], show_progress=True) == 3
    assert "3/3" in capsys.readouterr().err
    assert asyncio.run(reranker.aencode_documents(documents())) == 1
    with pytest.raises(ValueError, match="no store to encode into"):
        LangChainReranker(**model).encode_documents(documents())
    with pytest.raises(TypeError, match="document 0 is str; expected a list of Document"):
        reranker.encode_documents(["a text"])


def test_both_frameworks_read_each_others_passages(model, store, nothing_runs):
    QRHeadEncoder(store=store, metadata_mode=MetadataMode.NONE, title_key="name", **model)(nodes())
    nothing_runs()
    assert LangChainReranker(store=store, title_key="name", **model).compress_documents(documents(), QUERY)


def test_a_key_value_store_of_llama_index(model, nothing_runs):
    store = KVByteStore(SimpleKVStore())
    QRHeadEncoder(store=store, **model)(nodes())
    assert stored(store) == len(TEXTS)
    key = next(store.yield_keys(prefix="passages/"))
    store._kvstore.put(key, {"something": "else"}, collection="qrhead_passages")
    with pytest.warns(UserWarning, match="KVByteStore has damaged passages"):
        assert (
            len(
                QRHeadReranker(store=store, **model).postprocess_nodes(
                    [NodeWithScore(node=n) for n in nodes()], query_str=QUERY
                )
            )
            == 4
        )
    nothing_runs()
    assert QRHeadReranker(store=store, **model).postprocess_nodes(
        [NodeWithScore(node=n) for n in nodes()], query_str=QUERY
    )
    store.mdelete([key, "no key"])
    assert stored(store) == len(TEXTS) - 1
    assert store.mget([key]) == [None]


def test_a_memory_survives_a_restart(model, store, nothing_runs):
    from llama_index.core.llms import ChatMessage

    messages = [
        ChatMessage(role="user" if n % 2 == 0 else "assistant", content=f"{text} {n}")
        for n, text in enumerate(TEXTS * 4)
    ]

    def recalled():
        memory = QRHeadMemory.from_defaults(store=store, token_limit=120, session_id="s", **model)
        memory.put_messages(messages)
        return [str(message.content) for message in memory.get(input=QUERY)]

    expected = recalled()
    assert 0 < len(expected) < len(messages)
    nothing_runs()
    assert recalled() == expected
