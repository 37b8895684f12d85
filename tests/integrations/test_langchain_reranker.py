"""QRHeadReranker in LangChain, against the real langchain-core and langchain-classic."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_qrhead import QRHeadReranker

from qrhead_rag import QRRetriever
from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.helpers.warned import warnings_of_call

TEXTS = ["The keeper counts the ships.", "Soup is served at noon.", "The lighthouse is tall.", "Fog hides the pier."]
QUERY = "Who counts the ships?"


def documents_of(texts=TEXTS, **metadata):
    return [Document(page_content=text, id=str(n), metadata=dict(metadata)) for n, text in enumerate(texts)]


def scores(documents):
    return [document.metadata["relevance_score"] for document in documents]


@pytest.fixture
def reranker(tiny):
    return QRHeadReranker(scorer=tiny, top_n=None)


def test_order_and_scores_are_those_of_the_core(reranker, tiny):
    expected = tiny.rank(QUERY, TEXTS)
    reranked = reranker.compress_documents(documents_of(), QUERY)
    assert [document.id for document in reranked] == [str(ranked.index) for ranked in expected]
    assert scores(reranked) == pytest.approx([ranked.score for ranked in expected], abs=1e-6)
    assert all(type(score) is float for score in scores(reranked))
    assert isinstance(reranker, BaseDocumentCompressor)


def test_a_warning_names_the_line_that_called_the_reranker():
    scorer = QRRetriever(tiny_model(), tiny_tokenizer(), heads=[(1, 0)], context_length=300)
    with pytest.warns(UserWarning, match="sliding windows") as caught:
        QRHeadReranker(scorer=scorer).compress_documents(documents_of(TEXTS * 10), QUERY)
    assert warnings_of_call(caught)[0].filename == __file__


async def test_async_gives_the_same(reranker):
    expected = reranker.compress_documents(documents_of(), QUERY)
    reranked = await reranker.acompress_documents(documents_of(), QUERY)
    assert [document.id for document in reranked] == [document.id for document in expected]
    assert scores(reranked) == pytest.approx(scores(expected), abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"top_n": 2}, {"min_share": 0.3}, {"max_tokens": 40}, {"top_n": 3, "max_tokens": 40}]
)
def test_selection_is_that_of_the_core(tiny, options):
    expected = tiny.rank(QUERY, TEXTS, **options)
    reranked = QRHeadReranker(scorer=tiny, **{"top_n": None, **options}).compress_documents(documents_of(), QUERY)
    assert [document.id for document in reranked] == [str(ranked.index) for ranked in expected]
    assert 0 < len(reranked) < len(TEXTS)


def test_five_documents_are_kept_unless_said_otherwise(tiny):
    assert len(QRHeadReranker(scorer=tiny).compress_documents(documents_of(TEXTS * 2), QUERY)) == 5


def test_the_callers_documents_are_not_changed(reranker):
    documents = documents_of(relevance_score="mine", nested={"a": [1]}, vector=np.arange(3))
    before = copy.deepcopy([document.model_dump(exclude={"metadata": {"vector"}}) for document in documents])
    reranked = reranker.compress_documents(tuple(documents), QUERY)
    assert [document.model_dump(exclude={"metadata": {"vector"}}) for document in documents] == before
    assert all(type(score) is float for score in scores(reranked))
    assert all(document.metadata["vector"] is documents[int(document.id)].metadata["vector"] for document in reranked)


def test_what_comes_back_shares_no_nested_metadata(reranker):
    documents = documents_of(nested={"a": [1]}, pair=([2],))
    before = copy.deepcopy(documents)
    for document in reranker.compress_documents(documents, QUERY):
        document.metadata["nested"]["a"].append(9)
        document.metadata["pair"][0].append(9)
    assert documents == before


def test_subclass_id_and_metadata_come_back(reranker):
    class Page(Document):
        number: int = 0

    (reranked,) = reranker.compress_documents([Page(page_content="a", id="x", number=12, metadata={"b": 1})], QUERY)
    assert (type(reranked), reranked.number, reranked.id, reranked.metadata["b"]) == (Page, 12, "x", 1)


def test_duplicates_stay_and_a_blank_document_is_last(reranker):
    texts = ["  ", "The same.", "The same.", *TEXTS]
    reranked = reranker.compress_documents(documents_of(texts), QUERY)
    assert sorted(document.id for document in reranked) == sorted(map(str, range(7)))
    assert reranked[-1].id == "0"
    assert scores(reranked)[-1] == min(scores(reranked))


def test_a_title_key_makes_a_title_and_a_title_alone_does_not(tiny):
    documents = documents_of(title="Ignored")
    plain = QRHeadReranker(scorer=tiny).compress_documents(documents, QUERY)
    assert scores(plain) == pytest.approx([ranked.score for ranked in tiny.rank(QUERY, TEXTS)], abs=1e-6)
    for n, document in enumerate(documents):
        document.metadata["name"] = n
    del documents[1].metadata["name"]
    passages = [{"text": text, "title": None if n == 1 else str(n)} for n, text in enumerate(TEXTS)]
    titled = QRHeadReranker(scorer=tiny, title_key="name").compress_documents(documents, QUERY)
    assert scores(titled) == pytest.approx([ranked.score for ranked in tiny.rank(QUERY, passages)], abs=1e-6)


def test_no_documents_no_model():
    assert QRHeadReranker(model="nobody/has-this-model").compress_documents([], QUERY) == []


@pytest.mark.parametrize("options", [{"top_n": 0}, {"min_share": 2}, {"max_tokens": -1}, {"top_m": 3}])
def test_options_out_of_range_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        QRHeadReranker(**options)


def test_a_blank_query_is_refused(reranker):
    with pytest.raises(ValueError, match="query is blank"):
        reranker.compress_documents(documents_of(), " ")


@pytest.mark.parametrize("options", [{"top_n": 2}, {"top_n": None, "max_tokens": 13}])
def test_a_blank_query_may_keep_the_order(tiny, options):
    reranker = QRHeadReranker(scorer=tiny, on_blank_query="keep_order", **options)
    documents = documents_of(author="Ines")
    with pytest.warns(UserWarning, match=r"the query is blank \(' '\)") as caught:
        reranked = reranker.compress_documents(documents, " ")
    assert warnings_of_call(caught)[0].filename == __file__
    assert reranked == documents[: len(reranked)]
    assert 0 < len(reranked) < len(documents)
    assert scores(reranker.compress_documents(documents, QUERY))
    with pytest.raises(TypeError, match="query must be str"):
        reranker.compress_documents(documents, None)


@pytest.mark.parametrize("documents", [["a text"], "a text", Document(page_content="alone"), [("text", 1)]])
def test_what_is_no_document_is_refused_by_its_place(reranker, documents):
    with pytest.raises(TypeError, match=r"document 0 is (str|tuple); expected a list of Document"):
        reranker.compress_documents(documents, QUERY)


class Runs(BaseCallbackHandler):
    def __init__(self):
        self.started, self.ended, self.failed, self.parents = [], [], [], {}

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, name=None, **_):
        self.started.append(name)
        self.parents[name] = parent_run_id

    def on_chain_end(self, outputs, **_):
        self.ended.append(outputs)

    def on_chain_error(self, error, **_):
        self.failed.append(error)

    def on_retriever_start(self, *_, run_id, **__):
        self.parents["retriever"] = run_id


def test_ranking_is_traced_under_the_callers_callbacks(reranker):
    runs = Runs()
    reranked = reranker.compress_documents(documents_of(), QUERY, callbacks=[runs])
    assert runs.started == ["QRHeadReranker"]
    assert runs.ended == [reranked]
    with pytest.raises(ValueError, match="blank"):
        reranker.compress_documents(documents_of(), "", callbacks=[runs])
    assert len(runs.failed) == 1


class Fixed(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return documents_of()


@pytest.mark.parametrize("is_async", [False, True])
async def test_in_a_compression_retriever(reranker, tiny, is_async):
    runs = Runs()
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=Fixed())
    config = {"callbacks": [runs]}
    reranked = await retriever.ainvoke(QUERY, config) if is_async else retriever.invoke(QUERY, config)
    assert [document.id for document in reranked] == [str(ranked.index) for ranked in tiny.rank(QUERY, TEXTS)]
    assert runs.started == ["QRHeadReranker"]
    assert runs.parents["QRHeadReranker"] is not None


class Shorten(BaseDocumentTransformer):
    def transform_documents(self, documents, **_):
        return [document.model_copy(update={"page_content": document.page_content[:12]}) for document in documents]


@pytest.mark.parametrize("is_async", [False, True])
async def test_in_a_pipeline_beside_other_compressors(tiny, is_async):
    stages = [Shorten(), QRHeadReranker(scorer=tiny, top_n=3), QRHeadReranker(scorer=tiny, top_n=2)]
    pipeline = DocumentCompressorPipeline(transformers=stages)
    if is_async:
        reranked = await pipeline.acompress_documents(documents_of(), QUERY)
    else:
        reranked = pipeline.compress_documents(documents_of(), QUERY)
    first = tiny.rank(QUERY, [text[:12] for text in TEXTS], top_n=3)
    expected = tiny.rank(QUERY, [ranked.passage.text for ranked in first], top_n=2)
    assert [document.page_content for document in reranked] == [ranked.passage.text for ranked in expected]
    assert scores(reranked) == pytest.approx([ranked.score for ranked in expected], abs=1e-6)


def test_in_a_chain(reranker, tiny):
    runs = Runs()
    chain = RunnablePassthrough.assign(documents=lambda _: documents_of()) | RunnableLambda(
        lambda inputs: reranker.compress_documents(inputs["documents"], inputs["query"])
    )
    reranked = chain.invoke({"query": QUERY}, {"callbacks": [runs]})
    assert [document.id for document in reranked] == [str(ranked.index) for ranked in tiny.rank(QUERY, TEXTS)]
    assert "QRHeadReranker" in runs.started


def test_data_and_pickle_round_trips(embedded):
    reranker = QRHeadReranker(top_n=3, model="some/model", heads="nq", mode="late", min_share=0.1, title_key="t")
    injected = QRHeadReranker(scorer=embedded, top_n=1)
    for component in (reranker, injected):
        for restored in (
            QRHeadReranker(**component.model_dump()),
            QRHeadReranker.model_validate_json(component.model_dump_json()),
            pickle.loads(pickle.dumps(component)),
            copy.deepcopy(component),
        ):
            assert restored.model_dump() == component.model_dump()
    restored = pickle.loads(pickle.dumps(injected))
    expected = scores(injected.compress_documents(documents_of(), QUERY))
    assert scores(restored.compress_documents(documents_of(), QUERY)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_reranking_needs_no_langchain():
    """The middleware alone needs the package langchain, and says how to get it."""
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "from langchain_qrhead import QRHeadReranker, trim_messages_by_relevance\n"
        "try:\n"
        "    from langchain_qrhead import QRHeadMemoryMiddleware\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install langchain-qrhead[agents]" in process.stdout
