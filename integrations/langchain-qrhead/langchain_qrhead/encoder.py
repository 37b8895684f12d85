"""QRHeadEncoder: documents encoded at ingestion, so that QRHeadReranker reads what it would have to run."""

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import BaseDocumentTransformer, Document

from langchain_qrhead.documents import passages_of
from qrhead_rag.frameworks.rerank import EncoderOptions
from qrhead_rag.frameworks.scorer import warnings_of_threads


class QRHeadEncoder(EncoderOptions, BaseDocumentTransformer):
    """Encodes documents into a store on their way into an index. They come back untouched.

    A QRHeadReranker with the same store, ScorerOptions (model, heads, mode, options …) and title_key then ranks them
    without running them. Documents that are stored already are not run again. Put it behind the splitter: what is
    stored is the text of each chunk.

    Attributes:
        show_progress: whether a bar shows the documents that have been encoded.

    Raises:
        ValueError: no store, or as in QRHeadReranker.

    >>> QRHeadEncoder(store="chunks.db", title_key="name").transform_documents([])
    []
    """

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """Encode the documents, and give them back.

        Args:
            documents: not changed.
            kwargs: of the caller's; not used.

        Raises:
            OSError: the store cannot be written.
        """
        if documents:
            self.store_passages(passages_of(documents, self), self.show_progress)
        return documents

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """As transform_documents, in a thread, so the event loop is not blocked."""
        with warnings_of_threads():
            return await asyncio.to_thread(self.transform_documents, documents, **kwargs)
