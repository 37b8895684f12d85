"""QRHeadReranker: documents reordered by the attention of a model's retrieval heads."""

from collections.abc import Sequence
from typing import NamedTuple

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableLambda

from qrhead_rag import Passage
from qrhead_rag.frameworks.scorer import RerankOptions

RELEVANCE_SCORE = "relevance_score"


class QRHeadReranker(RerankOptions, BaseDocumentCompressor):
    """Reorders documents by relevance to the query and keeps the best.

    For ContextualCompressionRetriever, DocumentCompressorPipeline and chains. Each document comes back as a copy with
    its score as metadata "relevance_score"; scores compare within one list only.

    ScorerOptions choose the model: model, heads, mode, layout, instruction, device, dtype, options, or `scorer`, a
    loaded QRRetriever, which may be shared. RerankOptions choose what is kept: top_n (5), min_share, max_tokens, with
    fuse_retrieval beside the documents' own order, and title_key, the metadata key of a document's title.

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
        return await self._traced().ainvoke(_Input(documents, query), {"callbacks": callbacks})

    def _traced(self) -> "Runnable[_Input, list[Document]]":
        return RunnableLambda(self._rerank, name="QRHeadReranker")

    def _rerank(self, request: "_Input") -> list[Document]:
        documents, query = request
        if not documents:
            return []
        passages = [
            Passage(text=document.page_content, title=self.title_of(document.metadata)) for document in documents
        ]
        return [_with_score(documents[ranked.index], ranked.ordering_score) for ranked in self.rank(query, passages)]


class _Input(NamedTuple):
    documents: Sequence[Document]
    query: str


def _with_score(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, RELEVANCE_SCORE: score}})
