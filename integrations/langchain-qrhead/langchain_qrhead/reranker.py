"""QRHeadReranker: documents reordered by the attention of a model's retrieval heads."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableLambda

from langchain_qrhead.documents import passages_of
from qrhead_rag.frameworks.rerank import RerankOptions, copy_containers
from qrhead_rag.frameworks.reranked import RerankedDocument
from qrhead_rag.frameworks.scorer import warnings_of_threads

RELEVANCE_SCORE = "relevance_score"


class QRHeadReranker(RerankOptions, BaseDocumentCompressor):
    """Reorders documents by relevance to the query and keeps the best.

    For ContextualCompressionRetriever, DocumentCompressorPipeline and chains. Each document comes back as a copy with
    its score as metadata "relevance_score"; scores compare within one list only.

    ScorerOptions choose the model: model, heads, mode, layout, instruction, device, dtype, options, or `scorer`, a
    loaded QRRetriever, which may be shared. RerankOptions choose what is kept: top_n (5), min_share, max_tokens, with
    fuse_retrieval beside the documents' own order, and title_key, the metadata key of a document's title.
    on_blank_query="keep_order" returns the first documents, without new scores, where there is nothing to rank by.

    prune cuts the copies' text to its best sentences and notes in their metadata what is kept, as "qrhead_kept", and
    the hash of the full text, as "qrhead_full_text_sha256". min_evidence returns no document where nothing was found,
    or with fallback="first_stage" the first ones, without new scores and with "qrhead_abstained" in their metadata.

    Raises:
        ValueError: an option out of range, or a contradiction between `scorer` and another option.

    >>> QRHeadReranker(top_n=3, title_key="name").compress_documents([], "When does the ferry leave?")
    []
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The best documents, best first, as copies with their scores.

        Args:
            documents: the retrieved documents; not changed.
            query: the question.
            callbacks: see the ranking as a run named "QRHeadReranker".
        """
        return self._traced().invoke(_Input(documents, query), {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As compress_documents, in a thread, so the event loop is not blocked."""
        with warnings_of_threads():
            return await self._traced().ainvoke(_Input(documents, query), {"callbacks": callbacks})

    def find_heads(self, documents: Sequence[Document], *, questions: int = 40, show_progress: bool = False) -> Self:
        """The same reranker with heads that are found on a corpus, without labels.

        Sentences of the documents ask for the rest of their document; `heads.note` of the result says what the heads
        are worth on such questions, beside the former ones. Save them with `heads.save("heads.json")`. Takes minutes on
        a CPU.

        Args:
            documents: some hundreds of the corpus, of three sentences or more each; not changed.
            questions: how many are made.
            show_progress: whether a bar shows the lists that have been run.

        Raises:
            ValueError: too few documents to make questions, or no heads that are worth more than all of them together.
            ImportError: the extra `eval` of qrhead-rag is not installed.
        """
        passages = passages_of(documents, self)
        return self.with_heads_found_in(passages, questions, show_progress)

    def encode_documents(self, documents: Sequence[Document], *, show_progress: bool = False) -> int:
        """Encode documents into `store`, so that ranking them reads what it would have to run.

        Args:
            documents: of the corpus, as the retriever will give them; not changed.
            show_progress: whether a bar shows the documents that have been encoded.

        Returns:
            How many were not stored before.

        Raises:
            ValueError: the reranker has no store.
            OSError: the store cannot be written.
        """
        return self.store_passages(passages_of(documents, self), show_progress)

    async def aencode_documents(self, documents: Sequence[Document], *, show_progress: bool = False) -> int:
        """As encode_documents, in a thread, so the event loop is not blocked."""
        with warnings_of_threads():
            return await asyncio.to_thread(self.encode_documents, documents, show_progress=show_progress)

    def _traced(self) -> "Runnable[_Input, list[Document]]":
        return RunnableLambda(self._rerank, name="QRHeadReranker")

    def _rerank(self, request: "_Input") -> list[Document]:
        documents, query = request
        if not documents:
            return []
        passages = passages_of(documents, self)
        return [_with_score(documents[reranked.index], reranked) for reranked in self.rank(query, passages)]


class _Input(NamedTuple):
    documents: Sequence[Document]
    query: str


def _with_score(document: Document, reranked: RerankedDocument) -> Document:
    metadata = {**copy_containers(document.metadata), **reranked.notes(document.page_content)}
    if reranked.score is not None:
        metadata[RELEVANCE_SCORE] = reranked.score
    return document.model_copy(update={"page_content": reranked.cut(document.page_content), "metadata": metadata})
