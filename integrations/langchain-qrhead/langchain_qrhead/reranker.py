"""QRHeadReranker: documents reordered by the attention that a model's retrieval heads pay them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import model_validator

from qrhead_rag.core.passage import Passage
from qrhead_rag.core.selection import Selection
from qrhead_rag.frameworks.scorer import ScorerOptions

RELEVANCE_SCORE = "relevance_score"


class QRHeadReranker(ScorerOptions, BaseDocumentCompressor):
    """Reorders documents by relevance to the query and keeps the best.

    For ContextualCompressionRetriever, DocumentCompressorPipeline and chains. Each document comes back as a copy with
    its score as metadata "relevance_score"; scores compare within one list only.

    Which model ranks is said by the options of ScorerOptions: model, heads, mode, layout, instruction, device, dtype,
    options, or `scorer`, a QRRetriever that is already loaded and may be shared.

    Attributes:
        top_n: documents to keep; None keeps all.
        min_share: keep documents with at least this share (0 to 1) of the list's positive score mass.
        max_tokens: keep whole documents, best first, within this many tokens of the ranking model.
        title_key: metadata key of a document's title, which then stands before the text as the model's prompt has it.

    Raises:
        ValueError: an option out of range, or a contradiction between `scorer` and another option.
    """

    top_n: int | None = 5
    min_share: float | None = None
    max_tokens: int | None = None
    title_key: str | None = None

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        Selection(**self._selection())
        return self

    def _selection(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "min_share": self.min_share, "max_tokens": self.max_tokens}

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The best documents, best first, as copies with their scores.

        Args:
            documents: what was retrieved; not changed.
            query: the question.
            callbacks: see the ranking as a run named "QRHeadReranker".
        """
        return self._traced().invoke(_Input(documents, query), {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As compress_documents, in a thread: the event loop goes on."""
        return await self._traced().ainvoke(_Input(documents, query), {"callbacks": callbacks})

    def _traced(self) -> "Runnable[_Input, list[Document]]":
        return RunnableLambda(self._rerank, name="QRHeadReranker")

    def _rerank(self, given: "_Input") -> list[Document]:
        if not given.documents:
            return []
        passages = [self._passage(document) for document in given.documents]
        ranking = self.load_scorer().rank(given.query, passages, **self._selection())
        return [_scored(given.documents[ranked.index], ranked.score) for ranked in ranking]

    def _passage(self, document: Document) -> Passage:
        title = document.metadata.get(self.title_key) if self.title_key else None
        return Passage(text=document.page_content, title=None if title is None else str(title))


class _Input(NamedTuple):
    documents: Sequence[Document]
    query: str


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, RELEVANCE_SCORE: score}})
