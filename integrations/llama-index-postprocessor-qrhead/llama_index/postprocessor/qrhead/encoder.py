"""QRHeadEncoder: nodes encoded at ingestion, so that QRHeadReranker reads what it would have to run."""

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent
from llama_index.postprocessor.qrhead.nodes import passage_of

from qrhead_rag.frameworks.rerank import EncoderOptions
from qrhead_rag.frameworks.scorer import warnings_of_threads


class QRHeadEncoder(EncoderOptions, TransformComponent):
    """Encodes nodes into a store as the last transformation of an IngestionPipeline. The nodes come back untouched.

    A QRHeadReranker with the same store and options then ranks them without running them. Give both the same
    ScorerOptions (model, heads, mode, options …), title_key and metadata_mode: a node is stored by the text that the
    reranker will read. Nodes that are stored already are not run again. Several workers and processes can share a
    store in one file.

    Attributes:
        metadata_mode: the metadata that is encoded together with the text, as in QRHeadReranker.
        show_progress: whether a bar shows the nodes that have been encoded.

    Raises:
        ValueError: no store, or as in QRHeadReranker.

    >>> QRHeadEncoder(store="chunks.db", title_key="name")([])
    []
    """

    metadata_mode: MetadataMode = MetadataMode.EMBED

    @classmethod
    def class_name(cls) -> str:
        """Name under which the component is serialized."""
        return "QRHeadEncoder"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Encode the nodes, and give them back.

        Args:
            nodes: not changed.
            kwargs: of the pipeline; not used.

        Raises:
            OSError: the store cannot be written.
        """
        passages = [passage_of(node, self, self.metadata_mode) for node in nodes]
        if passages:
            self.store_passages(passages, self.show_progress)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """As a call, in a thread, so the event loop is not blocked."""
        with warnings_of_threads():
            return await asyncio.to_thread(self, nodes, **kwargs)
